/** Many EtcdStorages at once for tests, and the question whether all of them got what they asked for. */
import { expect } from "bun:test";
import { createPrivateKey, X509Certificate } from "node:crypto";
import type { EtcdStorage } from "../etcdstorage.ts";
import type { Data } from "../manifests.ts";
import {
	type Cluster,
	etcdStorage,
	type Json,
	NAMESPACE,
	targetRole,
	until,
} from "./harness.ts";
import type { Observatory } from "./observed.ts";

/** `prefix-0` to `prefix-(count - 1)` */
export const numbered = (prefix: string, count: number): string[] =>
	Array.from({ length: count }, (_, index) => `${prefix}-${index}`);

/** A namespace with a ConfigMap and a Secret for each name, and the right to fill them. */
export const targets = (namespace: string, names: string[]): object[] => [
	{ apiVersion: "v1", kind: "Namespace", metadata: { name: namespace } },
	...targetRole(namespace, names, names),
	...names.flatMap((name) => [
		{
			apiVersion: "v1",
			kind: "ConfigMap",
			metadata: { name, namespace },
			data: { theirs: "kept" },
		},
		{
			apiVersion: "v1",
			kind: "Secret",
			metadata: { name, namespace },
			data: { theirs: "a2VwdA==" },
		},
	]),
];

/** The EtcdStorages that fill them. */
export const storages = (namespace: string, names: string[]): object[] =>
	names.map((name) =>
		etcdStorage(name, namespace, {
			caCertConfigMap: [{ name, namespace }],
			clientCertSecret: [{ name, namespace }],
		}),
	);

async function list<T = Json>(cluster: Cluster, kinds: string): Promise<T[]> {
	return JSON.parse(await cluster.kubectl(["get", kinds, "-A", "-o", "json"]))
		.items;
}

/** Waits until everything that can be there without a kubelet is there. */
export async function settled(
	cluster: Cluster,
	names: string[],
	timeoutMs = 30_000,
): Promise<void> {
	await until(
		async () => {
			const found = new Map(
				(await list<EtcdStorage>(cluster, "etcdstorages")).map((one) => [
					one.metadata.name,
					one,
				]),
			);
			return names.every((name) => {
				const { metadata, status } = found.get(name) ?? {};
				const says = (type: string) =>
					status?.conditions?.find((one) => one.type === type);
				return (
					status?.observedGeneration === metadata?.generation &&
					says("CertificatesReady")?.status === "True" &&
					says("Deployed")?.reason === "DeploymentNotAvailable"
				);
			});
		},
		`${names[0]} and ${names.length - 1} others are complete`,
		timeoutMs,
	);
}

/** Every object of these EtcdStorages by `Kind namespace/name`. */
export async function objectsOf(
	cluster: Cluster,
	namespace: string,
	names: string[],
): Promise<Map<string, Data>> {
	const all = await list<Data>(
		cluster,
		"secrets,configmaps,services,deployments,poddisruptionbudgets",
	);
	const wanted = new Set(
		names.flatMap((name) => [
			`Secret ${NAMESPACE}/${name}-client-signer`,
			`Secret ${NAMESPACE}/${name}-serving-signer`,
			`Secret ${NAMESPACE}/${name}-server-cert`,
			`ConfigMap ${NAMESPACE}/${name}-ca-cert`,
			`Service ${NAMESPACE}/etcd-${name}`,
			`Deployment ${NAMESPACE}/etcd-${name}`,
			`PodDisruptionBudget ${NAMESPACE}/etcd-${name}`,
			`ConfigMap ${namespace}/${name}`,
			`Secret ${namespace}/${name}`,
		]),
	);
	return new Map(
		all
			.map((one): [string, Data] => [
				`${one.kind} ${one.metadata.namespace}/${one.metadata.name}`,
				one,
			])
			.filter(([id]) => wanted.has(id)),
	);
}

/**
 * Expects of each EtcdStorage: every object is there, what others keep in targets is kept, bundles hold one CA each
 * (so that no signer was made twice), both leaves are signed by it, and keys belong to certificates. By means of
 * node:crypto, independent of the code under test.
 * @param cas how many CAs a bundle holds
 */
export async function expectChains(
	cluster: Cluster,
	namespace: string,
	names: string[],
	cas = 1,
): Promise<void> {
	const objects = await objectsOf(cluster, namespace, names);
	expect(objects.size).toBe(names.length * 9);
	const now = new Date();
	for (const name of names) {
		const text = (id: string, key: string) => {
			const value = objects.get(id)?.data?.[key] ?? "";
			return id.startsWith("Secret")
				? Buffer.from(value, "base64").toString()
				: value;
		};
		const chains = [
			{
				signer: `Secret ${NAMESPACE}/${name}-client-signer`,
				bundle: text(`ConfigMap ${NAMESPACE}/${name}-ca-cert`, "client-ca.crt"),
				leaf: `Secret ${namespace}/${name}`,
			},
			{
				signer: `Secret ${NAMESPACE}/${name}-serving-signer`,
				bundle: text(`ConfigMap ${namespace}/${name}`, "serving-ca.crt"),
				leaf: `Secret ${NAMESPACE}/${name}-server-cert`,
			},
		];
		for (const { signer, bundle, leaf } of chains) {
			const trusted = bundle
				.split(/(?<=-----END CERTIFICATE-----\n)/)
				.filter((pem) => pem !== "")
				.map((pem) => new X509Certificate(pem));
			expect([leaf, trusted.length]).toEqual([leaf, cas]);
			const ca = new X509Certificate(text(signer, "tls.crt"));
			expect([
				signer,
				trusted.some((one) => one.fingerprint256 === ca.fingerprint256),
			]).toEqual([signer, true]);
			const certificate = new X509Certificate(text(leaf, "tls.crt"));
			expect([
				leaf,
				certificate.checkIssued(ca),
				certificate.verify(ca.publicKey),
			]).toEqual([leaf, true, true]);
			for (const [id, one] of [
				[signer, ca],
				[leaf, certificate],
			] as const) {
				const key = createPrivateKey(text(id, "tls.key"));
				expect([id, one.checkPrivateKey(key)]).toEqual([id, true]);
				expect([id, one.validFromDate <= now, one.validToDate > now]).toEqual([
					id,
					true,
					true,
				]);
			}
		}
		expect(text(`Secret ${namespace}/${name}`, "theirs")).toBe("kept");
		expect(text(`ConfigMap ${namespace}/${name}`, "theirs")).toBe("kept");
	}
}

/** Expects that no private key of the cluster and no token is in what controllers said, or in objects that are no Secrets. */
export async function expectNoSecrets(
	cluster: Cluster,
	{ said, identities }: Observatory,
): Promise<void> {
	const secrets = new Set(identities.map(({ token }) => token));
	for (const { data } of await list<Data>(cluster, "secrets")) {
		const base64 = data?.["tls.key"];
		if (!base64) continue;
		secrets.add(base64);
		const pem = Buffer.from(base64, "base64").toString();
		// Bytes 39 to 66 of PKCS #8 are the number itself: algorithm before it, public key after it.
		const [, first = "", second = ""] = pem.split("\n");
		secrets.add(first.slice(52)).add(second.slice(0, 24));
	}
	expect(secrets.size).toBeGreaterThan(50);
	const objects = await Promise.all(
		["events", "etcdstorages", "configmaps", "services", "deployments"].map(
			(kinds) => cluster.kubectl(["get", kinds, "-A", "-o", "json"]),
		),
	);
	const text = [...said, ...objects].join("\n");
	expect(said.join().length).toBeGreaterThan(1_000);
	expect(text).not.toContain("PRIVATE KEY");
	for (const secret of secrets) expect(text.includes(secret)).toBeFalse();
}
