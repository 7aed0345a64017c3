/** Which of the proxies in front of a core, who verify clients, is not known to do so with a certain CA bundle. */
import { createHash } from "node:crypto";
import { ApiError, type Kube, type KubeObject } from "./kube.ts";
import { names } from "./manifests.ts";
import type { Wait } from "./rotation.ts";
import { CLIENT_CA_HASH } from "./workload.ts";

/** The port of the gateway's GET /client-ca. */
const PORT = 2381;

export interface Pod extends KubeObject {
	spec?: { containers?: { command?: string[] }[] };
	status?: {
		phase?: string;
		conditions?: { type: string; status: string }[];
	};
}

/** What a gateway has answered, not looked at yet; why it has not. */
export type Answer = { body: unknown } | ApiError;

/** The bundle, as each kind of proxy shows which one it has. */
export interface Wanted {
	/** Of the whole text, in hex: a gateway tells it. */
	sha256: string;
	/** Of pods that run etcd: their annotation. */
	templateHash: string;
}

/**
 * Asks the pods. Those of both kinds may be there at once, while the image is being changed. A pod that is made after
 * the list starts with the bundle as it is then.
 * @param args.bundle PEM, as it lies in the ConfigMap
 * @param args.templateHash what CLIENT_CA_HASH is on pods that start with this bundle
 * @throws ApiError when the API server does not answer, or does not list pods for another reason than a missing right
 */
export async function proxiesBehind(
	kube: Kube,
	args: {
		namespace: string;
		name: string;
		bundle: string;
		templateHash: string;
	},
): Promise<Wait[]> {
	const { namespace, name, bundle, templateHash } = args;
	const sha256 = createHash("sha256").update(bundle).digest("hex");
	let pods: Pod[];
	try {
		pods = await kube.list<Pod>("Pod", namespace, `apiserver=${name}`);
	} catch (error) {
		if (!(error instanceof ApiError) || error.code !== 403) throw error;
		return [unlisted(namespace, name, error)];
	}
	const waits = pods.map(async (pod) =>
		judge(pod, isAsked(pod) ? await ask(kube, namespace, pod) : undefined, {
			sha256,
			templateHash,
		}),
	);
	return (await Promise.all(waits)).filter((wait) => wait !== undefined);
}

/** @throws ApiError when the API server does not answer */
async function ask(kube: Kube, namespace: string, pod: Pod): Promise<Answer> {
	try {
		const { name } = pod.metadata;
		return { body: await kube.podProxy(namespace, name, PORT, "client-ca") };
	} catch (error) {
		if (!(error instanceof ApiError) || error.reason === "Unreachable")
			throw error;
		return error;
	}
}

/** Whether `judge` needs the pod's answer: it is a gateway that may serve. Also when it is not ready, or about to go. */
export const isAsked = (pod: Pod): boolean =>
	pod.status?.phase === "Running" && !runsEtcd(pod);

const runsEtcd = ({ spec }: Pod): boolean =>
	spec?.containers?.some(({ command: [program = ""] = [] }) =>
		/(^|\/)etcd$/.test(program),
	) ?? false;

/**
 * What there is to wait for with one pod; undefined when it verifies with the bundle, or verifies no more.
 * @param answer where `isAsked`
 */
export function judge(
	pod: Pod,
	answer: Answer | undefined,
	wanted: Wanted,
): Wait | undefined {
	const { phase = "Pending" } = pod.status ?? {};
	if (phase === "Succeeded" || phase === "Failed") return undefined;
	if (runsEtcd(pod)) return judgeEtcd(pod, wanted);
	if (answer === undefined)
		return notUpdated(
			pod,
			`is ${phase}; it reads the new client CA when it starts`,
		);
	if (answer instanceof ApiError) return judgeFailure(pod, answer);
	const sha256 = hashIn(answer.body);
	if (sha256 === undefined)
		return unknown(
			pod,
			`does not tell which client CA it has loaded, but something else: is its port ${PORT} the gateway's? Delete the pod if it is none`,
		);
	return sha256 === wanted.sha256
		? undefined
		: notUpdated(
				pod,
				"has not loaded the new client CA yet; the kubelet brings it within two minutes",
			);
}

/** It reads the bundle at its start, and a change of the annotation is another pod. */
function judgeEtcd(pod: Pod, { templateHash }: Wanted): Wait | undefined {
	const { deletionTimestamp, annotations } = pod.metadata;
	if (annotations?.[CLIENT_CA_HASH] !== templateHash)
		return notUpdated(
			pod,
			deletionTimestamp === undefined
				? "is being replaced by one with the new client CA"
				: "has the former client CA, and is about to end",
		);
	const ready = pod.status?.conditions?.some(
		({ type, status }) => type === "Ready" && status === "True",
	);
	return ready || deletionTimestamp !== undefined
		? undefined
		: notUpdated(pod, "has the new client CA, but is not ready yet");
}

function judgeFailure(pod: Pod, error: ApiError): Wait | undefined {
	const { code, reason, message } = error;
	// Gone since it was listed.
	if (reason === "NotFound") return undefined;
	if (code === 403)
		return unknown(
			pod,
			`cannot be asked which client CA it has loaded: etcdproxy-controller may not. ${grant(pod.metadata.namespace)} (${message})`,
		);
	if (code === 404)
		return unknown(
			pod,
			"does not tell which client CA it has loaded: it runs an older etcdproxy-controller. Let --etcd-proxy-image name the image of this one, which replaces the pods",
		);
	if (code >= 500 || code === 429)
		return notUpdated(
			pod,
			`has not told yet which client CA it has loaded (${message})`,
		);
	return unknown(
		pod,
		`cannot be asked which client CA it has loaded (${message}). Delete the pod if that stays so; another takes its place`,
	);
}

function unlisted(namespace: string, name: string, error: ApiError): Wait {
	const who = `Deployment ${namespace}/${names.workload(name)}`;
	return {
		who,
		reason: "ProxyUnknown",
		message: `which client CA the pods of ${who} have loaded is not known: etcdproxy-controller may not list them. ${grant(namespace)} (${error.message})`,
		obstacle: true,
	};
}

const grant = (namespace = "") =>
	`Let the Role ${namespace}/etcdproxy-controller-role list pods and get pods/proxy, as artifacts/deployment/00-etcdproxy-controller.yaml does.`;

const notUpdated = (pod: Pod, what: string): Wait =>
	wait(pod, "ProxyNotUpdated", what, false);
const unknown = (pod: Pod, what: string): Wait =>
	wait(pod, "ProxyUnknown", what, true);

function wait(
	{ metadata: { namespace, name } }: Pod,
	reason: string,
	what: string,
	obstacle: boolean,
): Wait {
	const who = `Pod ${namespace}/${name}`;
	return { who, reason, message: `${who} ${what}`, obstacle };
}

function hashIn(body: unknown): string | undefined {
	const { sha256 } = Object(body) as { sha256?: unknown };
	return typeof sha256 === "string" ? sha256 : undefined;
}
