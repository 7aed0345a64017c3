/** What goes with an EtcdStorage and what stays, against a real API server with its garbage collector. */

import { describe, expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { Cache } from "../cache.ts";
import { finalize } from "../deletion.ts";
import type { EtcdStorage } from "../etcdstorage.ts";
import { Kube, type KubeObject, loadKubeConfig } from "../kube.ts";
import type { Context } from "../observe.ts";
import { TargetReader } from "../targets.ts";
import { Writer } from "../writer.ts";
import { base64, material, secretText } from "./client.ts";
import {
	apiServerNamespace,
	etcdStorage,
	eventsOf,
	type Json,
	NAMESPACE,
	startController,
	until,
} from "./harness.ts";
import { stage } from "./stage.ts";

const on = stage((cluster) =>
	// Now: the garbage collector looks for new kinds, such as EtcdStorage, every 30 s only.
	cluster.startControllerManager(),
);

const kubectl = (...args: string[]) => on.cluster.kubectl(args);
const kube = () =>
	new Kube(loadKubeConfig(on.cluster.kubeconfig), { fieldManager: "test" });
/** Deletes, and waits until it has gone: deletion never hangs. */
const remove = (name: string) =>
	kubectl("delete", "etcdstorage", name, "--timeout=10s");
/** What is left in the controller's namespace of an EtcdStorage. */
const leftovers = async (name: string) =>
	(
		await kubectl(
			...["-n", NAMESPACE, "get", "-o", "name"],
			"deployments,services,poddisruptionbudgets,configmaps,secrets",
			...["-l", `etcd.xmudrii.com/etcdstorage=${name}`],
		)
	)
		.split("\n")
		.filter((line) => line !== "");
const collected = (name: string) =>
	until(
		async () => (await leftovers(name)).length === 0,
		`the objects of ${name} are gone`,
	);
const targets = async (namespace: string) => ({
	configMap: await on.api.get("ConfigMap", "etcd-serving-ca", namespace),
	secret: await on.api.get("Secret", "etcd-client-cert", namespace),
});
const ourAnnotations = (object: Json) =>
	Object.keys(object.metadata.annotations ?? {}).filter((key) =>
		key.startsWith("etcd.xmudrii.com/"),
	);
const warnings = async (name: string) =>
	(await eventsOf(on.cluster, name)).filter((one) => one.startsWith("Warning"));
const patchTarget = (name: string, kind: string, patch: object) =>
	kubectl(
		...["-n", `k8s-${name}`, "patch", kind],
		kind === "secret" ? "etcd-client-cert" : "etcd-serving-ca",
		...["--type=merge", "-p", JSON.stringify(patch)],
	);

describe.concurrent("a deleted EtcdStorage", () => {
	test("takes all of its objects with it, its pods included, and tells what stays in the core etcd", async () => {
		await on.api.tenant("gone");
		await until(async () => {
			const pods = await kubectl(
				...["-n", NAMESPACE, "get", "pods", "-o", "name"],
				...["-l", "apiserver=gone"],
			);
			return pods.trim().split("\n").length === 3;
		}, "Pod Security has admitted three pods");
		expect(await leftovers("gone")).toHaveLength(7);
		await remove("gone");
		await collected("gone");
		await until(
			async () =>
				(await kubectl("-n", NAMESPACE, "get", "pods", "-l", "apiserver=gone"))
					.length === 0,
			"the pods are gone",
		);
		const events = await eventsOf(on.cluster, "gone");
		const retained = events.filter((one) => one.includes("DataRetained"));
		expect(retained).toEqual([
			"Normal DataRetained: the keys under /gone/ stay in the core etcd; once nobody needs them: etcdctl del --prefix /gone/",
		]);
		expect(await warnings("gone")).toEqual([]);
		const { configMap, secret } = await targets("k8s-gone");
		expect([configMap.data, secret.data]).toEqual([undefined, undefined]);
	}, 60_000);

	test("leaves in its targets what others have there, and nothing else", async () => {
		await on.api.tenant("tidy");
		const theirs = (data: string) => ({
			metadata: { annotations: { theirs: "yes" }, labels: { theirs: "yes" } },
			data: { theirs: data },
		});
		await patchTarget("tidy", "configmap", theirs("data"));
		await patchTarget("tidy", "secret", theirs(base64("data")));
		await remove("tidy");
		const { configMap, secret } = await targets("k8s-tidy");
		expect(configMap.data).toEqual({ theirs: "data" });
		expect(secret.data).toEqual({ theirs: base64("data") });
		for (const object of [configMap, secret]) {
			expect(object.metadata.annotations).toHaveProperty("theirs");
			expect(object.metadata.labels).toEqual({ theirs: "yes" });
			expect(ourAnnotations(object)).toEqual([]);
		}
	}, 40_000);

	test("leaves a kubernetes.io/tls Secret the two empty keys that it must have", async () => {
		const objects = apiServerNamespace("k8s-tls").map((object) =>
			(object as Json).kind === "Secret"
				? {
						...object,
						type: "kubernetes.io/tls",
						data: { "tls.crt": "", "tls.key": "" },
					}
				: object,
		);
		await on.cluster.apply(...objects, etcdStorage("tls", "k8s-tls"));
		await on.api.condition("tls", "CertificatesReady", /^True /);
		await remove("tls");
		const { secret } = await targets("k8s-tls");
		expect(secret.data).toEqual({ "tls.crt": "", "tls.key": "" });
		expect(ourAnnotations(secret)).toEqual([]);
		expect(await warnings("tls")).toEqual([]);
	}, 40_000);

	test("cleans targets that were restored from a backup, too", async () => {
		await on.api.tenant("restored");
		const before = await targets("k8s-restored");
		await kubectl("-n", "k8s-restored", "delete", "configmap,secret", "--all");
		for (const object of Object.values(before)) {
			const { name, namespace, annotations } = object.metadata;
			await on.cluster.kubectl(
				["create", "-f", "-"],
				JSON.stringify({
					...object,
					metadata: { name, namespace, annotations },
				}),
			);
		}
		await remove("restored");
		const { configMap, secret } = await targets("k8s-restored");
		for (const object of [configMap, secret]) {
			expect(object.data).toBeUndefined();
			expect(ourAnnotations(object)).toEqual([]);
		}
	}, 40_000);

	test.each([
		[
			"immutable",
			() => patchTarget("immutable", "secret", { immutable: true }),
			/^Warning TargetCleanupFailed: what was written into Secret k8s-immutable\/etcd-client-cert could not be taken back; where it still is, remove it by hand: .*immutable/,
		],
		[
			"forbidden",
			() =>
				kubectl(
					...["-n", "k8s-forbidden", "patch", "role", "etcdproxy-targets"],
					...["--type=json", "-p"],
					'[{"op":"remove","path":"/rules/1"}]',
				),
			/^Warning TargetCleanupFailed: what was written into Secret k8s-forbidden\/etcd-client-cert could not be taken back; where it still is, remove it by hand: .*[Ff]orbidden/,
		],
	] as [string, () => Promise<unknown>, RegExp][])(
		"whose target is %s goes, with an event that tells what stays",
		async (name, spoil, warning) => {
			await on.api.tenant(name);
			await spoil();
			if (name === "forbidden")
				await until(async () => {
					const answer = await kubectl(
						...["-n", "k8s-forbidden", "auth", "can-i", "get"],
						...["secret/etcd-client-cert", "--as"],
						`system:serviceaccount:${NAMESPACE}:etcdproxy-controller-sa`,
					).catch((error: Error) => error.message);
					return !answer.startsWith("yes");
				}, "the API server knows");
			await remove(name);
			await collected(name);
			// The controller may have come by when the target was spoilt, and have said so.
			const told = (await warnings(name)).filter(
				(one) => !one.startsWith("Warning CertificatesDeployFailure:"),
			);
			expect(told).toEqual([expect.stringMatching(warning)]);
			const { configMap, secret } = await targets(`k8s-${name}`);
			expect(configMap.data).toBeUndefined();
			expect(secretText(secret, "tls.key")).toStartWith("-----BEGIN");
		},
		60_000,
	);

	test("whose targets are gone goes without a word about them", async () => {
		await on.api.tenant("lost");
		await kubectl("-n", "k8s-lost", "delete", "configmap,secret", "--all");
		await remove("lost");
		expect(await warnings("lost")).toEqual([]);
	}, 40_000);

	test("whose targets' namespace is gone goes", async () => {
		await on.api.tenant("homeless");
		await kubectl("delete", "namespace", "k8s-homeless", "--timeout=30s");
		await remove("homeless");
		await collected("homeless");
		// The right to look went with the namespace: that it is gone cannot be known.
		const told = await warnings("homeless");
		expect(told).toHaveLength(2);
		for (const one of told) expect(one).toContain("where it still is");
	}, 60_000);

	test("leaves its targets to the next one that names them", async () => {
		await on.api.tenant("heir");
		await on.cluster.apply(etcdStorage("next", "k8s-heir"));
		await on.api.condition("next", "CertificatesReady", /^False TargetTaken: /);
		await remove("heir");
		await on.api.condition("next", "CertificatesReady", /^True /, 10_000);
		const { secret } = await targets("k8s-heir");
		expect(
			new X509Certificate(secretText(secret, "tls.crt")).subject,
		).toContain("CN=next");
	}, 40_000);

	test("can leave its objects as orphans, which the next one of its name takes over", async () => {
		await on.api.tenant("orphans");
		const before = await material(on.api, "orphans");
		await kubectl("delete", "etcdstorage", "orphans", "--cascade=orphan");
		const orphan = await on.api.get("Secret", "orphans-client-signer");
		expect(orphan.metadata.ownerReferences).toBeUndefined();
		await on.cluster.apply(etcdStorage("orphans", "k8s-orphans"));
		await on.api.condition("orphans", "CertificatesReady", /^True /);
		const { clientCA, servingCA, server } = await material(on.api, "orphans");
		expect(before).toMatchObject({ clientCA, servingCA, server });
		const storage = await on.api.get("EtcdStorage", "orphans");
		const signer = await on.api.get("Secret", "orphans-client-signer");
		expect(signer.metadata.ownerReferences[0].uid).toBe(storage.metadata.uid);
		expect(await warnings("orphans")).toEqual([]);
	}, 40_000);

	test("can be created again at once, and gets new signers", async () => {
		await on.api.tenant("phoenix");
		const before = await on.api.get("Secret", "phoenix-client-signer");
		await remove("phoenix");
		await on.cluster.apply(etcdStorage("phoenix", "k8s-phoenix"));
		await on.api.condition("phoenix", "CertificatesReady", /^True /);
		const storage = await on.api.get("EtcdStorage", "phoenix");
		const signer = await on.api.get("Secret", "phoenix-client-signer");
		expect(signer.metadata.ownerReferences[0].uid).toBe(storage.metadata.uid);
		expect(signer.data["tls.key"]).not.toBe(before.data["tls.key"]);
	}, 40_000);
});

describe("without the controller", () => {
	test("what is orphaned gets no owner back from a visit that is under way", async () => {
		await on.api.tenant("torn");
		await on.controller.stop();
		const storage: EtcdStorage = await on.api.get("EtcdStorage", "torn");
		const service = () => on.api.get("Service", "etcd-torn");
		const { ownerReferences } = (await service()).metadata;
		await kubectl(
			...["delete", "etcdstorage", "torn", "--cascade=orphan", "--wait=false"],
		);
		const orphan = await until(async () => {
			const found = await service();
			return found.metadata.ownerReferences === undefined && found;
		}, "the Service is an orphan");
		const { kind, apiVersion, metadata, spec } = orphan;
		const { name, namespace, labels } = metadata;
		const { selector } = spec;
		const storages = new Cache<EtcdStorage>();
		const Service = new Cache<KubeObject>();
		Service.replace([orphan]);
		const writer = new Writer(
			storage,
			{ kube: kube(), storages, owned: { Service } } as unknown as Context,
			{ problems: [], written: [] },
		);
		const deleted = await on.api.get("EtcdStorage", "torn");
		const other = structuredClone(storage);
		other.metadata.uid = "another";
		for (const now of [[deleted], [], [other]]) {
			storages.replace(now);
			const desired = {
				...{ apiVersion, kind, spec: { selector } },
				metadata: { name, namespace, labels, ownerReferences },
			} as KubeObject;
			await expect(writer.ensure("Deployed", desired)).rejects.toThrow(
				`apply Service ${NAMESPACE}/etcd-torn: Conflict: EtcdStorage torn was deleted meanwhile`,
			);
		}
		expect(await service()).toEqual(orphan);
		on.controller = await startController(on.cluster);
		await until(
			async () => (await on.api.get("EtcdStorage", "torn")) === undefined,
			"it is gone",
		);
	}, 60_000);

	test("an EtcdStorage that is finalized is forgotten before a watch tells, unless somebody else holds it", async () => {
		await on.controller.stop();
		for (const [name, others] of [
			["forgotten", []],
			["held", ["example.com/theirs"]],
		] as const) {
			const made = etcdStorage(name, "k8s-none") as Json;
			made.metadata.finalizers = ["etcd.xmudrii.com/targets", ...others];
			await on.cluster.apply(made);
			await kubectl("delete", "etcdstorage", name, "--wait=false");
			const storages = new Cache<EtcdStorage>();
			storages.replace([await on.api.get("EtcdStorage", name)]);
			const [storage] = storages.values();
			const told: string[] = [];
			await finalize(
				storage as EtcdStorage,
				{
					...{ kube: kube(), storages, targets: new TargetReader(kube()) },
					now: () => Date.now(),
					event: async (_: unknown, { reason }: Json) => void told.push(reason),
				} as unknown as Context,
			);
			expect(told).toEqual(["DataRetained"]);
			expect(storages.get(name)?.metadata.finalizers).toEqual(
				others.length > 0 ? [...others] : undefined,
			);
		}
		await kubectl(
			...["patch", "etcdstorage", "held", "--type=merge", "-p"],
			'{"metadata":{"finalizers":null}}',
		);
		on.controller = await startController(on.cluster);
	}, 60_000);

	test("an EtcdStorage that is deleted waits, and goes once the controller is back", async () => {
		await on.api.tenant("waiting");
		await on.controller.stop();
		await kubectl("delete", "etcdstorage", "waiting", "--wait=false");
		const storage = await on.api.get("EtcdStorage", "waiting");
		expect(storage.metadata.finalizers).toEqual(["etcd.xmudrii.com/targets"]);
		on.controller = await startController(on.cluster);
		await until(
			async () => (await on.api.get("EtcdStorage", "waiting")) === undefined,
			"it is gone",
		);
		const { configMap, secret } = await targets("k8s-waiting");
		expect([configMap.data, secret.data]).toEqual([undefined, undefined]);
	}, 60_000);
});
