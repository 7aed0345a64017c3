/**
 * The EtcdStorage API (etcd.xmudrii.com/v1alpha1) as the controller reads it: its types, and the one place
 * that turns what a user wrote into values the rest may rely on. Pure.
 *
 * The CRD refuses most bad input at admission, but an older CRD may be installed, so nothing is taken for granted here.
 */
import type { KubeObject } from "./kube.ts";

export const API_VERSION = "etcd.xmudrii.com/v1alpha1";

/** A ConfigMap or Secret that the user prepared in the API server's namespace. */
export interface ObjectName {
	name: string;
	namespace: string;
}

/** A workload that reads the serving CA bundle: it must be restarted to read another. */
export interface Consumer {
	kind: "Deployment" | "StatefulSet" | "DaemonSet";
	name: string;
	namespace: string;
}

export interface EtcdStorage extends KubeObject {
	spec: {
		caCertConfigMap?: ObjectName[];
		clientCertSecret?: ObjectName[];
		consumers?: Consumer[];
		signingCertificateValidity: string;
		servingCertificateValidity: string;
		clientCertificateValidity: string;
		replicas?: number;
	};
	status?: EtcdStorageStatus;
}

/** https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md#typical-status-properties */
export interface Condition {
	type:
		| "Deployed"
		| "CertificatesReady"
		| "Ready"
		| "ValidityWarning"
		| "RotationBlocked";
	status: "True" | "False";
	reason: string;
	message: string;
	observedGeneration: number;
	lastTransitionTime: string;
}

export interface CertificateStatus {
	/** `client-signer`, `serving-signer`, `server`, or `client/<namespace>/<secret>`. */
	name: string;
	notBefore: string;
	notAfter: string;
	renewalTime: string;
	/** Of a signer: where its replacement has got to, see rotation.ts. */
	rotation?: RotationStatus;
}

export interface RotationStatus {
	/** Which CA this is about, the newest one: what its common name ends with. */
	generation: string;
	phase: string;
	/** Of the phase. This and its reason are what the certificates cannot tell; they decide how loudly a wait is told, and nothing else. */
	since: string;
	/** Why the phase was entered. */
	reason: string;
	waitingFor?: string[];
	/** When something happens by itself. */
	nextStepAt?: string;
}

/** A target that carries something of ours, or may; kept so that it can be cleaned once the spec no longer names it. */
export interface TargetStatus extends ObjectName {
	kind: "ConfigMap" | "Secret";
}

export interface EtcdStorageStatus {
	observedGeneration?: number;
	endpoint?: string;
	nextExpiry?: string;
	/** Of the serving CA bundle, as on the target ConfigMaps. */
	caBundleSHA256?: string;
	conditions?: Condition[];
	certificates?: CertificateStatus[];
	targets?: TargetStatus[];
}

/** What a person has asked for, with the reason given; each answered once per reason. */
export interface Requests {
	/** Replace the signer now, through all phases. */
	rotate?: string;
	/** Replace it, and trust the former one no longer. */
	compromised?: string;
}

/** A spec that can be acted on. Durations in milliseconds. */
export interface Spec {
	name: string;
	replicas: number;
	targets: TargetStatus[];
	consumers: Consumer[];
	validity: { signing: number; serving: number; client: number };
	/** What annotations ask for, by domain. */
	requests: Record<"client" | "serving", Requests>;
	/** What is accepted but will not be as written, or deserves a second look. */
	warnings: string[];
}

/** A kube-apiserver's --etcd-prefix, unless told: the keys of the cluster itself, where its etcd is the core. */
const KUBE_APISERVER = "registry";
const MAX_NAME = 58; // `etcd-<name>` must be a DNS label of at most 63 characters (RFC 1123).
/** It goes into annotations, events and log lines. */
const MAX_REASON = 256;
const DEFAULT_REPLICAS = 3;
const MAX_REPLICAS = 100;
const SECOND = 1000;
const MINUTE = 60 * SECOND;
/** Below this a certificate expires before the kubelet (up to 90 s) has delivered it: it would be re-issued without end. */
const SHORTEST_VALIDITY = MINUTE;
const SHORT_VALIDITY = 10 * MINUTE;
const MAX_GO_DURATION = 2 ** 63 / 1e6; // Go counts nanoseconds in an int64.

const unitMs: Record<string, number> = {
	ns: 1e-6,
	us: 1e-3,
	µs: 1e-3,
	μs: 1e-3,
	ms: 1,
	s: SECOND,
	m: MINUTE,
	h: 60 * MINUTE,
};

/**
 * A Go duration (https://pkg.go.dev/time#ParseDuration) in milliseconds.
 * @returns undefined where Go's parser would refuse the text, too.
 */
export function parseDuration(text: unknown): number | undefined {
	if (typeof text !== "string") return undefined;
	if (/^[+-]?0$/.test(text)) return 0;
	const match =
		/^([+-]?)((?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)$/.exec(text);
	if (!match) return undefined;
	let total = 0;
	for (const [, number, unit] of (match[2] ?? "").matchAll(
		/([\d.]+)([a-zµμ]+)/g,
	))
		total += Number(number) * (unitMs[unit ?? ""] ?? Number.NaN);
	if (!(total < MAX_GO_DURATION)) return undefined;
	return match[1] === "-" ? -total : total;
}

/** Milliseconds since the epoch as RFC 3339 in UTC, to the second, as Kubernetes writes times. */
export const formatTime = (ms: number): string =>
	`${new Date(ms).toISOString().slice(0, 19)}Z`;

/** Milliseconds as Go prints durations, rounded to seconds: `730h0m0s`. */
export function formatDuration(ms: number): string {
	const seconds = Math.round(ms / SECOND);
	const [h, m, s] = [
		Math.floor(seconds / 3600),
		Math.floor(seconds / 60) % 60,
		seconds % 60,
	];
	if (h > 0) return `${h}h${m}m${s}s`;
	return m > 0 ? `${m}m${s}s` : `${s}s`;
}

/**
 * What the user asks for, or the reason why it cannot be done; the message names the field and what would be right.
 */
export function readSpec(storage: EtcdStorage): Spec | { invalid: string } {
	const name = storage.metadata.name;
	if (name.length > MAX_NAME || !/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/.test(name))
		return {
			invalid: `metadata.name "${name}" must be a DNS label of at most ${MAX_NAME} characters (lower-case letters, digits, "-"), because the Service is named etcd-<name>. Create it again under such a name.`,
		};
	if (name === KUBE_APISERVER)
		return {
			invalid: `metadata.name "${name}" is not allowed: under /${name}/ lie the objects of a kube-apiserver that shares the core etcd. Create it again under another name.`,
		};
	const spec: Partial<EtcdStorage["spec"]> = storage.spec ?? {};
	const warnings: string[] = [];

	const validity = { signing: 0, serving: 0, client: 0 };
	for (const use of ["signing", "serving", "client"] as const) {
		const field = `${use}CertificateValidity` as const;
		const ms = parseDuration(spec[field]);
		if (ms === undefined || ms <= 0)
			return {
				invalid: `spec.${field} ${JSON.stringify(spec[field])} must be a Go duration greater than zero and less than 292 years, such as 730h or 1h30m.`,
			};
		validity[use] = Math.max(ms, SHORTEST_VALIDITY);
		if (ms < SHORTEST_VALIDITY)
			warnings.push(
				`spec.${field} ${spec[field]} is too short to be delivered; ${formatDuration(SHORTEST_VALIDITY)} is used`,
			);
		else if (ms < SHORT_VALIDITY)
			warnings.push(
				`spec.${field} ${spec[field]} is short: the kubelet alone needs up to 90s to deliver a renewed file`,
			);
	}
	for (const use of ["serving", "client"] as const)
		if (validity[use] > validity.signing)
			warnings.push(
				`spec.${use}CertificateValidity ${formatDuration(validity[use])} is longer than spec.signingCertificateValidity; certificates end with their signer, after ${formatDuration(validity.signing)} at most`,
			);

	const replicas = spec.replicas ?? DEFAULT_REPLICAS;
	if (!Number.isInteger(replicas) || replicas < 1 || replicas > MAX_REPLICAS)
		return {
			invalid: `spec.replicas ${JSON.stringify(replicas)} must be a whole number from 1 to ${MAX_REPLICAS}.`,
		};

	const targets: TargetStatus[] = [];
	for (const [field, kind] of [
		["caCertConfigMap", "ConfigMap"],
		["clientCertSecret", "Secret"],
	] as const) {
		const entries: unknown = spec[field] ?? [];
		if (!Array.isArray(entries))
			return {
				invalid: `spec.${field} must be a list of {name, namespace}.`,
			};
		for (const [index, entry] of (entries as unknown[]).entries()) {
			const target = entry as Partial<ObjectName> | null;
			if (!isObjectName(target?.name) || !isObjectName(target?.namespace, 63))
				return {
					invalid: `spec.${field}[${index}] needs the name and the namespace of a ${kind}.`,
				};
			const { name, namespace } = target as ObjectName;
			if (targets.some((other) => sameTarget(other, { kind, name, namespace })))
				return {
					invalid: `spec.${field} names ${kind} ${namespace}/${name} twice; name it once.`,
				};
			targets.push({ kind, name, namespace });
		}
	}

	const consumers: Consumer[] = [];
	const listed: unknown = spec.consumers ?? [];
	if (!Array.isArray(listed))
		return {
			invalid: "spec.consumers must be a list of {kind, name, namespace}.",
		};
	for (const [index, entry] of (listed as unknown[]).entries()) {
		const { kind, name, namespace } = (entry ?? {}) as Partial<Consumer>;
		if (
			!consumerKinds.some((one) => one === kind) ||
			!isObjectName(name) ||
			!isObjectName(namespace, 63)
		)
			return {
				invalid: `spec.consumers[${index}] needs a kind (${consumerKinds.join(", ")}), a name and a namespace.`,
			};
		consumers.push({ kind, name, namespace } as Consumer);
	}

	const requests: Spec["requests"] = { client: {}, serving: {} };
	for (const domain of ["client", "serving"] as const)
		for (const what of ["rotate", "compromised"] as const) {
			const annotation = `etcd.xmudrii.com/${what}-${domain}`;
			const reason = storage.metadata.annotations?.[annotation];
			if (reason?.trim())
				requests[domain][what] = reason.trim().slice(0, MAX_REASON);
			else if (reason !== undefined)
				warnings.push(
					`the annotation ${annotation} has no effect without a reason as its value`,
				);
		}
	return { name, replicas, targets, consumers, validity, requests, warnings };
}

const consumerKinds = ["Deployment", "StatefulSet", "DaemonSet"] as const;

/** The status as the controller has written it; an empty one if somebody else has, as an older CRD lets them. */
export function readStatus({ status }: EtcdStorage): EtcdStorageStatus {
	const conditions: unknown = status?.conditions ?? [];
	const targets: unknown = status?.targets ?? [];
	const sound =
		Array.isArray(conditions) &&
		conditions.every((one: Condition | null) => one?.type) &&
		Array.isArray(targets) &&
		targets.every(
			(one: TargetStatus | null) =>
				["ConfigMap", "Secret"].includes(one?.kind ?? "") &&
				isObjectName(one?.name) &&
				isObjectName(one?.namespace, 63),
		);
	return (sound && status) || {};
}

/** What goes into an API server's --etcd-servers. @param namespace the controller's */
export const endpoint = (name: string, namespace: string) =>
	`https://etcd-${name}.${namespace}.svc:2379`;

/** A DNS subdomain, as the names of Kubernetes objects are. */
export const isObjectName = (text: unknown, max = 253) =>
	typeof text === "string" &&
	text.length <= max &&
	/^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$/.test(text);

export const sameTarget = (a: TargetStatus, b: TargetStatus) =>
	a.kind === b.kind && a.name === b.name && a.namespace === b.namespace;
