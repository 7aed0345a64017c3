/**
 * The golden files in test/golden are the objects that one EtcdStorage asks for, whole, to be read in a review.
 * After a change that is meant: `UPDATE_GOLDEN=1 bun test test/manifests.test.ts`, then look at the difference.
 */

import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { isOwnedBy } from "../adoption.ts";
import { hasLeftovers, isSubset, takeOver } from "../drift.ts";
import {
	type EtcdStorage,
	parseDuration,
	readSpec,
	type Spec,
} from "../etcdstorage.ts";
import {
	type GatewayOptions,
	gatewayFlags,
	parseGatewayOptions,
} from "../gateway/options.ts";
import type { KubeObject, ManagedFieldsEntry } from "../kube.ts";
import { domains } from "../lifetimes.ts";
import {
	bundles,
	certificates,
	type Data,
	type Environment,
	emptyTarget,
	FIELD_MANAGER,
	leafId,
	type Material,
	names,
	ownerOf,
	possibleOwners,
	readAnswered,
	secretText,
	signerSecret,
} from "../manifests.ts";
import type { CertificateFacts } from "../pki.ts";
import type { Authority } from "../signers.ts";
import {
	availability,
	type Deployment,
	dataPlane,
	workload,
} from "../workload.ts";
import { etcdStorage, type Json } from "./harness.ts";

const environment: Environment = {
	namespace: "kube-apiserver-storage",
	coreUrls: [
		"https://etcd-svc-1.etcd.svc:2379",
		"https://etcd-svc-2.etcd.svc:2379",
	],
	coreCAConfigMap: "etcd-coreserving-ca",
	coreCertsSecret: "etcd-coreserving-cert",
	proxyImage: "registry.example.com/etcdproxy-controller:v1",
	proxyPriorityClass: "etcdproxy",
};
/** With etcd's own proxies. */
const etcdEnvironment: Environment = {
	...environment,
	proxyImage: "gcr.io/etcd-development/etcd:v3.7.3",
};

/** The example of 2018, as the API server gives it back. */
function sample(name = "sample-apiserver"): EtcdStorage {
	const storage = etcdStorage(name, "k8s-sample-apiserver") as EtcdStorage;
	storage.metadata.uid = "7d3c0a4e-0000-4000-8000-000000000001";
	return storage;
}

const facts = (subject: string, notAfter: number, pem = "") =>
	({
		subject,
		issuer: subject,
		notAfter,
		pem,
		keyIdentifier: "0a1b2c3d",
	}) as CertificateFacts;

const END = Date.UTC(2027, 0, 1);

/** A CA of which every text says what it is. */
function authority(what: string, subject: string): Authority {
	const certificate = `certificate of the ${what}`;
	return {
		pair: { certificate, key: `key of the ${what}` },
		facts: facts(subject, END, certificate),
		keyMatches: true,
	};
}

/** Texts that say what lies where; certificates are not looked into here. */
function material(spec: Spec): Material {
	const end = END;
	const signer = (domain: string) => ({
		current: authority(
			`${domain} signer`,
			`CN=etcd ${domain} CA 0a1b2c3d,O=${spec.name}`,
		),
		next: { missing: true as const },
		trusted: [],
		answered: {},
		bundle: `bundle of the ${domain} domain`,
	});
	const leaf = (id: string, domain: string) => ({
		pair: { certificate: `chain of ${id}`, key: `key of ${id}` },
		facts: facts(`CN=etcd ${domain} CA 0a1b2c3d,O=${spec.name}`, end),
	});
	return {
		signers: {
			client: {
				...signer("client"),
				cross: facts("", END, "cross-certificate of the client signer"),
			},
			serving: signer("serving"),
		},
		leaves: {
			server: leaf("server", "serving"),
			...Object.fromEntries(
				spec.targets
					.filter((target) => target.kind === "Secret")
					.map((target) => [leafId(target), leaf(leafId(target), "client")]),
			),
		},
		coreCA: "CA of the core etcd",
	};
}

function specOf(storage: EtcdStorage): Spec {
	const spec = readSpec(storage);
	if ("invalid" in spec) throw new Error(spec.invalid);
	return spec;
}

/** Everything desired, in the groups and the order in which it is applied. */
function desired(storage: EtcdStorage): Record<string, KubeObject[]> {
	const spec = specOf(storage);
	const made = material(spec);
	return {
		signers: domains.map((domain) =>
			signerSecret(storage, environment, domain, made.signers[domain]),
		),
		bundles: bundles(storage, environment, spec.targets, made),
		certificates: certificates(storage, environment, spec.targets, made),
		workload: workload(storage, environment, spec, made),
		"workload-etcd": workload(storage, etcdEnvironment, spec, made),
	};
}
const all = (storage: EtcdStorage) => Object.values(desired(storage)).flat();

describe("the objects of the 2018 example", () => {
	test.each([
		"signers",
		"bundles",
		"certificates",
		"workload",
		"workload-etcd",
	])("are those of test/golden/%s.yaml", (group) => {
		const text = (desired(sample())[group] ?? [])
			// As JSON, since what is used twice would be an anchor and an alias.
			.map((object) => JSON.parse(JSON.stringify(object)))
			.map((object) => `${Bun.YAML.stringify(object, null, 2).trimEnd()}\n`)
			.join("---\n");
		const path = join(import.meta.dir, "golden", `${group}.yaml`);
		if (process.env.UPDATE_GOLDEN) writeFileSync(path, text);
		expect(text).toBe(readFileSync(path, "utf8"));
	});

	test("lie in the controller's namespace and belong to the EtcdStorage, except the targets", () => {
		const storage = sample();
		const targets = specOf(storage).targets.map(
			({ kind, namespace, name }) => `${kind} ${namespace}/${name}`,
		);
		for (const object of all(storage)) {
			const { namespace, name } = object.metadata;
			const isTarget = targets.includes(`${object.kind} ${namespace}/${name}`);
			expect([name, isOwnedBy(object, storage)]).toEqual([name, !isTarget]);
			if (isTarget) expect(ownerOf(object)).toBeUndefined();
			else {
				expect(namespace).toBe(environment.namespace);
				expect(ownerOf(object)).toBe("sample-apiserver");
			}
		}
	});

	test("keep every key inside the controller's namespace but the client's own", () => {
		for (const object of all(sample())) {
			const inside = object.metadata.namespace === environment.namespace;
			const text = JSON.stringify(object).replace(
				/[A-Za-z\d+/=]{16,}/g,
				(word) => Buffer.from(word, "base64").toString(),
			);
			if (!inside) expect(text).not.toMatch(/key of (the|server)/);
			if (object.kind !== "Secret") expect(text).not.toContain("key of");
		}
	});
});

const dnsLabel = fc
	.stringMatching(/^[a-z0-9]([-a-z0-9]{0,56}[a-z0-9])?$/)
	.filter((name) => name.length <= 58);
const anyStorage = fc
	.record({
		name: dnsLabel,
		configMaps: fc.uniqueArray(dnsLabel, { maxLength: 3 }),
		secrets: fc.uniqueArray(dnsLabel, { maxLength: 3 }),
		replicas: fc.option(fc.integer({ min: 1, max: 100 }), { nil: undefined }),
	})
	.map(({ name, configMaps, secrets, replicas }) => {
		const storage = sample(name);
		const targets = (list: string[]) =>
			list.map((name) => ({ name, namespace: "apps" }));
		storage.spec.caCertConfigMap = targets(configMaps);
		storage.spec.clientCertSecret = targets(secrets);
		if (replicas !== undefined) storage.spec.replicas = replicas;
		return storage;
	});

describe("whatever the EtcdStorage, desired objects", () => {
	test("carry no empty list, empty map, null or undefined: such values would be written at every apply", () => {
		const check = (value: unknown, path: string): void => {
			if (typeof value !== "object" || value === null) {
				expect([path, value]).not.toEqual([path, null]);
				expect([path, typeof value]).not.toEqual([path, "undefined"]);
				return;
			}
			expect([path, Object.keys(value).length]).not.toEqual([path, 0]);
			for (const [key, inner] of Object.entries(value))
				check(inner, `${path}.${key}`);
		};
		fc.assert(
			fc.property(anyStorage, (storage) => {
				for (const object of all(storage)) check(object, object.kind);
			}),
		);
	});

	test("carry keys in Secrets only, also where a ConfigMap and a Secret have the same name", () => {
		const targets = [{ name: "same", namespace: "apps" }];
		const storage = sample();
		storage.spec.caCertConfigMap = targets;
		storage.spec.clientCertSecret = targets;
		for (const { kind, data } of all(storage) as Data[])
			if (kind !== "Secret")
				expect(
					Object.keys(data ?? {}).filter((key) => /tls/.test(key)),
				).toEqual([]);
		expect(
			all(storage)
				.filter(({ metadata }) => metadata.name === "same")
				.map(({ kind }) => kind),
		).toEqual(["ConfigMap", "Secret"]);
	});

	test("have names that the API server takes: a Service's is a DNS label", () => {
		fc.assert(
			fc.property(anyStorage, (storage) => {
				for (const { kind, metadata } of all(storage)) {
					expect(metadata.name).toMatch(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/);
					expect(metadata.name.length).toBeLessThanOrEqual(
						kind === "Service" ? 63 : 253,
					);
					for (const value of Object.values(metadata.labels ?? {}))
						expect(value.length).toBeLessThanOrEqual(63);
				}
			}),
		);
	});

	test("of two EtcdStorages never meet", () => {
		const owned = (storage: EtcdStorage) =>
			all(storage)
				.filter((object) => isOwnedBy(object, storage))
				.map(({ kind, metadata }) => `${kind} ${metadata.name}`);
		fc.assert(
			fc.property(anyStorage, anyStorage, (one, other) => {
				fc.pre(one.metadata.name !== other.metadata.name);
				expect(
					owned(one).filter((object) => owned(other).includes(object)),
				).toEqual([]);
			}),
		);
	});

	test("lead back to their EtcdStorage by their names alone", () => {
		fc.assert(
			fc.property(anyStorage, (storage) => {
				for (const object of all(storage))
					if (isOwnedBy(object, storage))
						expect(possibleOwners(object.metadata.name)).toContain(
							storage.metadata.name,
						);
			}),
		);
	});

	test("are the same whenever they are made", () => {
		fc.assert(
			fc.property(anyStorage, (storage) => {
				expect(all(storage)).toEqual(all(structuredClone(storage)));
			}),
		);
	});
});

describe.each([
	["gateways", environment, false],
	["etcd's own proxies", etcdEnvironment, true],
])("the workload of %s", (_, environment, rolls) => {
	const deployment = (
		change: (made: Material, spec: Spec) => void,
		running?: Deployment,
	) => {
		const storage = sample();
		const spec = specOf(storage);
		const made = material(spec);
		change(made, spec);
		const [, found] = workload(storage, environment, spec, made, running);
		return JSON.stringify(found);
	};
	const before = deployment(() => {});

	test.each<[string, (made: Material, spec: Spec) => void]>([
		[
			"another client CA",
			(made) => {
				made.signers.client.current = authority("another", "CN=another");
			},
		],
		[
			"another CA of the core",
			(made) => {
				made.coreCA = "another";
			},
		],
	])(
		`${rolls ? "rolls" : "does not roll"} its pods for %s, which ${rolls ? "etcd reads only at its start" : "a gateway takes up while it runs"}`,
		(_, change) => {
			if (rolls) expect(deployment(change)).not.toBe(before);
			else expect(deployment(change)).toBe(before);
		},
	);

	test("stays as it is for a renewed leaf and for another serving CA: those are read at every handshake", () => {
		const renewed = deployment((made) => {
			made.signers.serving.bundle = "another";
			made.signers.serving.current = authority("another", "CN=another");
			made.leaves.server = {
				pair: { certificate: "another", key: "another" },
				facts: facts("CN=another", 0),
			};
		});
		expect(renewed).toBe(before);
	});

	test("stays as it is while the core's CA is bad", () => {
		const bad = (made: Material) => {
			made.coreCA = "";
		};
		expect(deployment(bad, JSON.parse(before))).toBe(before);
	});

	test("is done with a request within the grace that a pod has", () => {
		const { spec } = JSON.parse(before).spec.template;
		const [{ lifecycle }] = spec.containers;
		const drainMs = Number(
			parseDuration(gatewayFlags["drain-timeout"].default),
		);
		const graceS = spec.terminationGracePeriodSeconds ?? 30;
		expect(lifecycle.preStop.sleep.seconds + drainMs / 1000).toBeLessThan(
			graceS,
		);
	});
});

test("gateways and etcd's own proxies take each other's place: nothing of the Deployment but its pods differs", () => {
	const [gateway, etcd] = [environment, etcdEnvironment].map((environment) => {
		const spec = specOf(sample());
		return workload(sample(), environment, spec, material(spec));
	});
	const without = (objects: KubeObject[] = []) =>
		JSON.parse(JSON.stringify(objects), (key, value) =>
			["annotations", "containers"].includes(key) ? undefined : value,
		);
	expect(without(gateway)).toEqual(without(etcd));
});

test("gateways are told a command line that they take, and their own endpoint", () => {
	const spec = specOf(sample());
	const [service, deployment] = workload(
		sample(),
		environment,
		spec,
		material(spec),
	) as [Json, Json];
	const [{ command, args, ports, volumeMounts }] =
		deployment.spec.template.spec.containers;
	expect(command).toEqual([
		"/usr/local/bin/etcdproxy-controller",
		"grpc-proxy",
		"start",
	]);
	const options = parseGatewayOptions(args) as GatewayOptions;
	expect(options).toMatchObject({
		endpoints: environment.coreUrls,
		namespace: "/sample-apiserver/",
		"advertise-client-url": `https://${service.metadata.name}.${environment.namespace}.svc:2379`,
	});
	for (const [flag, port] of [
		["listen-addr", ports[0].containerPort],
		["metrics-addr", ports[1].containerPort],
	] as const)
		expect(options[flag]).toEndWith(`0.0.0.0:${port}`);
	for (const flag of [
		"cacert",
		"cert",
		"key",
		"trusted-ca-file",
		"cert-file",
		"key-file",
	] as const)
		expect(volumeMounts.map((one: Json) => one.mountPath)).toContain(
			dirname(options[flag]),
		);
});

test.each([
	["gcr.io/etcd-development/etcd:v3.7.3", "etcd"],
	["quay.io/coreos/etcd", "etcd"],
	["quay.io/coreos/etcd:v3.5.13@sha256:0123abcd", "etcd"],
	["quay.io/coreos/etcd@sha256:0123abcd", "etcd"],
	["registry:5000/etcd", "etcd"],
	["localhost:5000/mirror/etcd:latest", "etcd"],
	["etcd", "etcd"],
	["etcd:5000", "etcd"],
	["etcd:5000/etcdproxy-controller", "gateway"],
	["etcd/etcdproxy-controller:v1", "gateway"],
	["etcd.example.com/proxy", "gateway"],
	["xmudrii/etcdproxy-controller:latest", "gateway"],
	["localhost/etcdproxy-controller:dev", "gateway"],
	["registry/my-etcd:v1", "gateway"],
	["registry/etcd-gateway:v1", "gateway"],
	["registry/proxy:etcd", "gateway"],
	["registry/proxy@sha256:etcd", "gateway"],
	["bitnami/etcd", "etcd"],
] as const)("%s runs %s", (image, plane) => {
	expect(dataPlane(image)).toBe(plane);
});

describe("a Deployment", () => {
	test.each<[string, Deployment["status"], boolean, number]>([
		["says nothing yet", undefined, false, 0],
		[
			"is available",
			{
				readyReplicas: 3,
				conditions: [{ type: "Available", status: "True" }],
			},
			true,
			3,
		],
		[
			"has fewer pods than it takes",
			{
				readyReplicas: 1,
				conditions: [{ type: "Available", status: "False" }],
			},
			false,
			1,
		],
		[
			"only progresses",
			{ conditions: [{ type: "Progressing", status: "True" }] },
			false,
			0,
		],
	])("that %s is told so", (_, status, available, ready) => {
		const found = {
			spec: { replicas: 3 },
			...(status && { status }),
		} as Deployment;
		expect(availability(found)).toEqual({ available, ready, wanted: 3 });
	});

	test("that is not there is not available", () => {
		expect(availability(undefined)).toEqual({
			available: false,
			ready: 0,
			wanted: 0,
		});
	});
});

describe("a signer's Secret", () => {
	type Signers = Material["signers"]["client"];
	const missing = { missing: true } as const;
	const cross = facts("", END, "cross");
	const next = authority("next", "CN=next");
	const former = authority("former", "CN=former");
	const secretOf = (more: Partial<Signers>) => {
		const storage = sample();
		const { serving } = material(specOf(storage)).signers;
		const signers = { ...serving, ...more };
		return signerSecret(storage, environment, "serving", signers);
	};

	test.each<[string, Partial<Signers>, string[]]>([
		["nothing is under way", {}, ["tls.crt", "tls.key"]],
		[
			"the next one is published",
			{ next, nextCross: cross },
			["next-cross.crt", "next.crt", "next.key", "tls.crt", "tls.key"],
		],
		[
			"the next one is published and nobody could certify it",
			{ next },
			["next.crt", "next.key", "tls.crt", "tls.key"],
		],
		["it is lost", { current: missing, next }, ["next.crt", "next.key"]],
		[
			"it is unreadable",
			{ current: { unreadable: "damaged PEM" }, next },
			["next.crt", "next.key"],
		],
		[
			"it is new, and not known to be trusted by all",
			{ cross, previous: former },
			["cross.crt", "previous.crt", "previous.key", "tls.crt", "tls.key"],
		],
		[
			"it is new, and the former one's key was lost",
			{ previous: { facts: former.facts } },
			["previous.crt", "tls.crt", "tls.key"],
		],
		["its former one retires", { cross }, ["cross.crt", "tls.crt", "tls.key"]],
	])("holds, while %s, what belongs to that and no more", (_, more, keys) => {
		const { data } = secretOf(more);
		expect(Object.keys(data ?? {}).sort()).toEqual(
			[...keys, "ca-bundle.crt"].sort(),
		);
	});

	test("holds under each key what the key says", () => {
		const secret = secretOf({
			cross,
			next,
			nextCross: cross,
			previous: former,
		});
		for (const [key, text] of Object.entries({
			"tls.crt": "certificate of the serving signer",
			"tls.key": "key of the serving signer",
			"next.crt": "certificate of the next",
			"next.key": "key of the next",
			"previous.crt": "certificate of the former",
			"previous.key": "key of the former",
			"cross.crt": "cross",
			"next-cross.crt": "cross",
			"ca-bundle.crt": "bundle of the serving domain",
		}))
			expect([key, secretText(secret, key)]).toEqual([key, text]);
	});

	test("remembers which requests it is the answer to, in words that are read back", () => {
		for (const answered of [
			{},
			{ rotate: "monthly" },
			{ compromised: "stolen laptop" },
			{ rotate: "a", compromised: "b" },
		])
			expect(readAnswered("serving", secretOf({ answered }))).toEqual(answered);
		expect(readAnswered("client", undefined)).toEqual({});
	});

	test("is described by the newest CA, and by none where there is none", () => {
		const signedBy = "etcd.xmudrii.com/certificate-signed-by";
		const described = (more: Partial<Signers>) =>
			secretOf(more).metadata.annotations?.[signedBy];
		expect(described({})).toContain("serving CA");
		expect(described({ next })).toBe("CN=next");
		expect(described({ current: missing })).toBeUndefined();
	});
});

test("no bundle, no certificate and no workload ever carries a signer's key", () => {
	const storage = sample();
	const spec = specOf(storage);
	const made = material(spec);
	for (const domain of domains) {
		made.signers[domain].next = authority("next signer", "CN=next");
		made.signers[domain].previous = authority("former signer", "CN=former");
	}
	const text = JSON.stringify([
		bundles(storage, environment, spec.targets, made),
		certificates(storage, environment, spec.targets, made),
		workload(storage, environment, spec, made),
	]).replace(/[A-Za-z\d+/=]{16,}/g, (word) =>
		Buffer.from(word, "base64").toString(),
	);
	expect(text).toContain("key of server");
	expect(text).not.toMatch(/key of the/);
});

test("a Secret's value is text again, and absent when its key is", () => {
	const target = { kind: "Secret" as const, name: "a", namespace: "b" };
	const secret = { ...emptyTarget(target), data: { key: "xb7DpCDwn5C0" } };
	expect(secretText(secret, "key")).toBe("žä 🐴");
	expect(secretText(secret, "other")).toBeUndefined();
	expect(secretText(emptyTarget(target), "key")).toBeUndefined();
});

describe("whose object it is", () => {
	const owned = (owner: object): KubeObject => ({
		apiVersion: "v1",
		kind: "Secret",
		metadata: {
			name: "x",
			ownerReferences: [
				{
					apiVersion: "etcd.xmudrii.com/v1alpha1",
					kind: "EtcdStorage",
					name: "sample-apiserver",
					uid: sample().metadata.uid ?? "",
					...owner,
				},
			],
		},
	});
	test.each<[string, object, boolean, string | undefined]>([
		["this very EtcdStorage's", {}, true, "sample-apiserver"],
		[
			"a predecessor's of the same name",
			{ uid: "other" },
			false,
			"sample-apiserver",
		],
		["another kind's", { kind: "Deployment" }, false, undefined],
		[
			"another group's EtcdStorage's",
			{ apiVersion: "example.com/v1", uid: "other" },
			false,
			undefined,
		],
		[
			"another version's",
			{ apiVersion: "etcd.xmudrii.com/v1" },
			true,
			"sample-apiserver",
		],
	])("%s is told", (_, owner, isOwned, name) => {
		expect(isOwnedBy(owned(owner), sample())).toBe(isOwned);
		expect(ownerOf(owned(owner))).toBe(name);
	});

	test.each<[string, string[]]>([
		["etcd-a", ["a"]],
		["a-ca-cert", ["a"]],
		["etcd-a-server-cert", ["a-server-cert", "etcd-a"]],
		["a-b-client-signer", ["a-b"]],
		["a-serving-signer", ["a"]],
		["etcd", []],
		["etcd-", []],
		["-ca-cert", []],
		["something", []],
	])("%p could be one of %p", (name, owners) => {
		expect(possibleOwners(name)).toEqual(owners);
	});

	test("names are the documented ones", () => {
		expect([
			names.workload("a"),
			names.clientCA("a"),
			names.serverCert("a"),
			names.signer("a", "client"),
			names.signer("a", "serving"),
		]).toEqual([
			"etcd-a",
			"a-ca-cert",
			"a-server-cert",
			"a-client-signer",
			"a-serving-signer",
		]);
	});
});

describe("a live object is as desired", () => {
	test.each<[string, unknown, unknown, boolean]>([
		["when it is the same", { a: 1 }, { a: 1 }, true],
		["when it has more", { a: { b: 1 } }, { a: { b: 1, c: 2 }, d: 3 }, true],
		["but not when a value differs", { a: 1 }, { a: 2 }, false],
		["but not when a type differs", { a: 1 }, { a: "1" }, false],
		["but not when a key is missing", { a: 1 }, {}, false],
		["but not when it is not there at all", { a: 1 }, undefined, false],
		["but not when it is null", { a: { b: 1 } }, { a: null }, false],
		["but not when a list is longer", { a: [1] }, { a: [1, 2] }, false],
		["but not when a list is shorter", { a: [1, 2] }, { a: [1] }, false],
		["but not when a list has another order", [1, 2], [2, 1], false],
		["when a list's items have more", [{ a: 1 }], [{ a: 1, b: 2 }], true],
		["but not when a list is a map", [1], { 0: 1, length: 1 }, false],
		["but not when a map is a list", { 0: 1 }, 1, false],
		["but not when false is missing", { a: false }, {}, false],
	])("%s", (_, wanted, live, expected) => {
		expect(isSubset(wanted, live)).toBe(expected);
	});

	const json = fc.jsonValue({ maxDepth: 4 });
	/** The value with more in each of its maps. */
	const withMore = (value: unknown, more: unknown): unknown => {
		if (Array.isArray(value)) return value.map((item) => withMore(item, more));
		if (typeof value !== "object" || value === null) return value;
		return {
			"added by others": more,
			...Object.fromEntries(
				Object.entries(value).map(([key, inner]) => [
					key,
					withMore(inner, more),
				]),
			),
		};
	};

	test("with itself, and with whatever others have added to its maps", () => {
		fc.assert(
			fc.property(json, json, (value, more) => {
				expect(isSubset(value, structuredClone(value))).toBeTrue();
				expect(isSubset(value, withMore(value, more))).toBeTrue();
			}),
		);
	});

	test("only if merging the desired into it would change nothing", () => {
		const merge = (live: unknown, wanted: unknown): unknown => {
			const isMap = (value: unknown): value is Record<string, unknown> =>
				typeof value === "object" && value !== null && !Array.isArray(value);
			if (!isMap(wanted) || !isMap(live)) return wanted;
			const merged = Object.entries(wanted).map(([key, value]) => [
				key,
				key in live ? merge(live[key], value) : value,
			]);
			return { ...live, ...Object.fromEntries(merged) };
		};
		const flat = fc.dictionary(
			fc.constantFrom("a", "b", "c"),
			fc.oneof(
				fc.integer({ min: 0, max: 1 }),
				fc.dictionary(
					fc.constantFrom("a", "b"),
					fc.integer({ min: 0, max: 1 }),
				),
			),
		);
		fc.assert(
			fc.property(flat, flat, (wanted, live) => {
				const same = Bun.deepEquals(merge(live, wanted), live, true);
				expect(isSubset(wanted, live)).toBe(same);
			}),
			{ numRuns: 2000 },
		);
	});

	test("only without keys in its data that are to go", () => {
		const of = (data?: Record<string, string>): Data => ({
			...emptyTarget({ kind: "Secret", name: "a", namespace: "b" }),
			...(data && { data }),
		});
		for (const [wanted, live, left] of [
			[{ a: "1" }, { a: "1" }, false],
			[{ a: "1" }, { a: "1", b: "2" }, true],
			[{ a: "1", b: "2" }, { a: "1" }, false],
			[{ a: "1" }, undefined, false],
			// A Deployment has none.
			[undefined, { a: "1" }, false],
		] as const)
			expect([wanted, live, hasLeftovers(of(wanted), of(live))]).toEqual([
				wanted,
				live,
				left,
			]);
	});

	test("only without fields that we have applied and do not ask for any more", () => {
		const spec = specOf(sample());
		const [service, deployment] = workload(
			sample(),
			environment,
			spec,
			material(spec),
		) as [Json, Json];
		const applied = (fieldsV1: FieldSet, more = {}) => ({
			metadata: {
				managedFields: [
					{ ...entry(FIELD_MANAGER, "Apply", fieldsV1), ...more },
				],
			},
		});
		const pod = (fields: FieldSet) => ({
			"f:spec": { "f:template": { "f:spec": fields } },
		});
		const container = (fields: FieldSet, name = "etcdproxy") =>
			pod({ "f:containers": { [`k:{"name":"${name}"}`]: fields } });
		const port = (number: number, protocol: string) => ({
			"f:ports": {
				[`k:{"${protocol === "" ? "containerPort" : "port"}":${number},"protocol":"${protocol || "TCP"}"}`]:
					{ ".": {} },
			},
		});
		const named = structuredClone(deployment);
		delete named.spec.template.spec.priorityClassName;
		for (const [desired, fields, left] of [
			[deployment, pod({ "f:priorityClassName": {} }), false],
			[named, pod({ "f:priorityClassName": {} }), true],
			[named, pod({ "f:tolerations": {} }), true],
			[named, container({ ".": {}, "f:image": {} }), false],
			[named, container({ "f:env": {} }), true],
			[named, container({ ".": {} }, "more"), true],
			// The protocol is TCP where it is not said.
			[named, container(port(2379, "")), false],
			[named, container(port(2380, "")), true],
			[service, { "f:spec": port(2379, "TCP") }, false],
			[
				{ metadata: { finalizers: ["a"] } },
				{ "f:metadata": { "f:finalizers": { ".": {}, 'v:"a"': {} } } },
				false,
			],
			[
				{ metadata: { finalizers: ["a"] } },
				{ "f:metadata": { "f:finalizers": { 'v:"b"': {} } } },
				true,
			],
		] as [Json, FieldSet, boolean][]) {
			expect([fields, hasLeftovers(desired, applied(fields) as Json)]).toEqual([
				...[fields, left],
			]);
			// What others have applied, or what is of the status, is no concern of ours.
			for (const more of [
				{ manager: "kubectl" },
				{ operation: "Update" },
				{ subresource: "status" },
			])
				expect(hasLeftovers(desired, applied(fields, more) as Json)).toBe(
					false,
				);
		}
	});

	test("or not, whatever nonsense lies there", () => {
		fc.assert(
			fc.property(json, fc.anything(), (wanted, live) => {
				expect(isSubset(wanted, live)).toBeBoolean();
			}),
		);
	});
});

type FieldSet = { [field: string]: FieldSet };
const entry = (
	manager: string,
	operation: "Apply" | "Update",
	fieldsV1: FieldSet,
	subresource?: string,
): ManagedFieldsEntry => ({
	manager,
	operation,
	apiVersion: "v1",
	time: "2026-11-23T12:00:00Z",
	fieldsType: "FieldsV1",
	fieldsV1,
	...(subresource !== undefined && { subresource }),
});
const data = (key: string): FieldSet => ({ "f:data": { [`f:${key}`]: {} } });
const ours = entry(FIELD_MANAGER, "Apply", data("ours"));

describe("field sets of others", () => {
	test.each<[string, ManagedFieldsEntry[] | undefined]>([
		["there are none", undefined],
		["all are ours", [ours]],
		["ours are from creating it", [entry(FIELD_MANAGER, "Update", data("a"))]],
		[
			"they are about the status",
			[ours, entry("kubelet", "Update", { "f:status": {} }, "status")],
		],
		[
			"they are about metadata only",
			[
				ours,
				entry("kubectl-label", "Update", {
					"f:metadata": { "f:labels": { "f:team": {} } },
				}),
			],
		],
		[
			"kubectl rollout restart wrote one",
			[
				ours,
				entry("kubectl-rollout", "Update", {
					"f:spec": {
						"f:template": {
							"f:metadata": {
								"f:annotations": {
									".": {},
									"f:kubectl.kubernetes.io/restartedAt": {},
								},
							},
						},
					},
				}),
			],
		],
		[
			"the Deployment controller wrote its revision",
			[
				ours,
				entry("kube-controller-manager", "Update", {
					"f:metadata": {
						"f:annotations": { "f:deployment.kubernetes.io/revision": {} },
					},
				}),
			],
		],
	])("are left alone when %s", (_, managedFields) => {
		expect(takeOver(managedFields)).toBeUndefined();
	});

	test.each<[string, FieldSet]>([
		["a key of a ConfigMap", data("theirs")],
		["a key of a Secret, as text", { "f:stringData": { "f:theirs": {} } }],
		["a binary key", { "f:binaryData": { "f:theirs": {} } }],
		["the replicas", { "f:spec": { "f:replicas": {} } }],
		[
			"a container",
			{
				"f:spec": {
					"f:template": {
						"f:spec": {
							"f:containers": { 'k:{"name":"theirs"}': { ".": {} } },
						},
					},
				},
			},
		],
		[
			"a label of the pods",
			{
				"f:spec": {
					"f:template": { "f:metadata": { "f:labels": { "f:theirs": {} } } },
				},
			},
		],
	])("are taken over when they hold %s", (_, fields) => {
		const theirs = entry("kubectl-edit", "Update", fields);
		const status = entry("kubelet", "Update", { "f:status": {} }, "status");
		const after = takeOver([theirs, status, ours]);
		expect(after).toEqual([
			status,
			{
				...ours,
				fieldsV1: expect.objectContaining({
					"f:data": expect.objectContaining({ "f:ours": {} }),
				}),
			},
		]);
		expect(after?.[1]?.fieldsV1).toMatchObject(fields);
	});

	test("leave what was said of the object's metadata along with them to whom it is", () => {
		const metadata = {
			"f:metadata": { "f:finalizers": { 'v:"example.com/x"': {} } },
		};
		const theirs = entry("edit", "Update", { ...data("a"), ...metadata });
		expect(takeOver([theirs, ours])).toEqual([
			{ ...theirs, fieldsV1: metadata },
			{
				...ours,
				fieldsV1: expect.objectContaining({
					"f:data": expect.objectContaining({ "f:a": {} }),
				}),
			},
		]);
	});

	test("of several are taken over together, also before anything is ours", () => {
		const after = takeOver([
			entry("2018", "Update", data("a")),
			entry("helm", "Apply", data("b")),
		]);
		expect(after).toMatchObject([
			{
				manager: FIELD_MANAGER,
				operation: "Apply",
				fieldsV1: { "f:data": { "f:a": {}, "f:b": {} } },
			},
		]);
		expect(after).toHaveLength(1);
	});

	test("also what we have created is taken over before something of it goes: an apply would leave it", () => {
		const created = entry(FIELD_MANAGER, "Update", data("a"));
		expect(takeOver([created], true)).toEqual([
			{ ...created, operation: "Apply" },
		]);
		const after = takeOver([created, ours], true);
		expect(after).toHaveLength(1);
		expect(pathsOf(after ?? [])).toEqual(pathsOf([created, ours]));
		expect(takeOver([ours], true)).toBeUndefined();
	});

	test("but for a Secret's type, which nobody can change: an apply without it would", () => {
		const theirs = entry("2018", "Update", { ...data("a"), "f:type": {} });
		expect(takeOver([theirs])).toEqual([
			{
				...{ ...theirs, manager: FIELD_MANAGER, operation: "Apply" },
				fieldsV1: data("a"),
			},
		]);
		expect(takeOver([{ ...theirs, fieldsV1: { "f:type": {} } }])).toBe(
			undefined,
		);
	});

	test("are not changed in place: they are the cache's", () => {
		const before = [entry("x", "Update", data("a")), ours];
		const copy = structuredClone(before);
		takeOver(before);
		expect(before).toEqual(copy);
	});

	const field = fc.constantFrom("f:a", "f:b", 'k:{"name":"x"}', ".");
	const leaf = fc.dictionary(field, fc.constant({} as FieldSet), {
		maxKeys: 3,
	});
	const anyFields: fc.Arbitrary<FieldSet> = fc.dictionary(
		fc.constantFrom("f:data", "f:spec", "f:metadata", "f:status"),
		fc.oneof(leaf, fc.dictionary(field, leaf, { maxKeys: 3 })),
	);
	const anyEntry = fc
		.tuple(
			fc.constantFrom(FIELD_MANAGER, "kubectl-edit", "helm", "2018"),
			fc.constantFrom("Apply" as const, "Update" as const),
			anyFields,
			fc.constantFrom(undefined, undefined, "status"),
		)
		.map((made) => entry(...made));
	/** Each manager has one entry per operation and subresource: https://kubernetes.io/docs/reference/using-api/server-side-apply/ */
	const anyManaged = fc.uniqueArray(anyEntry, {
		maxLength: 6,
		selector: ({ manager, operation, subresource }) =>
			`${manager} ${operation} ${subresource}`,
	});
	const paths = (fields: FieldSet, path = ""): string[] =>
		Object.entries(fields).flatMap(([key, inner]) => [
			`${path}/${key}`,
			...paths(inner, `${path}/${key}`),
		]);
	const pathsOf = (entries: ManagedFieldsEntry[]) =>
		[
			...new Set(entries.flatMap((one) => paths(one.fieldsV1 as FieldSet))),
		].sort();

	test("once taken over need not be taken over again, and no field is without an owner", () => {
		fc.assert(
			fc.property(anyManaged, (before) => {
				const after = takeOver(before);
				if (after === undefined) return;
				expect(takeOver(after)).toBeUndefined();
				expect(pathsOf(after)).toEqual(pathsOf(before));
				const key = ({ manager, operation, subresource }: ManagedFieldsEntry) =>
					`${manager} ${operation} ${subresource}`;
				expect(new Set(after.map(key)).size).toBe(after.length);
			}),
			{ numRuns: 1000 },
		);
	});
});
