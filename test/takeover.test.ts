/**
 * A cluster of the Go controller of 2018 is taken over by applying our manifests and starting our controller: against a
 * real API server without a kubelet. One cluster for all: everything in it is from 2018 until ours is installed.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { join } from "node:path";
import { type Domain, domains } from "../lifetimes.ts";
import { client, lenientVerify, secretText } from "./client.ts";
import { binaries } from "./cluster/binaries.ts";
import { run } from "./cluster/processes.ts";
import {
	apiServerNamespace,
	type Cluster,
	coreCredentials,
	eventsOf,
	FIRST_BUILD,
	install,
	type Json,
	NAMESPACE,
	startController,
	startEmptyCluster,
	until,
} from "./harness.ts";
import * as predecessor from "./predecessor.ts";
import {
	certificates,
	consumer,
	consumerRole,
	consumers,
	type Handed,
	merge,
	parts,
	rotations,
	target,
} from "./rotating.ts";
import type { Stage } from "./stage.ts";

const DAY = 86_400_000;
const LONG = 120_000;
const on = {} as Stage;
const scene = rotations(on);
const { kubectl, own, reaches, rotation } = scene;

/** In the middle of their life: nothing of 2018 renews them. */
const living = {
	issued: Date.now() - 20 * DAY,
	expires: Date.now() + 10 * DAY,
};
const expired = { issued: Date.now() - 60 * DAY, expires: Date.now() - DAY };
/** Each with what is odd about it. */
const tenants: Record<string, Partial<predecessor.Left> & { unused?: number }> =
	{
		whole: {},
		old: { unmanaged: true },
		orphan: { unmanaged: true, ownerless: true },
		expired: { unused: 3 },
		crowded: { unused: 70 },
		half: {},
		foreign: {},
		forged: {},
		lost: {},
		unread: {},
	};
const materials = new Map<string, predecessor.Material>();
const handed = new Map<string, Record<Domain, Handed>>();
const seenOf = (name: string, domain: Domain) =>
	handed.get(name)?.[domain] as Handed;
const of = (name: string) => materials.get(name) as predecessor.Material;
const addresses = new Map<string, string>();
const address = async (name: string) =>
	(await on.api.get("Service", `etcd-${name}`)).spec.clusterIP;
let evil: string;
/** What would be done, as it was told before anything of ours was there. */
let plan: string;

/** The cluster as it was in 2018. */
async function prepare(cluster: Cluster): Promise<void> {
	const { etcdctl } = await binaries(["etcdctl"]);
	const { url, caFile, certFile, keyFile } = cluster.etcd;
	await run(
		[
			...[etcdctl, `--endpoints=${url}`, `--cacert=${caFile}`],
			...[`--cert=${certFile}`, `--key=${keyFile}`],
			...["put", predecessor.crdKey],
		],
		{ stdin: JSON.stringify(predecessor.storedCrd()) },
	);
	await until(
		() =>
			kubectl("get", "etcdstorages").then(
				() => true,
				() => false,
			),
		"the API server serves its CRD",
	);
	const items = predecessor.installation();
	await cluster.kubectl(
		["create", "-f", "-"],
		JSON.stringify({ apiVersion: "v1", kind: "List", items }),
	);
	await coreCredentials(cluster, NAMESPACE);
	for (const [name, { unused, ...left }] of Object.entries(tenants)) {
		const dates = name === "expired" ? expired : living;
		const material = await predecessor.material(name, dates, unused);
		materials.set(name, material);
		await cluster.apply(
			...apiServerNamespace(target(name)),
			...consumerRole(name),
		);
		for (const one of consumers(name, 2)) {
			await cluster.apply(consumer(name, one.name));
			await scene.says(name, one.name, "rolled out");
		}
		await predecessor.leave(cluster.kubectl, name, { material, ...left });
		addresses.set(name, await address(name));
	}
	await oddities(cluster);
}

/** A pod of 2018: pending for ever, as there is no kubelet. */
const formerPod = (name: string): object => ({
	...{ apiVersion: "v1", kind: "Pod" },
	metadata: {
		...{ name: `etcd-${name}-0`, namespace: NAMESPACE },
		labels: { apiserver: name },
	},
	spec: {
		// The default one is made by the controller manager.
		serviceAccountName: "etcdproxy-sa",
		containers: [
			{ name: "etcdproxy", image: "none", command: ["/usr/local/bin/etcd"] },
		],
	},
});

async function oddities(cluster: Cluster): Promise<void> {
	await cluster.apply(formerPod("whole"), formerPod("crowded"));
	await kubectl(...["-n", target("half"), "create", "configmap", "second-ca"]);
	await kubectl(
		...["-n", target("half"), "create", "secret", "generic", "second-cert"],
	);
	const ofHalf = { namespace: target("half") };
	await kubectl(
		...["patch", "etcdstorage", "half"],
		...merge({
			spec: {
				caCertConfigMap: ["etcd-serving-ca", "second-ca", "gone"].map(
					(name) => ({ name, ...ofHalf }),
				),
				clientCertSecret: ["etcd-client-cert", "second-cert"].map((name) => ({
					...{ name, ...ofHalf },
				})),
			},
		}),
	);
	await kubectl(
		...["-n", target("half"), "patch", "role", "etcdproxy-targets"],
		...["--type=json", "-p"],
		JSON.stringify(
			["etcd-serving-ca", "second-ca", "gone", "etcd-client-cert"]
				.concat("second-cert")
				.map((name) => ({
					...{ op: "add", path: "/rules/-" },
					value: {
						...{ apiGroups: [""], resources: ["configmaps", "secrets"] },
						...{ resourceNames: [name], verbs: ["get", "patch"] },
					},
				})),
		),
	);
	await own("delete", "configmap", "foreign-ca-cert");
	await own("create", "configmap", "foreign-ca-cert", "--from-literal=a=b");
	await own("delete", "secret", "lost-server-cert");
	await kubectl("-n", target("unread"), "delete", "role", "etcdproxy-targets");
	await own("scale", "deployment", "etcd-orphan", "--replicas=0");
	await own(
		...["patch", "deployment", "etcd-orphan", "--type=strategic", "-p"],
		JSON.stringify({
			spec: {
				template: {
					metadata: { annotations: { "sidecar.example.com/inject": "true" } },
					spec: {
						nodeSelector: { disk: "fast" },
						containers: [{ name: "sidecar", image: "sidecar:1" }],
					},
				},
			},
		}),
	);
	// Of somebody who may write one of the targets: with the name of the CA that is trusted, and one of his own.
	evil = (await predecessor.material("forged", living)).servingCA;
	await kubectl(
		...["-n", target("forged"), "patch", "configmap", "etcd-serving-ca"],
		...merge({ data: { "serving-ca.crt": evil + of("forged").server } }),
	);
}

beforeAll(async () => {
	on.cluster = await startEmptyCluster();
	on.api = client(on.cluster);
	await prepare(on.cluster);
	plan = await run([
		...[process.execPath, join(import.meta.dir, "../controller.ts"), "plan"],
		...[`--kubeconfig=${on.cluster.kubeconfig}`, "whole"],
	]);
	await install(on.cluster);
	await scene.follow();
	for (const name of Object.keys(tenants)) handed.set(name, scene.record(name));
	for (const name of ["expired", "lost"]) await nameConsumers(name, 1);
	on.controller = await startController(on.cluster);
}, FIRST_BUILD);
afterAll(async () => {
	scene.end();
	await on.controller?.stop();
	await on.cluster?.stop();
}, 30_000);

const nameConsumers = (name: string, count: number) =>
	kubectl(
		...["patch", "etcdstorage", name],
		...merge({ spec: { consumers: consumers(name, count) } }),
	);

/** Whether somebody who has loaded the bundle accepts the chain. */
const accepts = (domain: Domain, chain: string, bundle: string) =>
	lenientVerify(parts[domain].purpose, chain, bundle) === "OK";

const isOurs = (pem: string) =>
	certificates(pem).every(
		({ publicKey, issuer }) =>
			publicKey.asymmetricKeyType === "ec" && / CA [0-9a-f]{8}$/.test(issuer),
	);

/** The fields that are ours to say; without a Service's address, and annotations on pods, which are for everybody. */
const content = ({ metadata, spec }: Json) => {
	const { labels, ownerReferences } = metadata;
	const { clusterIP: _, clusterIPs: __, ...rest } = structuredClone(spec);
	delete rest.template?.metadata.annotations;
	return { labels, ownerReferences, spec: rest };
};

/** Expects an object to be as the controller makes it where nothing is. */
async function expectAsNew(kind: "Deployment" | "Service", name: string) {
	const before = await on.api.get(kind, `etcd-${name}`);
	await own("delete", kind.toLowerCase(), `etcd-${name}`);
	const after = await until(async () => {
		const now = await on.api.get(kind, `etcd-${name}`);
		return now?.metadata.uid !== before.metadata.uid && now;
	}, `${kind} etcd-${name} is there again`);
	// Who made it said more about the owner: that it must not go before.
	const owner = before.metadata.ownerReferences;
	delete owner[0].blockOwnerDeletion;
	expect(content(before)).toEqual(content(after));
}

/** Expects all of an EtcdStorage's objects to have it as their owner, and nobody else to have a say in them. */
async function expectOwned(name: string) {
	const { uid } = (await on.api.get("EtcdStorage", name)).metadata;
	for (const [kind, object] of [
		["Deployment", `etcd-${name}`],
		["Service", `etcd-${name}`],
		["ConfigMap", `${name}-ca-cert`],
		["Secret", `${name}-server-cert`],
		["Secret", `${name}-client-signer`],
		["Secret", `${name}-serving-signer`],
	] as const) {
		const { metadata } = await on.api.get(kind, object);
		expect([object, ...metadata.ownerReferences]).toEqual([
			object,
			expect.objectContaining({ kind: "EtcdStorage", name, uid }),
		]);
		expect(metadata.labels).toMatchObject({
			"etcd.xmudrii.com/etcdstorage": name,
		});
	}
}

test("what will be done can be seen before anything of ours is installed", () => {
	expect(plan).toContain("in need of a person: 0");
	for (const what of [
		"serving CA: make (not there)",
		`ConfigMap ${NAMESPACE}/whole-ca-cert adopted`,
		`Secret ${NAMESPACE}/whole-server-cert adopted`,
		`Deployment ${NAMESPACE}/etcd-whole configured`,
	])
		expect(plan).toContain(what);
	// The old certificate is not replaced before the new CA is known.
	expect(plan).not.toContain("issue server");
});

test("our manifests take the place of its manifests, and nothing of the controller's Deployment and of the CRD is left", async () => {
	const crd = await on.cluster.get("crd", "etcdstorages.etcd.xmudrii.com");
	expect(crd.spec.preserveUnknownFields).toBeUndefined();
	expect(JSON.stringify(crd.spec)).not.toContain("ns|us|ms|m|s|h");
	expect(
		crd.status.conditions.filter((one: Json) => one.status === "True"),
	).toHaveLength(2);
	const { spec } = await on.api.get(
		"Deployment",
		"etcdproxy-controller-deployment",
	);
	const { containers } = spec.template.spec;
	expect(containers).toHaveLength(1);
	expect(containers[0].command).toEqual([
		"/usr/local/bin/etcdproxy-controller",
	]);
	const { status } = await on.api.get("EtcdStorage", "whole");
	expect(status).not.toHaveProperty("Conditions");
});

describe("an EtcdStorage whose certificates nobody could renew", () => {
	const name = "whole";

	test(
		"gets new CAs, which are published first: until API servers have loaded the serving one, the old certificate serves, and until proxies have loaded the client one, the old one is shown",
		async () => {
			const { server, client: leaf, servingCA, clientCA } = of(name);
			await reaches(name, "client", "Publish", {
				waiting: new RegExp(
					`^ProxyNotUpdated: Pod ${NAMESPACE}/etcd-${name}-0 is being replaced`,
				),
			});
			const told = await scene.blocked(name, /^True ConsumerUnknown: /);
			expect(told).toMatch(
				/serving CA \w{8}, phase Publish: who reads ConfigMap k8s-whole\/etcd-serving-ca is not known: name its workloads in spec\.consumers, and restart them/,
			);
			// 9/10 of the ten days that are left.
			const until9 = new Date(living.expires - DAY);
			expect(told).toContain(
				`Harmless until ${until9.toISOString().slice(0, 10)}T`,
			);
			expect(await scene.leaf(name, "serving")).toBe(server);
			expect(await scene.leaf(name, "client")).toBe(leaf);
			for (const [domain, former] of [
				["serving", servingCA],
				["client", clientCA],
			] as const) {
				const bundle = await scene.bundle(name, domain);
				expect(certificates(bundle)).toHaveLength(2);
				expect(bundle).toStartWith(former);
			}
			await on.api.condition(name, "CertificatesReady", /^True /);
		},
		LONG,
	);

	test(
		"shows API servers' new certificates once the former proxies are gone",
		async () => {
			await scene.deleteProxy(name);
			await reaches(name, "client", "Retire");
			expect(isOurs(await scene.leaf(name, "client"))).toBe(true);
			expect(await scene.leaf(name, "serving")).toBe(of(name).server);
		},
		LONG,
	);

	test(
		"restarts consumers that are named, one after the other, and serves with a new certificate after the last",
		async () => {
			await nameConsumers(name, 2);
			const ca = rotation(name, "serving")?.generation ?? "";
			await scene.rollAll(name, 1, ca);
			await until(
				async () => (await scene.restartedFor(name, "api-2")) === ca,
				"the second is restarted",
				60_000,
			);
			expect(await scene.leaf(name, "serving")).toBe(of(name).server);
			await scene.says(name, "api-2", "rolled out");
			await reaches(name, "serving", "Retire");
			expect(isOurs(await scene.leaf(name, "serving"))).toBe(true);
			await on.api.condition(name, "CertificatesReady", /^True /);
			await on.api.condition(name, "RotationBlocked", /^False /);
		},
		LONG,
	);

	test("handed out nothing that who had loaded the bundle did not accept", () => {
		for (const domain of domains) {
			const { leaves, bundles, lost } = seenOf(name, domain);
			expect([domain, leaves.length, bundles.length]).toEqual([domain, 2, 2]);
			// The third pairing is the new certificate and the old bundle alone: who could have that was waited for.
			for (const [i, j] of [
				[0, 0],
				[0, 1],
				[1, 1],
			] as const)
				expect([
					...[domain, i, j],
					accepts(domain, leaves[i] ?? "", bundles[j] ?? ""),
				]).toEqual([domain, i, j, true]);
			expect(lost).toBe(0);
		}
	});

	test("is ours in the end: owners, labels, content; its Service has kept its address", async () => {
		await expectOwned(name);
		expect(await address(name)).toBe(addresses.get(name) ?? "");
		await expectAsNew("Deployment", name);
		await expectAsNew("Service", name);
		const events = await eventsOf(on.cluster, name);
		expect(events.join("\n")).not.toMatch(/NameTaken|FailedDeploying/);
	});
});

describe.each(["old", "orphan"])(
	"objects from before the API server noted whose fields are whose (%s)",
	(name) => {
		test(
			"are adopted, and exactly ours",
			async () => {
				await on.api.condition(name, "Deployed", /^False DeploymentNotAv/);
				await expectOwned(name);
				expect(await address(name)).toBe(addresses.get(name) ?? "");
				const written = on.controller
					.log()
					.split("\n")
					.filter((line) => line.includes(`${name}-ca-cert adopted`));
				expect(written).toHaveLength(1);
				const { metadata } = await on.api.get("ConfigMap", `${name}-ca-cert`);
				await expectAsNew("Deployment", name);
				await expectAsNew("Service", name);
				// At rest: nothing is taken over again and again.
				expect(
					(await on.api.get("ConfigMap", `${name}-ca-cert`)).metadata,
				).toEqual(metadata);
			},
			LONG,
		);
	},
);

describe("certificates that have expired", () => {
	test(
		"are replaced at once, and consumers restarted",
		async () => {
			const name = "expired";
			await until(
				async () =>
					isOurs(await scene.leaf(name, "client")) &&
					isOurs(await scene.leaf(name, "serving")),
				"all certificates are ours",
				60_000,
			);
			const { generation } = await reaches(name, "serving", "Spread", {
				waiting: /Deployment k8s-expired\/api-1/,
			});
			expect(isOurs(await scene.bundle(name, "serving"))).toBe(true);
			await scene.rollAll(name, 1, generation);
			await reaches(name, "serving", "Steady");
			for (const domain of domains)
				expect([
					domain,
					accepts(
						domain,
						await scene.leaf(name, domain),
						await scene.bundle(name, domain),
					),
				]).toEqual([domain, true]);
		},
		LONG,
	);
});

test(
	"of client CAs by the dozen, those stay trusted whose certificates are in use",
	async () => {
		const name = "crowded";
		await reaches(name, "client", "Publish", { waiting: /ProxyNotUpdated/ });
		const bundle = await scene.bundle(name, "client");
		expect(certificates(bundle)).toHaveLength(2);
		expect(bundle).toStartWith(of(name).clientCA);
		expect(await scene.leaf(name, "client")).toBe(of(name).client);
	},
	LONG,
);

test(
	"targets that were not filled, or are gone, keep nothing from the others",
	async () => {
		const name = "half";
		const message = await on.api.condition(
			name,
			"CertificatesReady",
			/^False TargetMissing: /,
		);
		expect(message).toContain("ConfigMap k8s-half/gone is not there");
		// Nobody is known to show the client certificate to a former proxy.
		await reaches(name, "client", "Retire");
		for (const secret of ["etcd-client-cert", "second-cert"]) {
			const { data } = await on.api.get("Secret", secret, target(name));
			const pem = secretText({ data }, "tls.crt");
			expect([secret, isOurs(pem)]).toEqual([secret, true]);
		}
		for (const map of ["etcd-serving-ca", "second-ca"]) {
			const { data } = await on.api.get("ConfigMap", map, target(name));
			expect([
				map,
				accepts("serving", of(name).server, data["serving-ca.crt"]),
			]).toEqual([map, true]);
		}
		expect(await scene.leaf(name, "serving")).toBe(of(name).server);
	},
	LONG,
);

test(
	"a foreign object in the place of one of 2018 is left alone, until a person hands it over",
	async () => {
		const name = "foreign";
		const before = await on.api.get("ConfigMap", `${name}-ca-cert`);
		const message = await on.api.condition(
			name,
			"CertificatesReady",
			/^False NameTaken: /,
		);
		expect(await on.api.get("ConfigMap", `${name}-ca-cert`)).toEqual(before);
		const command = /kubectl ([^()]+ label [^()]+)\)/.exec(message)?.[1] ?? "";
		await kubectl(...command.split(" "));
		await on.api.condition(name, "CertificatesReady", /^True /);
		await expectOwned(name);
		const { data } = await on.api.get("ConfigMap", `${name}-ca-cert`);
		expect(Object.keys(data)).toEqual(["client-ca.crt", "serving-ca.crt"]);
	},
	LONG,
);

test(
	"a CA that somebody has put into a target, also under the name of the right one, is not trusted",
	async () => {
		const name = "forged";
		await reaches(name, "serving", "Publish");
		const bundle = await until(async () => {
			const now = await scene.bundle(name, "serving");
			return now.startsWith(of(name).servingCA) && now;
		}, "the bundle is written");
		expect(certificates(bundle)).toHaveLength(2);
		const [subject] = certificates(evil).map((one) => one.subject);
		expect(new X509Certificate(of(name).servingCA).subject).toBe(subject ?? "");
		expect(bundle).not.toContain(evil);
	},
	LONG,
);

test(
	"a server certificate that is gone is replaced at once, and whoever may have loaded another CA restarted",
	async () => {
		const name = "lost";
		const { generation } = await reaches(name, "serving", "Spread", {
			waiting: /Deployment k8s-lost\/api-1/,
		});
		expect(isOurs(await scene.leaf(name, "serving"))).toBe(true);
		await scene.rollAll(name, 1, generation);
		await reaches(name, "serving", "Steady");
	},
	LONG,
);

test(
	"while targets may not be read, nobody is shown a certificate of a CA that is not in them",
	async () => {
		const name = "unread";
		await on.api.condition(
			name,
			"CertificatesReady",
			/^False TargetForbidden: /,
		);
		const waiting = /etcd-serving-ca may not be read and written/;
		await reaches(name, "serving", "Publish", { waiting });
		await on.api.condition(name, "Deployed", /^True |DeploymentNotAvailable/);
		expect(await scene.leaf(name, "serving")).toContain(of(name).server);
		await on.cluster.apply(...apiServerNamespace(target(name)));
		await on.api.condition(name, "CertificatesReady", /^True /);
		const bundle = await scene.bundle(name, "serving");
		expect(bundle).toContain(of(name).servingCA);
		expect(certificates(bundle)).toHaveLength(2);
		expect(await scene.leaf(name, "serving")).toContain(of(name).server);
	},
	LONG,
);

test("nothing of this was an error", async () => {
	expect(on.controller.log()).not.toContain("ERROR");
});
