/**
 * The objects that one EtcdStorage is made of, whole and in the order in which they are applied. Pure.
 *
 * Desired objects carry no defaults, no empty lists or maps and no non-canonical quantities: such values change the
 * resourceVersion at every server-side apply (https://github.com/kubernetes/kubernetes/issues/131175).
 */
import { createHash } from "node:crypto";
import {
	API_VERSION,
	type EtcdStorage,
	formatTime,
	type Requests,
	type TargetStatus,
} from "./etcdstorage.ts";
import type { KubeObject } from "./kube.ts";
import type { Domain } from "./lifetimes.ts";
import type { CertificateFacts, KeyPair } from "./pki.ts";
import { newest, type Signers } from "./signers.ts";

export const FIELD_MANAGER = "etcdproxy-controller";
/**
 * On targets, as an annotation: which EtcdStorage fills them. It is what keeps two of them from filling the same one. On
 * our own objects, as a label: whose they are.
 */
export const FILLED_BY = "etcd.xmudrii.com/etcdstorage";
const EXPIRY = "etcd.xmudrii.com/certificate-expiry-date";
/** The Go controller of 2018 wrote it, too, into all that it had filled. */
export const SIGNED_BY = "etcd.xmudrii.com/certificate-signed-by";
const CA_HASH = "etcd.xmudrii.com/ca-bundle-sha256";
/**
 * What a signer Secret is the answer to: the request's annotation, as on the EtcdStorage. In the same write as the new
 * signer, so that none is answered twice; and on the ConfigMap with the bundles' copies, should the Secret be lost.
 */
const answers = (domain: Domain, answered: Requests) =>
	Object.fromEntries(
		Object.entries(answered).map(([what, reason]) => [
			`etcd.xmudrii.com/${what}-${domain}`,
			reason,
		]),
	);

/** What does not change between EtcdStorages. */
export interface Environment {
	namespace: string;
	coreUrls: string[];
	coreCAConfigMap: string;
	coreCertsSecret: string;
	/** Its name tells what the proxies run, see workload.ts. */
	proxyImage: string;
	/** Of the proxies' pods; empty for none. */
	proxyPriorityClass: string;
}

/** Everything issued or kept in one visit, as it is to lie in the cluster. Certificates are PEM. */
export interface Material {
	/** `bundle` is what lies in ConfigMaps: `trusted` without what has expired. */
	signers: Record<Domain, Signers & { bundle: string }>;
	/** By id, as in reconcile.ts; `pair.certificate` is the chain to be presented. */
	leaves: Record<string, { pair: KeyPair; facts: CertificateFacts }>;
	/** The core's CA bundle, of which etcd's own proxies read the file only once. */
	coreCA: string;
}

export interface Data extends KubeObject {
	data?: Record<string, string>;
	immutable?: boolean;
}

/** Enough of SHA-256 to tell two bundles apart. */
export const hash = (text: string) =>
	createHash("sha256").update(text).digest("hex").slice(0, 16);
const base64 = (text: string) => Buffer.from(text).toString("base64");
/** A Secret's value as text; undefined when the key is absent. */
export const secretText = (secret: Data, key: string): string | undefined => {
	const value = secret.data?.[key];
	return value === undefined
		? undefined
		: Buffer.from(value, "base64").toString("utf8");
};

export const names = {
	workload: (name: string) => `etcd-${name}`,
	clientCA: (name: string) => `${name}-ca-cert`,
	serverCert: (name: string) => `${name}-server-cert`,
	signer: (name: string, domain: Domain) => `${name}-${domain}-signer`,
};

/** The EtcdStorages whose object this could be, from nothing but its name: for objects that carry no owner (yet). */
export function possibleOwners(objectName: string): string[] {
	const found = /^etcd-(.+)$/.exec(objectName);
	const other =
		/^(.+)-(?:ca-cert|server-cert|client-signer|serving-signer)$/.exec(
			objectName,
		);
	return [found?.[1], other?.[1]].filter((name) => name !== undefined);
}

/** The frame of an object in the controller's namespace, which goes with its EtcdStorage. */
export function owned(
	storage: EtcdStorage,
	environment: Environment,
	apiVersion: string,
	kind: string,
	name: string,
	annotations?: Record<string, string>,
): KubeObject {
	const { name: owner, uid = "" } = storage.metadata;
	return {
		apiVersion,
		kind,
		metadata: {
			name,
			namespace: environment.namespace,
			labels: {
				"app.kubernetes.io/managed-by": FIELD_MANAGER,
				[FILLED_BY]: owner,
			},
			...(annotations && { annotations }),
			ownerReferences: [
				{
					apiVersion: API_VERSION,
					kind: "EtcdStorage",
					name: owner,
					uid,
					controller: true,
				},
			],
		},
	};
}

const describe = (facts: CertificateFacts) => ({
	[EXPIRY]: formatTime(facts.notAfter),
	[SIGNED_BY]: facts.issuer,
});

/** The Secret of a domain's signers; what its keys mean is told by the type `Signers`. */
export function signerSecret(
	storage: EtcdStorage,
	environment: Environment,
	domain: Domain,
	signers: Material["signers"][Domain],
): Data {
	const { current, next, nextCross, cross, previous, answered } = signers;
	const pair = (name: string, found: KeyPair | undefined) =>
		found && {
			[`${name}.crt`]: found.certificate,
			[`${name}.key`]: found.key,
		};
	const data = {
		...pair("tls", "pair" in current ? current.pair : undefined),
		...(cross && { "cross.crt": cross.pem }),
		...pair("next", "pair" in next ? next.pair : undefined),
		...(nextCross && { "next-cross.crt": nextCross.pem }),
		...(previous && { "previous.crt": previous.facts.pem }),
		...pair("previous", previous?.pair),
		"ca-bundle.crt": signers.bundle,
	};
	const shown = newest(signers);
	return {
		...owned(
			storage,
			environment,
			"v1",
			"Secret",
			names.signer(storage.metadata.name, domain),
			{
				...(shown && describe(shown.facts)),
				...answers(domain, answered),
			},
		),
		data: Object.fromEntries(
			Object.entries(data).map(([key, text]) => [key, base64(text)]),
		),
	};
}

/** The requests that have been answered, from the first of the objects that is there. */
export function readAnswered(
	domain: Domain,
	...objects: (Data | undefined)[]
): Requests {
	const { annotations = {} } =
		objects.find((one) => one !== undefined)?.metadata ?? {};
	const rotate = annotations[`etcd.xmudrii.com/rotate-${domain}`];
	const compromised = annotations[`etcd.xmudrii.com/compromised-${domain}`];
	return {
		...(rotate !== undefined && { rotate }),
		...(compromised !== undefined && { compromised }),
	};
}

/** Bundles: whoever verifies must know the CA before anybody shows a certificate of it. */
export function bundles(
	storage: EtcdStorage,
	environment: Environment,
	targets: TargetStatus[],
	material: Material,
): Data[] {
	const { client, serving } = material.signers;
	const described = (signers: Signers) => {
		const shown = newest(signers);
		return shown ? describe(shown.facts) : {};
	};
	// Of a domain whose signer could not be written from the first there is none.
	const data = {
		...(client.bundle && { "client-ca.crt": client.bundle }),
		// A copy, should the signer's Secret be lost.
		...(serving.bundle && { "serving-ca.crt": serving.bundle }),
	};
	if (Object.keys(data).length === 0) return [];
	return [
		{
			...owned(
				storage,
				environment,
				"v1",
				"ConfigMap",
				names.clientCA(storage.metadata.name),
				{
					...described(client),
					...answers("client", client.answered),
					...answers("serving", serving.answered),
				},
			),
			data,
		},
		...targets
			.filter((target) => target.kind === "ConfigMap" && serving.bundle)
			.map((target) =>
				targetObject(storage, target, described(serving), {
					"serving-ca.crt": serving.bundle,
				}),
			),
	];
}

/** Certificates, the server's and each API server's. */
export function certificates(
	storage: EtcdStorage,
	environment: Environment,
	targets: TargetStatus[],
	material: Material,
): Data[] {
	const tls = ({ pair }: { pair: KeyPair }) => ({
		"tls.crt": base64(pair.certificate),
		"tls.key": base64(pair.key),
	});
	const { server } = material.leaves;
	const ours = server && {
		...owned(
			storage,
			environment,
			"v1",
			"Secret",
			names.serverCert(storage.metadata.name),
			describe(server.facts),
		),
		data: tls(server),
	};
	return [
		...(ours ? [ours] : []),
		...targets.flatMap((target) => {
			const leaf =
				target.kind === "Secret" ? material.leaves[leafId(target)] : undefined;
			return leaf
				? [targetObject(storage, target, describe(leaf.facts), tls(leaf))]
				: [];
		}),
	];
}

export const leafId = (target: TargetStatus) =>
	`client/${target.namespace}/${target.name}`;

/** Only our keys: server-side apply leaves what others keep in the object. */
function targetObject(
	storage: EtcdStorage,
	target: TargetStatus,
	description: Record<string, string>,
	data: Record<string, string>,
): Data {
	return {
		...emptyTarget(target),
		metadata: {
			...emptyTarget(target).metadata,
			annotations: {
				[FILLED_BY]: storage.metadata.name,
				...description,
				// For whoever restarts the API server when its CA file changes: it reads that file only once.
				...(target.kind === "ConfigMap" && {
					[CA_HASH]: hash(data["serving-ca.crt"] ?? ""),
				}),
			},
		},
		data,
	};
}

/**
 * A JSON merge patch (RFC 7386) that takes all of ours out of a target. To apply an object without our fields would
 * not: after a restore from a backup they are the fields of whoever restored them.
 * @param live the target as it is
 */
export function withoutOurs(live: Data & { type?: string }): object {
	// Such a Secret must keep its two keys: https://kubernetes.io/docs/concepts/configuration/secret/#tls-secrets
	const none = live.type === "kubernetes.io/tls" ? "" : null;
	return {
		metadata: {
			annotations: {
				[FILLED_BY]: null,
				[EXPIRY]: null,
				[SIGNED_BY]: null,
				[CA_HASH]: null,
			},
		},
		data:
			live.kind === "ConfigMap"
				? { "serving-ca.crt": null }
				: { "tls.crt": none, "tls.key": none },
	};
}

/** The target with nothing in it. */
export const emptyTarget = (target: TargetStatus): Data => ({
	apiVersion: "v1",
	kind: target.kind,
	metadata: { name: target.name, namespace: target.namespace },
});

/** The EtcdStorage, dead or alive, that the object belongs to. */
export const ownerOf = (object: KubeObject): string | undefined =>
	object.metadata.ownerReferences?.find(
		(owner) =>
			owner.kind === "EtcdStorage" &&
			owner.apiVersion.startsWith("etcd.xmudrii.com/"),
	)?.name;
