/** What is deleted or edited comes back, against a real API server. */

import { beforeAll, describe, expect, test } from "bun:test";
import type { EtcdStorage } from "../etcdstorage.ts";
import { type Kind, Kube, type KubeObject, loadKubeConfig } from "../kube.ts";
import type { Domain } from "../lifetimes.ts";
import { REFILL_MS } from "../pace.ts";
import { type Material, material, opensslVerify } from "./client.ts";
import { eventsOf, type Json, NAMESPACE, until } from "./harness.ts";
import { certificates } from "./rotating.ts";
import { stage } from "./stage.ts";

const on = stage();

const own = (...args: string[]) =>
	on.cluster.kubectl(["-n", NAMESPACE, ...args]);
const json = (...operations: object[]) => [
	"--type=json",
	"-p",
	JSON.stringify(operations),
];
const replace = (kind: string, name: string, path: string, value: string) =>
	own("patch", kind, name, ...json({ op: "replace", path, value }));

describe("repair", () => {
	beforeAll(() => on.api.tenant("repair"), 30_000);

	/** What must be as it was; a Service that was deleted gets another address. */
	const content = (object: Json) => {
		const { labels, ownerReferences } = object?.metadata ?? {};
		const { clusterIP: _, clusterIPs: __, ...spec } = object?.spec ?? {};
		return { labels, ownerReferences, spec, data: object?.data };
	};
	const cases: [Kind, name: string, what: string, edit: string[]][] = [];
	const edit =
		(kind: Kind, name: string) =>
		(what: string, ...args: string[]) =>
			cases.push([kind, name, what, args]);
	const deployment = edit("Deployment", "etcd-repair");
	const container = "/spec/template/spec/containers/0";
	const pod = "/spec/template/spec";
	deployment("is deleted", "delete", "deployment", "etcd-repair");
	deployment(
		"has another image",
		...["set", "image", "deployment/etcd-repair", "etcdproxy=evil:1"],
	);
	deployment(
		"has another argument",
		...["patch", "deployment", "etcd-repair"],
		...json({ op: "replace", path: `${container}/args/1`, value: "--x" }),
	);
	deployment(
		"has one more argument",
		...["patch", "deployment", "etcd-repair"],
		...json({ op: "add", path: `${container}/args/-`, value: "--debug" }),
	);
	deployment(
		"has one more container",
		...["patch", "deployment", "etcd-repair"],
		...json({
			op: "add",
			path: `${pod}/containers/-`,
			value: { name: "more", image: "more:1" },
		}),
	);
	deployment(
		"has another environment",
		...["set", "env", "deployment/etcd-repair", "DEBUG=1"],
	);
	deployment(
		"is bound to a node",
		...["patch", "deployment", "etcd-repair"],
		...json({ op: "add", path: `${pod}/nodeSelector`, value: { a: "b" } }),
	);
	deployment(
		"may run as root",
		...["patch", "deployment", "etcd-repair"],
		...json({ op: "remove", path: `${pod}/securityContext/runAsNonRoot` }),
	);
	deployment(
		"is scaled",
		...["scale", "deployment", "etcd-repair", "--replicas=0"],
	);
	deployment("is paused", "rollout", "pause", "deployment/etcd-repair");
	deployment(
		"recreates its pods",
		...["patch", "deployment", "etcd-repair", "--type=merge", "-p"],
		JSON.stringify({
			spec: { strategy: { type: "Recreate", rollingUpdate: null } },
		}),
	);
	deployment(
		"has lost a label",
		...["label", "deployment", "etcd-repair", "app.kubernetes.io/managed-by-"],
	);

	deployment(
		"has lost its owner",
		...["patch", "deployment", "etcd-repair"],
		...json({ op: "remove", path: "/metadata/ownerReferences" }),
	);

	const service = edit("Service", "etcd-repair");
	service("is deleted", "delete", "service", "etcd-repair");
	service(
		"has another target port",
		...["patch", "service", "etcd-repair"],
		...json({ op: "replace", path: "/spec/ports/0/targetPort", value: 1 }),
	);
	service(
		"has one more port",
		...["patch", "service", "etcd-repair"],
		// Of several, each has a name.
		...json(
			{ op: "add", path: "/spec/ports/0/name", value: "etcd" },
			{ op: "add", path: "/spec/ports/-", value: { name: "more", port: 1 } },
		),
	);
	service(
		"selects other pods",
		...["set", "selector", "service", "etcd-repair", "apiserver=other"],
	);
	service(
		"selects fewer pods",
		...["patch", "service", "etcd-repair"],
		...json({ op: "add", path: "/spec/selector/more", value: "yes" }),
	);
	service(
		"is open to the world",
		...["patch", "service", "etcd-repair"],
		...json({ op: "replace", path: "/spec/type", value: "NodePort" }),
	);

	const budget = edit("PodDisruptionBudget", "etcd-repair");
	budget("is deleted", "delete", "poddisruptionbudget", "etcd-repair");
	budget(
		"lets all of them be drained at once",
		...["patch", "poddisruptionbudget", "etcd-repair"],
		...json({ op: "replace", path: "/spec/maxUnavailable", value: "100%" }),
	);
	budget(
		"keeps nodes from being drained",
		...["patch", "poddisruptionbudget", "etcd-repair"],
		...json(
			{ op: "remove", path: "/spec/maxUnavailable" },
			{ op: "add", path: "/spec/minAvailable", value: "100%" },
		),
	);
	budget(
		"selects fewer pods",
		...["patch", "poddisruptionbudget", "etcd-repair"],
		...json({
			op: "add",
			path: "/spec/selector/matchLabels/more",
			value: "yes",
		}),
	);
	budget(
		"has lost its owner",
		...["patch", "poddisruptionbudget", "etcd-repair"],
		...json({ op: "remove", path: "/metadata/ownerReferences" }),
	);

	const configMap = edit("ConfigMap", "repair-ca-cert");
	configMap("is deleted", "delete", "configmap", "repair-ca-cert");
	configMap(
		"has another CA",
		...["patch", "configmap", "repair-ca-cert"],
		...json({ op: "replace", path: "/data/client-ca.crt", value: "junk" }),
	);
	configMap(
		"has one more key",
		...["patch", "configmap", "repair-ca-cert"],
		...json({ op: "add", path: "/data/more", value: "yes" }),
	);
	configMap(
		"has no data",
		...["patch", "configmap", "repair-ca-cert"],
		...json({ op: "remove", path: "/data" }),
	);

	const secret = edit("Secret", "repair-server-cert");
	secret(
		"has one more key",
		...["patch", "secret", "repair-server-cert"],
		...json({ op: "add", path: "/data/more", value: "" }),
	);
	secret(
		"has another label",
		...["label", "--overwrite", "secret", "repair-server-cert"],
		"etcd.xmudrii.com/etcdstorage=other",
	);

	secret(
		"has lost its owner",
		...["patch", "secret", "repair-server-cert"],
		...json({ op: "remove", path: "/metadata/ownerReferences" }),
	);
	const signer = edit("Secret", "repair-client-signer");
	signer(
		"has lost its owner",
		...["patch", "secret", "repair-client-signer"],
		...json({ op: "remove", path: "/metadata/ownerReferences" }),
	);

	const took: number[] = [];
	test.each(cases)(
		"%s %s that %s is as it was",
		async (kind, name, _, args) => {
			const before = await on.api.get(kind, name);
			await own(...args);
			const edited = performance.now();
			await until(
				async () => {
					const now = await on.api.get(kind, name);
					return (
						now?.metadata.resourceVersion !== before.metadata.resourceVersion &&
						Bun.deepEquals(content(now), content(before))
					);
				},
				`${kind} ${name} is as it was`,
				10_000,
			);
			took.push(performance.now() - edited);
		},
	);

	test("takes less than a second, mostly", () => {
		const sorted = took.toSorted((a, b) => a - b).map(Math.round);
		console.log(`repaired after ${sorted.join(", ")} ms`);
		expect(took).toHaveLength(cases.length);
		expect(sorted[Math.floor(sorted.length / 2)]).toBeLessThan(1_000);
	});

	test.each([
		[
			...["is deleted", "server (not there)"],
			() => own("delete", "secret", "repair-server-cert"),
		],
		[
			...["is junk", "server (unreadable: "],
			() =>
				replace("secret", "repair-server-cert", "/data/tls.crt", "anVuaw=="),
		],
		[
			...["has a junk key", "server (unreadable: private key: "],
			() =>
				replace("secret", "repair-server-cert", "/data/tls.key", "anVuaw=="),
		],
		[
			...["has the key of another", "server (key does not match)"],
			async () => {
				const { data } = await on.api.get("Secret", "repair-serving-signer");
				await replace(
					"secret",
					"repair-server-cert",
					"/data/tls.key",
					data["tls.key"],
				);
			},
		],
		[
			...["is a client certificate", "server (signer replaced)"],
			async () => {
				const { data } = await on.api.get(
					"Secret",
					"etcd-client-cert",
					"k8s-repair",
				);
				await own(
					...["patch", "secret", "repair-server-cert", "--type=merge"],
					...["-p", JSON.stringify({ data })],
				);
			},
		],
	] as [string, string, () => Promise<unknown>][])(
		"a server certificate that %s is issued again by the same signer, because: %s",
		async (_, reason, action) => {
			const before = await material(on.api, "repair");
			expect(await on.api.issuedBy("repair", action)).toStartWith(reason);
			const now = await material(on.api, "repair");
			expect(now.server).not.toBe(before.server);
			expect(opensslVerify("sslserver", now.server, before.servingCA)).toBe(
				"OK",
			);
			expect(now).toEqual({
				...before,
				server: now.server,
				serverKey: now.serverKey,
			});
		},
	);

	test("respects kubectl rollout restart", async () => {
		await own("rollout", "restart", "deployment/etcd-repair");
		const restartedAt = async () =>
			(await on.api.get("Deployment", "etcd-repair")).spec.template.metadata
				.annotations["kubectl.kubernetes.io/restartedAt"];
		const time = await restartedAt();
		expect(time).toBeString();
		await own("set", "image", "deployment/etcd-repair", "etcdproxy=evil:1");
		await until(
			async () =>
				(await on.api.get("Deployment", "etcd-repair")).spec.template.spec
					.containers[0].image !== "evil:1",
			"the image is as it was",
			10_000,
		);
		expect(await restartedAt()).toBe(time);
	});

	test("is no failure to be told of", async () => {
		const events = await eventsOf(on.cluster, "repair");
		expect(events.filter((event) => event.startsWith("Warning"))).toEqual([]);
	});
});

describe("a signer", () => {
	beforeAll(() => on.api.tenant("signers"), 30_000);
	const valid = ({ server, servingCA, client, clientCA }: Material) => [
		opensslVerify("sslserver", server, servingCA),
		opensslVerify("sslclient", client, clientCA),
	];

	/** Waits until all is of one signer again, and returns what is trusted then, and the phase. */
	const replaced = (domain: Domain, before: Material) =>
		until(async () => {
			const now = await material(on.api, "signers");
			const storage: EtcdStorage = await on.api.get("EtcdStorage", "signers");
			const phase = storage.status?.certificates?.find(
				(one) => one.name === `${domain}-signer`,
			)?.rotation?.phase;
			const leaf = domain === "client" ? "client" : "server";
			const done = phase === "Spread" || phase === "Retire";
			return done && now[leaf] !== before[leaf] && now;
		}, `another ${domain} signer has issued everything`);

	test("that is deleted is replaced with all that it had signed: the old CA stays trusted, and the other domain as it was", async () => {
		const before = await material(on.api, "signers");
		const deployment = await on.api.get("Deployment", "etcd-signers");
		const issued = await on.api.issuedBy("signers", () =>
			own("delete", "secret", "signers-client-signer"),
		);
		// The next one is published first, and may be in use by the time that this is seen.
		expect(issued.split("; ")).toContain("client-signer (not there)");
		const now = await replaced("client", before);
		expect(valid(now)).toEqual(["OK", "OK"]);
		const { servingCA, server, serverKey } = before;
		expect(now).toMatchObject({ servingCA, server, serverKey });
		expect(opensslVerify("sslclient", before.client, now.clientCA)).toBe("OK");
		// Nobody was left to certify it.
		expect(opensslVerify("sslclient", now.client, before.clientCA)).not.toBe(
			"OK",
		);
		// Gateways take up another CA while they run.
		const { spec } = await on.api.get("Deployment", "etcd-signers");
		expect(spec).toEqual(deployment.spec);
	});

	test.each([
		[
			...["that is junk", "serving-signer (unreadable: "],
			async () => "anVuaw==",
			"tls.crt",
		],
		[
			...["without a certificate", "serving-signer (unreadable: "],
			async () => "",
			"tls.crt",
		],
		[
			...["with the key of another", "serving-signer (key does not match)"],
			async () =>
				(await on.api.get("Secret", "signers-client-signer")).data["tls.key"],
			"tls.key",
		],
		[
			...["that is no CA", "serving-signer (not a CA)"],
			async () =>
				(await on.api.get("Secret", "signers-server-cert")).data["tls.crt"],
			"tls.crt",
		],
	] as [string, string, () => Promise<string>, string][])(
		"%s is replaced, because: %s",
		async (_, reason, value, key) => {
			const before = await material(on.api, "signers");
			const junk = await value();
			const issued = await on.api.issuedBy("signers", () =>
				replace("secret", "signers-serving-signer", `/data/${key}`, junk),
			);
			expect(issued).toStartWith(reason);
			// Nobody knows who reads the bundle: as long as the certificate lasts, API servers have time to load it.
			await on.api.condition(
				"signers",
				"RotationBlocked",
				/^True ConsumerUnknown: serving CA \w+, phase Publish: /,
			);
			const published = await material(on.api, "signers");
			expect(published.server).toBe(before.server);
			expect(published.servingCA).not.toBe(before.servingCA);
			expect(valid(published)).toEqual(["OK", "OK"]);
			const { clientCA, client, clientKey } = before;
			expect(published).toMatchObject({ clientCA, client, clientKey });
			// Nothing reads it any more.
			await on.cluster.kubectl([
				...["patch", "etcdstorage", "signers", "--type=merge", "-p"],
				JSON.stringify({ spec: { caCertConfigMap: [] } }),
			]);
			await until(async () => {
				const { server } = await material(on.api, "signers");
				return server !== before.server;
			}, "the new signer has issued the certificate");
			await on.cluster.kubectl([
				...["patch", "etcdstorage", "signers", "--type=merge", "-p"],
				JSON.stringify({
					spec: {
						caCertConfigMap: [
							{ name: "etcd-serving-ca", namespace: "k8s-signers" },
						],
					},
				}),
			]);
			await until(async () => {
				const { servingCA = "" } = await material(on.api, "signers");
				const trusted = certificates(servingCA).map(String);
				return certificates(before.servingCA).every((former) =>
					trusted.includes(former.toString()),
				);
			}, "the bundle is back, with the former CAs");
			expect(valid(await material(on.api, "signers"))).toEqual(["OK", "OK"]);
		},
		30_000,
	);

	test.each([
		["whose bundle is cut", "ca-bundle.crt", ""],
		["whose bundle is junk", "ca-bundle.crt", "anVuaw=="],
		["with a junk cross-certificate", "cross.crt", "anVuaw=="],
		["with one more key", "more", "anVuaw=="],
	])("%s is repaired, and nothing is issued", async (_, key, value) => {
		const before = await on.api.get("Secret", "signers-client-signer");
		await own(
			...["patch", "secret", "signers-client-signer"],
			...json({ op: "add", path: `/data/${key}`, value }),
		);
		await until(
			async () => {
				const { metadata, data } = await on.api.get(
					"Secret",
					"signers-client-signer",
				);
				return (
					metadata.resourceVersion !== before.metadata.resourceVersion &&
					Bun.deepEquals(data, before.data)
				);
			},
			"the Secret is as it was",
			10_000,
		);
	});

	test("was issued and replaced once each time", async () => {
		const events = await eventsOf(on.cluster, "signers");
		const reasons = events
			.filter((event) => event.startsWith("Normal CertificatesIssued: "))
			.flatMap((event) => event.replace(/^.*?: /, "").split("; "));
		const count = (what: RegExp) =>
			reasons.filter((reason) => what.test(reason)).length;
		expect(count(/^client-signer /)).toBe(2);
		expect(count(/^client\/\S+ /)).toBe(2);
		expect(count(/^serving-signer /)).toBe(5);
		expect(count(/^server /)).toBe(5);
	});
});

test("somebody who changes an object back at once is told of, and not answered as fast as that", async () => {
	const name = "contested";
	await on.api.tenant(name);
	const service = `etcd-${name}`;
	const kube = new Kube(loadKubeConfig(on.cluster.kubeconfig), {
		fieldManager: "theirs",
	});
	const peace = new AbortController();
	const change = async ({ apiVersion, kind, metadata }: KubeObject) => {
		const ref = { ...metadata, apiVersion, kind };
		await kube.patch(ref, { spec: { selector: { apiserver: "x" } } }, "merge");
	};
	const answer = (object: Json) => {
		const ours = object.spec.selector.apiserver === name;
		if (ours && !peace.signal.aborted) void change(object as KubeObject);
	};
	const war = kube.follow("Service", {
		namespace: NAMESPACE,
		signal: peace.signal,
		onSync: (objects) => objects.forEach(answer),
		onEvent: (_, object) => answer(object),
	});
	const contested = async () =>
		(await eventsOf(on.cluster, name)).filter((one) =>
			one.startsWith("Warning RepairContested: "),
		);
	const [told] = await until(
		async () => (await contested()).length > 0 && contested(),
		"it is told of",
		60_000,
	);
	expect(told).toContain(`Service ${NAMESPACE}/${service} configured: again`);
	const repairs = () =>
		on.controller.log().split(`Service ${NAMESPACE}/${service} configured`)
			.length;
	const [before, at] = [repairs(), performance.now()];
	await until(() => repairs() > before + 3, "it is repaired three times more");
	expect(performance.now() - at).toBeGreaterThan(2 * REFILL_MS);
	peace.abort();
	await war;
	await until(async () => {
		const { spec } = await on.api.get("Service", service);
		return spec.selector.apiserver === name;
	}, "it is as it should be");
	expect(await contested()).toHaveLength(1);
}, 120_000);
