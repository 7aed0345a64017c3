/** What tests ask of the API server again and again, through the project's own client: kubectl takes 0.1 s of CPU a look. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EtcdStorage } from "../etcdstorage.ts";
import { type Kind, Kube, kinds, loadKubeConfig } from "../kube.ts";
import {
	apiServerNamespace,
	type Cluster,
	etcdStorage,
	eventsOf,
	type Json,
	NAMESPACE,
	until,
} from "./harness.ts";

export interface Client {
	/** One object, by default of the controller's namespace; undefined when it is not there. */
	get(kind: Kind, name: string, namespace?: string): Promise<Json>;
	/**
	 * Waits until a condition, written as "True Reason: message", matches and tells of the newest generation.
	 * @returns it
	 * @throws Error with the condition as it was at last
	 */
	condition(
		name: string,
		type: string,
		pattern: RegExp,
		timeoutMs?: number,
	): Promise<string>;
	/** Waits until there are so many events like this about an EtcdStorage, and returns all of them. */
	events(name: string, pattern: RegExp, count: number): Promise<string[]>;
	/** What the controller said it issued for an EtcdStorage because of an action: `server (not there)` and the like. */
	issuedBy(name: string, action: () => Promise<unknown>): Promise<string>;
	/** A namespace `k8s-<name>` with both targets and an EtcdStorage for it; resolves when all certificates are delivered. */
	tenant(name: string, spec?: Partial<EtcdStorage["spec"]>): Promise<void>;
}

export function client(cluster: Cluster): Client {
	const kube = new Kube(loadKubeConfig(cluster.kubeconfig), {
		fieldManager: "test",
	});
	const get: Client["get"] = (kind, name, namespace = NAMESPACE) =>
		kube.get({
			apiVersion: kinds[kind].apiVersion,
			kind,
			name,
			...(kind !== "EtcdStorage" && { namespace }),
		});
	const condition: Client["condition"] = async (
		name,
		type,
		pattern,
		timeoutMs = 20_000,
	) => {
		let last = "";
		try {
			return await until(
				async () => {
					const storage: EtcdStorage | undefined = await get(
						"EtcdStorage",
						name,
					);
					const found = storage?.status?.conditions?.find(
						(one) => one.type === type,
					);
					last = found
						? `${found.status} ${found.reason}: ${found.message}`
						: "";
					const current =
						found?.observedGeneration === storage?.metadata.generation;
					return current && pattern.test(last) ? last : undefined;
				},
				`${type} of ${name} matches ${pattern}`,
				timeoutMs,
			);
		} catch (error) {
			throw new Error(`${(error as Error).message}; it is: ${last}`, {
				cause: error,
			});
		}
	};
	const issued = async (name: string) => {
		const selector = `reason=CertificatesIssued,involvedObject.name=${name}`;
		const args = ["-n", "default", "get", "events", "-o", "json"];
		const text = await cluster.kubectl([
			...args,
			`--field-selector=${selector}`,
		]);
		return new Map<string, string>(
			(JSON.parse(text).items as Json[]).map(({ metadata, message }) => [
				metadata.uid,
				message,
			]),
		);
	};
	return {
		get,
		condition,
		events: (name, pattern, count) =>
			until(async () => {
				const all = await eventsOf(cluster, name);
				const found = all.filter((event) => pattern.test(event));
				return found.length >= count && found;
			}, `there are ${count} events ${pattern} of ${name}`),
		async issuedBy(name, action) {
			const before = await issued(name);
			await action();
			const news = await until(async () => {
				const now = await issued(name);
				for (const uid of before.keys()) now.delete(uid);
				return now.size > 0 && now;
			}, `certificates of ${name} are issued`);
			return [...news.values()].join("; ");
		},
		async tenant(name, spec) {
			const namespace = `k8s-${name}`;
			await cluster.apply(...apiServerNamespace(namespace));
			// The API server takes a moment to know a new right.
			await cluster.apply(etcdStorage(name, namespace, spec));
			await condition(name, "CertificatesReady", /^True /);
		},
	};
}

/** A Secret's value as text; "" when the key is absent. */
export const secretText = (secret: Json, key: string) =>
	Buffer.from(secret?.data?.[key] ?? "", "base64").toString();

/** Values as a Secret carries them. */
export const base64 = (text: string) => Buffer.from(text).toString("base64");

/** All that two signers have handed out, PEM. */
export type Material = Awaited<ReturnType<typeof material>>;
export async function material(api: Client, name: string) {
	const [clientCA, servingCA, server, leaf] = await Promise.all([
		api.get("ConfigMap", `${name}-ca-cert`),
		api.get("ConfigMap", "etcd-serving-ca", `k8s-${name}`),
		api.get("Secret", `${name}-server-cert`),
		api.get("Secret", "etcd-client-cert", `k8s-${name}`),
	]);
	return {
		clientCA: clientCA?.data?.["client-ca.crt"] as string,
		servingCA: servingCA?.data?.["serving-ca.crt"] as string,
		server: secretText(server, "tls.crt"),
		serverKey: secretText(server, "tls.key"),
		client: secretText(leaf, "tls.crt"),
		clientKey: secretText(leaf, "tls.key"),
	};
}

/** `openssl verify` of a chain as a TLS peer does it; "OK" or what is wrong. */
export const opensslVerify = (
	purpose: "sslserver" | "sslclient",
	chain: string,
	bundle: string,
	...more: string[]
): string => lenientVerify(purpose, chain, bundle, "-x509_strict", ...more);

/** Without what RFC 5280 demands of certificates beyond that: those of 2018 have no key identifiers. */
export function lenientVerify(
	purpose: "sslserver" | "sslclient",
	chain: string,
	bundle: string,
	...more: string[]
): string {
	const dir = mkdtempSync(join(tmpdir(), "controller-test-"));
	try {
		writeFileSync(join(dir, "chain"), chain);
		writeFileSync(join(dir, "bundle"), bundle);
		const args = ["-purpose", purpose, ...more];
		const files = ["-CAfile", "bundle", "-untrusted", "chain", "chain"];
		const run = Bun.spawnSync(["openssl", "verify", ...args, ...files], {
			cwd: dir,
		});
		return run.success ? "OK" : `${run.stdout}${run.stderr}`;
	} finally {
		rmSync(dir, { recursive: true });
	}
}
