/** Who asked the API server for what, by its audit log; and credentials that tell controllers of one ServiceAccount apart. */
import { copyFile, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { ControlPlane } from "./cluster/controlplane.ts";
import { NAMESPACE } from "./harness.ts";

/** https://kubernetes.io/docs/reference/access-authn-authz/authentication/#service-account-tokens */
const CREDENTIAL_ID = "authentication.kubernetes.io/credential-id";
const POD_NAME = "authentication.kubernetes.io/pod-name";

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
	/** Undefined for a client certificate. */
	credential?: string;
	user: string;
	/** Of a ServiceAccount's token that was made for one. */
	pod?: string;
	/** Empty for the core group. */
	apiGroup: string;
	/** What the authorizer said, and which binding it was by. */
	decision: string;
	reason: string;
}

/**
 * All requests so far, oldest first; of watches that still go on the beginning. The API server writes the log before it
 * answers.
 */
export async function allRequests(
	cluster: ControlPlane,
): Promise<AuditedRequest[]> {
	const text = await readFile(cluster.auditLog, "utf8");
	const requests = new Map<string, AuditedRequest>();
	for (const line of text.split("\n")) {
		// A line may be half written.
		if (!line.endsWith("}")) continue;
		const event = JSON.parse(line);
		const {
			resource = event.requestURI,
			subresource,
			...object
		} = event.objectRef ?? {};
		const { username, extra } = event.user;
		requests.set(event.auditID, {
			verb: event.verb,
			resource: subresource ? `${resource}/${subresource}` : resource,
			namespace: object.namespace,
			name: object.name,
			code: event.responseStatus?.code ?? 0,
			at: Date.parse(event.requestReceivedTimestamp),
			credential: extra?.[CREDENTIAL_ID]?.[0],
			user: username,
			pod: extra?.[POD_NAME]?.[0],
			apiGroup: object.apiGroup ?? "",
			decision: event.annotations?.["authorization.k8s.io/decision"] ?? "",
			reason: event.annotations?.["authorization.k8s.io/reason"] ?? "",
		});
	}
	return [...requests.values()].sort((a, b) => a.at - b.at);
}

/** Those of the identities, oldest first. */
export const audited = async (
	cluster: ControlPlane,
	...identities: Identity[]
): Promise<AuditedRequest[]> =>
	(await allRequests(cluster)).filter(({ credential }) =>
		identities.some((one) => one.credential === credential),
	);

/** Requests that changed something, or would have. */
export const isWrite = ({ verb }: AuditedRequest) =>
	["create", "update", "patch", "delete", "deletecollection"].includes(verb);

/** Whoever changed something, oldest first, each once for as long as nobody else did. Leases are what they quarrel about. */
export const inTurn = (
	requests: AuditedRequest[],
	who: "pod" | "credential",
): (string | undefined)[] =>
	requests
		.filter((request) => isWrite(request) && request.resource !== "leases")
		.map((request) => request[who])
		.filter((one, index, all) => one !== all[index - 1]);
