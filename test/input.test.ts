/** What a user may write into an EtcdStorage, with the CRD as it is and with an older one, against a real API server. */

import { beforeAll, describe, expect, test } from "bun:test";
import type { EtcdStorage } from "../etcdstorage.ts";
import { material, opensslVerify } from "./client.ts";
import { etcdStorage, type Json, NAMESPACE, until } from "./harness.ts";
import { stage } from "./stage.ts";

const on = stage();

const kubectl = (...args: string[]) => on.cluster.kubectl(args);
const own = (...args: string[]) => kubectl("-n", NAMESPACE, ...args);
const merge = (kind: string, name: string, patch: object, ...more: string[]) =>
	own(
		...["patch", kind, name, "--type=merge", "-p", JSON.stringify(patch)],
		...more,
	);
const LONGEST = `a${"-long".repeat(11)}er`;

describe.concurrent("at admission", () => {
	const targets = (...namespaces: string[]) =>
		namespaces.map((namespace) => ({ name: "target", namespace }));
	const duration =
		"must be a Go duration greater than zero and less than 292 years, such as 730h or 1h30m";
	test.each([
		[
			...["a name of 59 characters", `${LONGEST}x`, {}],
			"metadata.name must be a DNS label of at most 58 characters",
		],
		[
			...["a name with a dot", "with.dot", {}],
			"metadata.name must be a DNS label of at most 58 characters",
		],
		[
			...["the prefix of a kube-apiserver", "registry", {}],
			"metadata.name must not be registry",
		],
		...["730", "junk", "", "0s", "-1h", "9999999h", "1d", "1h 30m"].map(
			(value) => [
				`the duration "${value}"`,
				"bad",
				{ servingCertificateValidity: value },
				duration,
			],
		),
		[
			...["a missing duration", "bad", { signingCertificateValidity: null }],
			"spec.signingCertificateValidity: Required value",
		],
		["no replicas", "bad", { replicas: 0 }, "greater than or equal to 1"],
		["too many replicas", "bad", { replicas: 101 }, "less than or equal to"],
		[
			...["the same target twice", "bad"],
			{ clientCertSecret: targets("a", "b", "a") },
			"spec.clientCertSecret[2]: Duplicate value",
		],
		[
			...["a target without a namespace", "bad"],
			{ caCertConfigMap: [{ name: "a" }] },
			"spec.caCertConfigMap[0].namespace: Required value",
		],
		[
			...["a target whose name leads elsewhere", "bad"],
			{ caCertConfigMap: [{ name: "../secrets", namespace: "a" }] },
			"spec.caCertConfigMap[0].name",
		],
	] as [string, string, object, string][])(
		"%s is refused with a word about what is right",
		async (_, name, spec, message) => {
			const bad = JSON.stringify(etcdStorage(name, "api", spec));
			const args = ["apply", "--dry-run=server", "-f", "-"];
			await expect(on.cluster.kubectl(args, bad)).rejects.toThrow(message);
		},
		20_000,
	);

	test("a name of 58 characters is accepted and works", async () => {
		expect(LONGEST).toHaveLength(58);
		await on.api.tenant(LONGEST);
		await on.api.condition(
			LONGEST,
			"Deployed",
			/^False DeploymentNotAvailable: /,
		);
		const { server, servingCA } = await material(on.api, LONGEST);
		const host = `etcd-${LONGEST}.${NAMESPACE}.svc`;
		expect(
			opensslVerify("sslserver", server, servingCA, "-verify_hostname", host),
		).toBe("OK");
	}, 20_000);

	test("a validity of centuries is accepted and works, a short one with a warning", async () => {
		await on.api.tenant("centuries", {
			signingCertificateValidity: "2500000h",
			servingCertificateValidity: "2000000h",
			clientCertificateValidity: "5m",
		});
		const now = await material(on.api, "centuries");
		expect(opensslVerify("sslserver", now.server, now.servingCA)).toBe("OK");
		expect(opensslVerify("sslclient", now.client, now.clientCA)).toBe("OK");
		const warning = await on.api.condition(
			"centuries",
			"ValidityWarning",
			/True/,
		);
		expect(warning).toContain("spec.clientCertificateValidity 5m is short");
	}, 20_000);

	test("a certificate that is to outlive its signer is accepted, capped and said", async () => {
		await on.api.tenant("capped", {
			signingCertificateValidity: "100h",
			servingCertificateValidity: "200h",
		});
		const storage: EtcdStorage = await on.api.get("EtcdStorage", "capped");
		const [, signer, server] = storage.status?.certificates ?? [];
		expect(signer?.name).toBe("serving-signer");
		expect(server?.name).toBe("server");
		expect(server?.notAfter).toBe(signer?.notAfter ?? "");
		const warning = await on.api.condition(
			"capped",
			"ValidityWarning",
			/^True /,
		);
		expect(warning).toContain(
			"spec.servingCertificateValidity 200h0m0s is longer than spec.signingCertificateValidity",
		);
		expect(await on.api.events("capped", /^Warning /, 1)).toEqual([
			warning.replace("True NotAsWritten", "Warning ValidityWarning"),
		]);
	}, 20_000);
});

describe("with an older CRD", () => {
	beforeAll(async () => {
		const name = "etcdstorages.etcd.xmudrii.com";
		const crd = JSON.parse(await kubectl("get", "crd", name, "-o", "json"));
		crd.spec.versions[0].schema.openAPIV3Schema = {
			type: "object",
			"x-kubernetes-preserve-unknown-fields": true,
		};
		await on.cluster.kubectl(["replace", "-f", "-"], JSON.stringify(crd));
		await until(
			() =>
				on.cluster
					.kubectl(
						["create", "--dry-run=server", "-f", "-"],
						JSON.stringify(etcdStorage("lax", "api", { replicas: 0 })),
					)
					.then(Boolean, () => false),
			"the API server refuses nothing any more",
		);
		await on.api.tenant("sound");
	}, 30_000);

	type Row = [what: string, name: string, spec: Json, words: string];
	const invalid: Row[] = [
		...["730", "junk", "", "0s", "-1h", "9999999h", 730, null, {}].map(
			(value, index): Row => [
				`the duration ${JSON.stringify(value)}`,
				`duration-${index}`,
				{ clientCertificateValidity: value },
				`spec.clientCertificateValidity ${JSON.stringify(value ?? undefined)} must be a Go duration greater than zero and less than 292 years, such as 730h or 1h30m`,
			],
		),
		...[0, -1, 1.5, 1000, "3"].map(
			(value, index): Row => [
				`${JSON.stringify(value)} replicas`,
				`replicas-${index}`,
				{ replicas: value },
				`spec.replicas ${JSON.stringify(value)} must be a whole number from 1 to 100`,
			],
		),
		[
			"a target that is no list",
			"no-list",
			{ caCertConfigMap: { name: "a", namespace: "b" } },
			"spec.caCertConfigMap must be a list",
		],
		[
			"an empty target",
			"no-target",
			{ clientCertSecret: [null] },
			"spec.clientCertSecret[0] needs the name and the namespace of a Secret",
		],
		[
			"a target whose name leads elsewhere",
			"elsewhere",
			{ clientCertSecret: [{ name: "../configmaps/a", namespace: "b" }] },
			"spec.clientCertSecret[0] needs the name and the namespace of a Secret",
		],
		[
			"the same target twice",
			"twice",
			{
				caCertConfigMap: [
					{ name: "a", namespace: "b" },
					{ name: "a", namespace: "b" },
				],
			},
			"spec.caCertConfigMap names ConfigMap b/a twice; name it once",
		],
		["a name with a dot", "with.dot", {}, 'metadata.name "with.dot" must be'],
		[
			"the prefix of a kube-apiserver",
			"registry",
			{},
			'metadata.name "registry" is not allowed',
		],
		[
			"a name of 59 characters",
			`${LONGEST}x`,
			{},
			"must be a DNS label of at most 58 characters",
		],
	];

	test("every invalid spec is told on its own EtcdStorage, and others are as well as before", async () => {
		const bad = invalid.map(([, name, spec]) => etcdStorage(name, "api", spec));
		const { spec: _, ...specless } = etcdStorage("specless", "api") as Json;
		await on.cluster.apply(...bad, specless);
		for (const [what, name, , words] of invalid)
			for (const type of ["CertificatesReady", "Deployed", "Ready"]) {
				const message = await on.api.condition(
					name,
					type,
					/^False InvalidSpec: /,
				);
				expect([what, message]).toEqual([what, expect.stringContaining(words)]);
			}
		await on.api.condition("specless", "Ready", /^False InvalidSpec: /);
		await on.api.tenant("sound-as-well");
		await on.api.condition("sound", "CertificatesReady", /^True /);
		expect(on.controller.log()).not.toContain("TypeError");
	}, 60_000);

	test("a spec that becomes invalid stops nothing that runs, and all is well once it is valid again", async () => {
		const before = await material(on.api, "sound");
		const deployment = await on.api.get("Deployment", "etcd-sound");
		await merge("etcdstorage", "sound", {
			spec: { servingCertificateValidity: "junk", replicas: 0 },
		});
		await on.api.condition("sound", "Ready", /^False InvalidSpec: /);
		expect(await material(on.api, "sound")).toEqual(before);
		const now = await on.api.get("Deployment", "etcd-sound");
		expect(now.spec).toEqual(deployment.spec);
		await merge("etcdstorage", "sound", {
			spec: { servingCertificateValidity: "730h", replicas: 3 },
		});
		await on.api.condition("sound", "CertificatesReady", /^True /, 10_000);
		expect(await material(on.api, "sound")).toEqual(before);
	}, 20_000);

	test("an invalid EtcdStorage can be deleted, and its targets are cleaned", async () => {
		await on.api.tenant("leaving");
		await merge("etcdstorage", "leaving", {
			spec: { clientCertSecret: "junk" },
		});
		await on.api.condition("leaving", "Ready", /^False InvalidSpec: /);
		await kubectl("delete", "etcdstorage", "leaving", "--timeout=5s");
		const namespace = "k8s-leaving";
		const secret = await on.api.get("Secret", "etcd-client-cert", namespace);
		expect(secret.data).toBeUndefined();
		await kubectl("delete", "etcdstorage", "with.dot", "--timeout=5s");
	}, 20_000);

	test("an EtcdStorage is not hurt by the invalid one whose targets it names", async () => {
		await on.api.tenant("odd");
		await merge("etcdstorage", "odd", { spec: { clientCertSecret: 1 } });
		await kubectl(
			...["patch", "etcdstorage", "odd", "--subresource=status"],
			...["--type=merge", "-p", '{"status":{"targets":[null]}}'],
		);
		await on.cluster.apply(etcdStorage("even", "k8s-odd"));
		await on.api.condition("even", "CertificatesReady", /./);
		expect(on.controller.log()).not.toContain("TypeError");
	}, 20_000);

	test("a validity too short to be delivered is lengthened, and said", async () => {
		await on.api.tenant("hasty", { clientCertificateValidity: "1ns" });
		const storage: EtcdStorage = await on.api.get("EtcdStorage", "hasty");
		const leaf = storage.status?.certificates?.[3];
		const life =
			Date.parse(leaf?.notAfter ?? "") - Date.parse(leaf?.notBefore ?? "");
		expect(life).toBe(6 * 60_000); // a minute, and five backdated
		const warning = await on.api.condition(
			"hasty",
			"ValidityWarning",
			/^True /,
		);
		expect(warning).toContain(
			"spec.clientCertificateValidity 1ns is too short to be delivered; 1m0s is used",
		);
		await kubectl("delete", "etcdstorage", "hasty", "--timeout=5s");
	}, 20_000);

	test.each([
		["a text", "junk"],
		["lists that are texts", { conditions: "junk", targets: "junk" }],
		["lists of nothing", { conditions: [null], targets: [null, {}] }],
		[
			"a target that leads elsewhere",
			{ targets: [{ kind: "Secret", name: "../../x", namespace: "a" }] },
		],
	])(
		"a status that is %s is put right",
		async (_, status) => {
			const before = (await on.api.get("EtcdStorage", "sound")).status;
			await kubectl(
				...["patch", "etcdstorage", "sound", "--subresource=status"],
				...["--type=merge", "-p", JSON.stringify({ status })],
			);
			await until(
				async () => {
					const { status: now } = await on.api.get("EtcdStorage", "sound");
					return (
						Bun.deepEquals(now?.targets, before.targets) &&
						now?.conditions?.length === before.conditions.length
					);
				},
				"it is put right",
				10_000,
			);
		},
		20_000,
	);
});
