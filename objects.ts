/** What is exchanged with the API server: objects, references, errors. */

/** The kinds this client knows: API version, plural as in the URL, scope. */
export const kinds = {
	EtcdStorage: resource("etcd.xmudrii.com/v1alpha1", "etcdstorages", false),
	Deployment: resource("apps/v1", "deployments"),
	StatefulSet: resource("apps/v1", "statefulsets"),
	DaemonSet: resource("apps/v1", "daemonsets"),
	Pod: resource("v1", "pods"),
	Service: resource("v1", "services"),
	PodDisruptionBudget: resource("policy/v1", "poddisruptionbudgets"),
	ConfigMap: resource("v1", "configmaps"),
	Secret: resource("v1", "secrets"),
	Event: resource("v1", "events"),
	Lease: resource("coordination.k8s.io/v1", "leases"),
};
export type Kind = keyof typeof kinds;

export interface OwnerReference {
	apiVersion: string;
	kind: string;
	name: string;
	uid: string;
	controller?: boolean;
	blockOwnerDeletion?: boolean;
}

export interface ManagedFieldsEntry {
	manager: string;
	operation: "Apply" | "Update";
	apiVersion: string;
	time?: string;
	subresource?: string;
	fieldsType: string;
	fieldsV1?: object;
}

export interface ObjectMeta {
	name: string;
	namespace?: string;
	uid?: string;
	resourceVersion?: string;
	generation?: number;
	creationTimestamp?: string;
	deletionTimestamp?: string;
	labels?: Record<string, string>;
	annotations?: Record<string, string>;
	finalizers?: string[];
	ownerReferences?: OwnerReference[];
	managedFields?: ManagedFieldsEntry[];
}

/** What every object has; concrete types extend it. */
export interface KubeObject {
	apiVersion: string;
	kind: string;
	metadata: ObjectMeta;
}

export interface Ref {
	apiVersion: string;
	kind: string;
	namespace?: string;
	name: string;
}

/** As objects are called in messages, logs and maps: `Secret api/etcd-client-cert`. */
export const refText = ({ kind, namespace, name }: Omit<Ref, "apiVersion">) =>
	`${kind} ${namespace ? `${namespace}/` : ""}${name}`;

/** One object or, without a name, all of a kind (in a namespace). */
export type Target = Omit<Ref, "name"> & { name?: string };

/** The API server's account of a failure (`v1.Status`). */
export interface Status {
	code?: number;
	reason?: string;
	message?: string;
	details?: { retryAfterSeconds?: number };
}

/** `patch Secret apps/etcd-client-cert: Forbidden: <the server's message>` */
export class ApiError extends Error {
	/** The HTTP status; 0 when there was no answer, or none that can be read. */
	readonly code: number;
	/** The server's CamelCase reason; "Unreachable", "Malformed" or "Fenced" with code 0. */
	readonly reason: string;
	readonly retryAfterMs: number | undefined;
	readonly verb: string;
	readonly ref: Target;

	constructor(verb: string, ref: Target, status: Status, cause?: unknown) {
		const { code = 0, reason = `HTTP ${code}`, message = "", details } = status;
		const where = [ref.namespace, ref.name].filter(Boolean).join("/");
		const what = [verb, ref.kind, where].filter(Boolean).join(" ");
		super(`${what}: ${reason}: ${message}`, { cause });
		this.name = "ApiError";
		this.code = code;
		this.reason = reason;
		const seconds = details?.retryAfterSeconds;
		this.retryAfterMs = seconds ? seconds * 1000 : undefined;
		this.verb = verb;
		this.ref = ref;
	}
}

function resource(apiVersion: string, plural: string, namespaced = true) {
	return { apiVersion, plural, namespaced };
}
