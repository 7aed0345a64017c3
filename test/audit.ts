/** Who asked the API server for what, by its audit log; and credentials that tell controllers of one ServiceAccount apart. */
import { copyFile, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { ControlPlane } from "./cluster/controlplane.ts";
import { NAMESPACE } from "./harness.ts";

/** https://kubernetes.io/docs/reference/access-authn-authz/authentication/#service-account-tokens */
const CREDENTIAL_ID = "authentication.kubernetes.io/credential-id";

export interface Identity {
	/** Path of a kubeconfig with the rights of the controller's ServiceAccount. */
	kubeconfig: string;
	token: string;
	/** What the audit log calls the token. */
	credential: string;
}

/** A further token of the controller's ServiceAccount, under a name of its own. */
export async function identity(
	cluster: ControlPlane,
	name: string,
): Promise<Identity> {
	const made = await cluster.kubeconfigForServiceAccount(
		NAMESPACE,
		"etcdproxy-controller-sa",
	);
	const kubeconfig = join(cluster.dir, `${name}.kubeconfig`);
	await copyFile(made, kubeconfig);
	const { users } = JSON.parse(await readFile(kubeconfig, "utf8"));
	const { token } = users[0].user;
	const [, claims = ""] = token.split(".");
	const { jti } = JSON.parse(Buffer.from(claims, "base64url").toString());
	return { kubeconfig, token, credential: `JTI=${jti}` };
}

/** One request, as it was answered. */
export interface AuditedRequest {
	verb: string;
	/** `secrets`, `etcdstorages/status` */
	resource: string;
	namespace?: string;
	name?: string;
	code: number;
	/** When it was received, milliseconds since the epoch. */
	at: number;
	credential: string;
}

/** All requests of tokens so far, oldest first. The API server writes the log before it answers. */
export async function audited(
	cluster: ControlPlane,
	...identities: Identity[]
): Promise<AuditedRequest[]> {
	const text = await readFile(cluster.auditLog, "utf8");
	const requests: AuditedRequest[] = [];
	for (const line of text.split("\n")) {
		// A line may be half written.
		if (!line.endsWith("}")) continue;
		const event = JSON.parse(line);
		const [credential] = event.user?.extra?.[CREDENTIAL_ID] ?? [];
		if (!identities.some((one) => one.credential === credential)) continue;
		if (event.stage !== "ResponseComplete" && event.stage !== "Panic") continue;
		const {
			resource = event.requestURI,
			subresource,
			namespace,
			name,
		} = event.objectRef ?? {};
		requests.push({
			verb: event.verb,
			resource: subresource ? `${resource}/${subresource}` : resource,
			namespace,
			name,
			code: event.responseStatus?.code ?? 0,
			at: Date.parse(event.requestReceivedTimestamp),
			credential,
		});
	}
	return requests.sort((a, b) => a.at - b.at);
}

/** Requests that changed something, or would have. */
export const isWrite = ({ verb }: AuditedRequest) =>
	["create", "update", "patch", "delete", "deletecollection"].includes(verb);
