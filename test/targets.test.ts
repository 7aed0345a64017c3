/** The objects in foreign namespaces, as they come: missing, forbidden, immutable, taken, edited. Against a real API server. */

import { describe, expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import type { EtcdStorage } from "../etcdstorage.ts";
import { base64, material, opensslVerify, secretText } from "./client.ts";
import {
	apiServerNamespace,
	etcdStorage,
	eventsOf,
	type Json,
	NAMESPACE,
	targetRole,
	until,
} from "./harness.ts";
import { stage } from "./stage.ts";

const on = stage();

/** "In seconds": a broken target is looked at every 5 s. */
const HEALED = 10_000;
const kubectl = (...args: string[]) => on.cluster.kubectl(args);
const broken = (name: string, reason: string) =>
	on.api.condition(
		name,
		"CertificatesReady",
		new RegExp(`^False ${reason}: `),
		HEALED,
	);
const healed = (name: string) =>
	on.api.condition(name, "CertificatesReady", /^True /, HEALED);
const change = (name: string, spec: Partial<EtcdStorage["spec"]>) =>
	kubectl(
		...["patch", "etcdstorage", name, "--type=merge", "-p"],
		JSON.stringify({ spec }),
	);
/** The kubectl command that a message ends with. */
const advice = (message: string) =>
	(/kubectl ([^,;|()]+)/.exec(message)?.[1] ?? "").trim().split(" ");
/** The objects of apiServerNamespace, some of them changed or left out. */
const prepared = (
	namespace: string,
	edit: (object: Json) => object | undefined,
): object[] =>
	apiServerNamespace(namespace)
		.map((object) => edit(structuredClone(object)))
		.filter((object) => object !== undefined);
const without = (namespace: string, ...kinds: string[]) =>
	prepared(namespace, (object) =>
		kinds.includes(object.kind) ? undefined : object,
	);
const targets = async (namespace: string) => ({
	configMap: await on.api.get("ConfigMap", "etcd-serving-ca", namespace),
	secret: await on.api.get("Secret", "etcd-client-cert", namespace),
});
const ours = [
	"etcdstorage",
	"certificate-expiry-date",
	"certificate-signed-by",
	"ca-bundle-sha256",
].map((name) => `etcd.xmudrii.com/${name}`);
const annotationsOfOurs = (object: Json) =>
	Object.keys(object.metadata.annotations ?? {}).filter((key) =>
		ours.includes(key),
	);

describe.concurrent("a target", () => {
	test.each([
		["ConfigMap", "etcd-serving-ca", "configmap"],
		["Secret", "etcd-client-cert", "secret generic"],
	])(
		"%s that is missing is named with the command that creates it, the other is filled, and both are once it is there",
		async (kind, object, command) => {
			const name = `missing-${kind.toLowerCase()}`;
			const namespace = `k8s-${name}`;
			await on.cluster.apply(
				...without(namespace, kind),
				etcdStorage(name, namespace),
			);
			const message = await broken(name, "TargetMissing");
			expect(message).toContain(`${kind} ${namespace}/${object} is not there`);
			expect(message).toContain(
				`kubectl -n ${namespace} create ${command} ${object}`,
			);
			expect(await on.api.condition(name, "Ready", /./)).toContain(message);
			const { configMap, secret } = await targets(namespace);
			expect(Object.keys((configMap ?? secret).data)).toEqual(
				configMap ? ["serving-ca.crt"] : ["tls.crt", "tls.key"],
			);
			const failure = /^Warning CertificatesDeployFailure: /;
			expect(await on.api.events(name, failure, 1)).toEqual([
				message.replace(
					"False TargetMissing",
					"Warning CertificatesDeployFailure",
				),
			]);

			await kubectl(...advice(message));
			await healed(name);
			const now = await material(on.api, name);
			expect(opensslVerify("sslserver", now.server, now.servingCA)).toBe("OK");
			expect(opensslVerify("sslclient", now.client, now.clientCA)).toBe("OK");
		},
		40_000,
	);

	test("in a namespace that is missing is filled once it is there", async () => {
		await on.cluster.apply(etcdStorage("homeless", "k8s-homeless"));
		const message = await broken("homeless", "TargetForbidden");
		expect(message).toContain("ConfigMap k8s-homeless/etcd-serving-ca");
		expect(message).toContain("Secret k8s-homeless/etcd-client-cert");
		expect(message).toContain("kubectl create namespace k8s-homeless");
		await on.cluster.apply(...apiServerNamespace("k8s-homeless"));
		await healed("homeless");
	}, 40_000);

	test("without permission is named with what to grant, step by step", async () => {
		const namespace = "k8s-forbidden";
		await on.cluster.apply(
			...without(namespace, "Role", "RoleBinding"),
			etcdStorage("forbidden", namespace),
		);
		const message = await broken("forbidden", "TargetForbidden");
		expect(message).toContain(`Secret ${namespace}/etcd-client-cert`);
		expect(message).toContain("grant get, patch");
		expect(message).toContain("etcdproxy-controller-sa");
		expect(message).toContain(
			`kubectl -n ${namespace} create role etcdproxy-etcd-serving-ca --verb=get,patch --resource=configmaps --resource-name=etcd-serving-ca`,
		);

		const readOnly = targetRole(namespace).map((object) => {
			const role = structuredClone(object) as Json;
			for (const rule of role.rules ?? []) rule.verbs = ["get"];
			return role;
		});
		await on.cluster.apply(...readOnly);
		await until(
			async () =>
				(
					await on.api.condition("forbidden", "CertificatesReady", /^False/)
				).includes("cannot patch resource"),
			"it may read, but not write",
		);
		await broken("forbidden", "TargetForbidden");
		await on.cluster.apply(...targetRole(namespace));
		await healed("forbidden");
	}, 60_000);

	test("that is immutable is named with the command that removes it", async () => {
		const namespace = "k8s-immutable";
		await on.cluster.apply(
			...prepared(namespace, (object) =>
				["ConfigMap", "Secret"].includes(object.kind)
					? { ...object, immutable: true }
					: object,
			),
			etcdStorage("immutable", namespace),
		);
		const message = await broken("immutable", "TargetImmutable");
		for (const object of [
			"configmap etcd-serving-ca",
			"secret etcd-client-cert",
		])
			expect(message).toContain(`kubectl -n ${namespace} delete ${object}`);
		// It is tried again every 5 s; a certificate that was never delivered was not issued, and no event tells of it.
		const before = await eventsOf(on.cluster, "immutable");
		expect(before.join()).not.toContain("client/k8s-immutable");
		const { certificates } = (await on.api.get("EtcdStorage", "immutable"))
			.status;
		expect((certificates as Json[]).map((one) => one.name)).toEqual([
			"client-signer",
			"serving-signer",
			"server",
		]);
		await kubectl(...advice(message));
		await kubectl("-n", namespace, "delete", "secret", "etcd-client-cert");
		await on.cluster.apply(...apiServerNamespace(namespace));
		await healed("immutable");
	}, 40_000);

	test("that the API server refuses to fill is named with its reason", async () => {
		const namespace = "k8s-refused";
		await on.cluster.apply(
			...prepared(namespace, (object) =>
				object.kind === "ConfigMap"
					? { ...object, binaryData: { "serving-ca.crt": base64("taken") } }
					: object,
			),
			etcdStorage("refused", namespace),
		);
		const message = await broken("refused", "TargetRefused");
		expect(message).toContain(
			`ConfigMap ${namespace}/etcd-serving-ca cannot be filled: `,
		);
		expect(message).toContain("serving-ca.crt");
	}, 20_000);

	test("that another EtcdStorage fills is left to it, until that one lets go", async () => {
		await on.api.tenant("first");
		const before = await targets("k8s-first");
		await on.cluster.apply(etcdStorage("second", "k8s-first"));
		const message = await broken("second", "TargetTaken");
		expect(message).toContain(
			"ConfigMap k8s-first/etcd-serving-ca is filled by EtcdStorage first",
		);
		expect(message).toContain("Secret k8s-first/etcd-client-cert");
		expect(await targets("k8s-first")).toEqual(before);
		await healed("first");

		await change("first", { caCertConfigMap: [], clientCertSecret: [] });
		await healed("second");
		const { secret } = await targets("k8s-first");
		expect(
			new X509Certificate(secretText(secret, "tls.crt")).subject,
		).toContain("CN=second");
		const first: EtcdStorage = await on.api.get("EtcdStorage", "first");
		expect(first.status?.targets).toBeUndefined();
	}, 40_000);

	test("that two name at the same moment is filled by one of them", async () => {
		await on.cluster.apply(
			...apiServerNamespace("k8s-race"),
			etcdStorage("race-a", "k8s-race"),
			etcdStorage("race-b", "k8s-race"),
		);
		const { secret, configMap } = await until(async () => {
			const found = await targets("k8s-race");
			return found.secret?.data && found.configMap?.data && found;
		}, "both are filled");
		for (const object of [secret, configMap]) {
			const winner =
				object.metadata.annotations["etcd.xmudrii.com/etcdstorage"];
			const loser = winner === "race-a" ? "race-b" : "race-a";
			expect(await broken(loser, "TargetTaken")).toContain(
				`${object.kind} k8s-race/${object.metadata.name} is filled by EtcdStorage ${winner}`,
			);
			const pem =
				object.data["serving-ca.crt"] ?? secretText(object, "tls.crt");
			expect(new X509Certificate(pem).subject).toContain(winner);
		}
		const again = await targets("k8s-race");
		expect(again).toEqual({ secret, configMap });
	}, 40_000);

	test("that is the controller's own object is not overwritten", async () => {
		await on.api.tenant("victim");
		const mine: [string, string][] = [
			["ConfigMap", "victim-ca-cert"],
			["ConfigMap", "etcd-coreserving-ca"],
			["Secret", "victim-server-cert"],
			["Secret", "victim-client-signer"],
			["Secret", "etcd-coreserving-cert"],
			["Secret", "greedy-serving-signer"],
		];
		const look = () =>
			Promise.all(
				mine
					.filter(([, name]) => !name.startsWith("greedy"))
					.map(([kind, name]) => on.api.get(kind as "Secret", name)),
			);
		const before = await look();
		const named = (wanted: string) =>
			mine
				.filter(([kind]) => kind === wanted)
				.map(([, name]) => ({ name, namespace: NAMESPACE }));
		await on.cluster.apply(
			etcdStorage("greedy", NAMESPACE, {
				caCertConfigMap: named("ConfigMap"),
				clientCertSecret: named("Secret"),
			}),
		);
		const message = await broken("greedy", "TargetIsOwn");
		for (const [kind, name] of mine)
			expect(message).toContain(
				`${kind} ${NAMESPACE}/${name} belongs to etcdproxy-controller itself`,
			);
		expect(await look()).toEqual(before);
		await healed("victim");
	}, 40_000);

	test("keeps what others have in it, and a kubernetes.io/tls Secret its type", async () => {
		const namespace = "k8s-foreign";
		const metadata = (object: Json) => ({
			...object.metadata,
			labels: { theirs: "label" },
			annotations: { theirs: "annotation" },
		});
		await on.cluster.apply(
			...prepared(namespace, (object) => {
				if (object.kind === "ConfigMap")
					return {
						...object,
						metadata: metadata(object),
						data: { theirs: "data" },
					};
				if (object.kind === "Secret")
					return {
						...object,
						metadata: metadata(object),
						type: "kubernetes.io/tls",
						data: { "tls.crt": "", "tls.key": "", theirs: base64("data") },
					};
				return object;
			}),
			etcdStorage("foreign", namespace),
		);
		await healed("foreign");
		const { configMap, secret } = await targets(namespace);
		expect(secret.type).toBe("kubernetes.io/tls");
		for (const { metadata } of [configMap, secret]) {
			expect(metadata.labels).toEqual({ theirs: "label" });
			expect(metadata.annotations).toHaveProperty("theirs", "annotation");
			expect(metadata.ownerReferences).toBeUndefined();
		}
		expect(configMap.data.theirs).toBe("data");
		expect(secretText(secret, "theirs")).toBe("data");
		const now = await material(on.api, "foreign");
		expect(opensslVerify("sslclient", now.client, now.clientCA)).toBe("OK");
	}, 20_000);

	test("is added, removed and moved with the spec; removed, it keeps only what others have in it", async () => {
		const away = ["k8s-moving", "k8s-moving-2"];
		const lists = (...namespaces: string[]) => ({
			caCertConfigMap: namespaces.map((namespace) => ({
				...{ name: "etcd-serving-ca", namespace },
			})),
			clientCertSecret: namespaces.map((namespace) => ({
				...{ name: "etcd-client-cert", namespace },
			})),
		});
		await on.cluster.apply(...apiServerNamespace("k8s-moving-2"));
		await on.api.tenant("moving");
		for (const [kind, name, data] of [
			["configmap", "etcd-serving-ca", "data"],
			["secret", "etcd-client-cert", base64("data")],
		] as const) {
			const object = ["-n", "k8s-moving", "patch", kind, name];
			const theirs = {
				metadata: { annotations: { theirs: "yes" } },
				data: { theirs: data },
			};
			await kubectl(...object, "--type=merge", "-p", JSON.stringify(theirs));
		}
		await change("moving", lists(...away));
		await healed("moving");
		const second = await targets("k8s-moving-2");
		const first = await targets("k8s-moving");
		expect(second.configMap.data["serving-ca.crt"]).toBe(
			first.configMap.data["serving-ca.crt"],
		);
		expect(second.secret.data["tls.key"]).not.toBe(
			first.secret.data["tls.key"],
		);

		await change("moving", lists("k8s-moving-2"));
		await healed("moving");
		const { configMap, secret } = await targets("k8s-moving");
		expect(configMap.data).toEqual({ theirs: "data" });
		expect(secret.data).toEqual({ theirs: base64("data") });
		expect(configMap.metadata.annotations).toHaveProperty("theirs");
		expect([configMap, secret].flatMap(annotationsOfOurs)).toEqual([]);
		expect(await targets("k8s-moving-2")).toEqual(second);
		const storage: EtcdStorage = await on.api.get("EtcdStorage", "moving");
		expect(storage.status?.targets?.map(({ namespace }) => namespace)).toEqual([
			...["k8s-moving-2", "k8s-moving-2"],
		]);

		await change("moving", lists("k8s-moving"));
		await healed("moving");
		expect((await targets("k8s-moving-2")).secret.data).toBeUndefined();
		const now = await material(on.api, "moving");
		expect(opensslVerify("sslclient", now.client, now.clientCA)).toBe("OK");
	}, 40_000);

	test("that is removed from the spec and cannot be cleaned is an event, and nothing waits for it", async () => {
		await on.api.tenant("clinging");
		await kubectl(
			...["-n", "k8s-clinging", "patch", "secret", "etcd-client-cert"],
			...["--type=merge", "-p", '{"immutable":true}'],
		);
		await change("clinging", { clientCertSecret: [] });
		await healed("clinging");
		const told = await on.api.events("clinging", /TargetCleanupFailed/, 1);
		expect(told).toHaveLength(1);
		expect(told[0]).toStartWith(
			"Warning TargetCleanupFailed: what was written into Secret k8s-clinging/etcd-client-cert could not be taken back; where it still is, remove it by hand: ",
		);
	}, 40_000);
});
