/**
 * The replacement of signers, phase by phase, against a real API server without a kubelet. Whether certificates are
 * accepted is for openssl to say.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { type Domain, domains } from "../lifetimes.ts";
import { base64, secretText } from "./client.ts";
import {
	apiServerNamespace,
	etcdStorage,
	NAMESPACE,
	until,
} from "./harness.ts";
import {
	accepts,
	certificates,
	consumer,
	consumerRole,
	consumers,
	expectAllAccepted,
	half,
	merge,
	proxyPod,
	rotations,
	target,
} from "./rotating.ts";
import { stage } from "./stage.ts";

const on = stage();
const LONG = 120_000;
const scene = rotations(on);
const {
	record,
	kubectl,
	own,
	rotate,
	rotation,
	reaches,
	generation,
	settled,
	signer,
	bundle,
	leaf,
	expectWhole,
	phaseEvents,
	says,
	restartedFor,
	withConsumers,
	rollAll,
	deleteProxy,
	blocked,
	makeImmutable,
	recreate,
	damage,
} = scene;
beforeAll(() => scene.follow());
afterAll(() => scene.end());

/** Has another server certificate issued. */
const shorten = (name: string, servingCertificateValidity: string) =>
	kubectl(
		...["patch", "etcdstorage", name],
		...merge({ spec: { servingCertificateValidity } }),
	);

describe("a CA that is replaced on demand", () => {
	test.concurrent(
		"for clients goes through all phases, each told once, and waits for the proxies; every certificate is accepted with every bundle",
		async () => {
			const name = "demand-client";
			await on.api.tenant(name);
			const before = await settled(name, "client");
			const handed = record(name);
			await on.cluster.apply(proxyPod(name));
			await rotate(name, "client");
			const spread = await reaches(name, "client", "Spread", {
				not: before,
				waiting: new RegExp(
					`^ProxyNotUpdated: Pod ${NAMESPACE}/etcd-${name}-0 is Pending`,
				),
			});
			// All is signed by the new one, and who trusts the former one can still certify.
			const keys = Object.keys((await signer(name, "client")).data ?? {});
			expect(keys.sort()).toEqual([
				...["ca-bundle.crt", "cross.crt", "previous.crt", "previous.key"],
				...["tls.crt", "tls.key"],
			]);
			expect(await restIsAs(name, "client", before)).toBe(true);
			await deleteProxy(name);
			const retire = await reaches(name, "client", "Retire", { not: before });
			expect(retire.generation).toBe(spread.generation);
			expect(retire).not.toHaveProperty("waitingFor");
			const after = Object.keys((await signer(name, "client")).data ?? {});
			expect(after.sort()).toEqual([
				...["ca-bundle.crt", "cross.crt", "tls.crt", "tls.key"],
			]);
			expectAllAccepted("client", handed.client, [2, 2]);
			await expectWhole(name, "client");
			expect(handed.client).toMatchObject({ lost: 0 });
			expect(handed.client.next).toHaveLength(1);
			expect(await phaseEvents(name, retire.generation, "Retire")).toEqual([
				...["Publish", "Sign", "Spread", "Retire"],
			]);
			// The other domain has nothing to do with it.
			expect([handed.serving.leaves, handed.serving.bundles]).toEqual([
				[await leaf(name, "serving")],
				[await bundle(name, "serving")],
			]);
		},
		LONG,
	);

	/** While the former CA is spread from: it is trusted on. */
	const restIsAs = async (name: string, domain: Domain, former: string) =>
		certificates(await bundle(name, domain)).some(({ subject }) =>
			subject.includes(former),
		);

	test.concurrent(
		"for servers goes through all phases, and restarts one consumer after the other, each when the one before is rolled out",
		async () => {
			const name = "demand-serving";
			await withConsumers(name, 2);
			const before = await settled(name, "serving");
			const handed = record(name);
			await rotate(name, "serving");
			const { generation: ca } = await reaches(name, "serving", "Spread", {
				not: before,
			});
			expect(await restartedFor(name, "api-1")).toBe("");
			await until(
				async () => (await restartedFor(name, "api-1")) === ca,
				"the first is restarted",
				60_000,
			);
			const waiting = await reaches(name, "serving", "Spread", {
				waiting:
					/ConsumerRollingOut: Deployment \S+\/api-1 .*ConsumerWaiting: Deployment \S+\/api-2 is restarted after Deployment \S+\/api-1/,
			});
			expect(waiting.generation).toBe(ca);
			// A rollout that has begun is not one that is over.
			await says(name, "api-1", "rolling out");
			const looked = performance.now();
			await until(
				() => performance.now() - looked > 6_000,
				"it has been looked at again",
			);
			expect(await restartedFor(name, "api-2")).toBe("");
			await says(name, "api-1", "rolled out");
			await until(
				async () => (await restartedFor(name, "api-2")) === ca,
				"the second is restarted",
				60_000,
			);
			expect(rotation(name, "serving")?.phase).toBe("Spread");
			await says(name, "api-2", "rolled out");
			await reaches(name, "serving", "Retire", { not: before });
			expectAllAccepted("serving", handed.serving, [2, 2]);
			await expectWhole(name, "serving");
			expect(handed.serving.next).toHaveLength(1);
			expect(await phaseEvents(name, ca, "Retire")).toEqual([
				...["Publish", "Sign", "Spread", "Retire"],
			]);
		},
		LONG,
	);

	test.concurrent(
		"is replaced once for a reason, again for another, and not for none, which is said",
		async () => {
			const name = "demand-once";
			await on.api.tenant(name);
			const handed = record(name);
			await rotate(name, "client", "first");
			await until(() => handed.client.next.length === 1, "the first is made");
			const one = await reaches(name, "client", "Retire");
			// The reason is taken away and given again; something else happens.
			await kubectl(
				...["annotate", "etcdstorage", name],
				"etcd.xmudrii.com/rotate-client-",
			);
			await rotate(name, "client", "first");
			await rotate(name, "client", "");
			await on.api.condition(
				name,
				"ValidityWarning",
				/^True NotAsWritten: the annotation etcd\.xmudrii\.com\/rotate-client has no effect without a reason/,
			);
			await rotate(name, "client", "first");
			await on.api.condition(name, "ValidityWarning", /^False AsWritten/);
			expect(generation(name, "client")).toBe(one.generation);
			await rotate(name, "client", "second");
			await reaches(name, "client", "Retire", { not: one.generation });
			expect(handed.client.next).toHaveLength(2);
			expectAllAccepted(
				"client",
				{
					...handed.client,
					leaves: handed.client.leaves.slice(1),
					bundles: handed.client.bundles.slice(1),
				},
				[2, 2],
			);
		},
		LONG,
	);

	test.concurrent.each([...domains])(
		"of %s because it is compromised is in no bundle from one moment to the next, and all is of another one",
		async (domain) => {
			const name = `stolen-${domain}`;
			await withConsumers(name, 1);
			const first = await settled(name, domain);
			await rotate(name, domain, "so that there are two");
			const before = await reaches(
				name,
				domain,
				domain === "client" ? "Retire" : "Spread",
				{ not: first },
			);
			const [formerLeaf, formerBundle] = [
				await leaf(name, domain),
				await bundle(name, domain),
			];
			expect(certificates(formerBundle)).toHaveLength(2);
			const handed = record(name);
			await kubectl(
				...["annotate", "etcdstorage", name],
				`etcd.xmudrii.com/compromised-${domain}=stolen`,
			);
			await until(
				() => handed[domain].leaves.length === 2,
				"another certificate is handed out",
			);
			const after = await reaches(
				name,
				domain,
				domain === "client" ? "Steady" : "Spread",
				{
					not: before.generation,
				},
			);
			// None in between, and none with both.
			expect(handed[domain].bundles).toEqual([
				formerBundle,
				await bundle(name, domain),
			]);
			expect(certificates(await bundle(name, domain))).toHaveLength(1);
			const text = JSON.stringify(
				await on.api.get("ConfigMap", `${name}-ca-cert`),
			);
			for (const { raw } of certificates(formerBundle)) {
				const pem = raw.toString("base64").slice(0, 64);
				expect(text.replaceAll("\\n", "")).not.toContain(pem);
			}
			expect(accepts(domain, formerLeaf, await bundle(name, domain))).not.toBe(
				"OK",
			);
			await expectWhole(name, domain);
			if (domain === "serving") {
				await rollAll(name, 1, after.generation);
				await reaches(name, domain, "Steady", { not: before.generation });
			}
			const keys = Object.keys((await signer(name, domain)).data ?? {});
			expect(keys.filter((key) => key.startsWith("previous"))).toEqual([]);
			// Acted on once.
			await on.api.issuedBy(name, () => shorten(name, "500h"));
			expect(generation(name, domain)).toBe(after.generation);
		},
		LONG,
	);
});

describe("while the next CA is published", () => {
	test.concurrent(
		"a ConfigMap that has become immutable is waited for, and named with the way out; certificates are renewed meanwhile; it heals",
		async () => {
			const name = "immutable";
			await withConsumers(name, 1);
			const before = await settled(name, "serving");
			const handed = record(name);
			await makeImmutable(name);
			await rotate(name, "serving");
			const publish = await reaches(name, "serving", "Publish", {
				not: before,
				waiting: /^TargetImmutable: ConfigMap k8s-immutable\/etcd-serving-ca /,
			});
			expect(Date.parse(publish.nextStepAt ?? "")).toBeGreaterThan(Date.now());
			const told = await blocked(name, /^True TargetImmutable: /);
			expect(told).toContain("phase Publish");
			expect(told).toContain(
				"kubectl -n k8s-immutable delete configmap etcd-serving-ca",
			);
			expect(told).toContain("Harmless until ");
			// By the former one, which everybody trusts.
			expect(await on.api.issuedBy(name, () => shorten(name, "500h"))).toBe(
				"server (validity changed: from 730h0m0s to 500h0m0s)",
			);
			expect(rotation(name, "serving")?.phase).toBe("Publish");
			expect(handed.serving.bundles).toHaveLength(1);
			await recreate(name);
			await reaches(name, "serving", "Spread", { not: before });
			await on.api.condition(name, "CertificatesReady", /^True /);
			await blocked(name, /^False NotBlocked/);
			expectAllAccepted("serving", handed.serving, [3, 2]);
			expect(handed.serving.next).toHaveLength(1);
		},
		LONG,
	);

	test.concurrent(
		"and is damaged, another one is, and nothing was signed by the damaged one",
		async () => {
			const name = "damaged-next";
			await on.api.tenant(name);
			const before = await settled(name, "serving");
			const handed = record(name);
			await makeImmutable(name);
			await rotate(name, "serving");
			const first = await reaches(name, "serving", "Publish", { not: before });
			const text = secretText(await signer(name, "serving"), "next.crt");
			expect(
				await on.api.issuedBy(name, () =>
					damage(`${name}-serving-signer`, { "next.crt": base64(half(text)) }),
				),
			).toStartWith("serving-signer (next signer unreadable: ");
			await until(
				async () =>
					![first.generation, before].includes(generation(name, "serving")),
				"another one is published",
			);
			await recreate(name);
			const { generation: ca } = await reaches(name, "serving", "Spread", {
				not: before,
			});
			expect(ca).not.toBe(first.generation);
			await expectWhole(name, "serving");
			// Before, next, damaged, another.
			expect(handed.serving.next).toHaveLength(3);
			const subjects = certificates(handed.serving.leaves.join("")).map(
				({ issuer }) => issuer,
			);
			expect(subjects.join()).not.toContain(first.generation);
			for (const chain of handed.serving.leaves)
				for (const trusted of handed.serving.bundles)
					expect(accepts("serving", chain, trusted)).toBe("OK");
		},
		LONG,
	);

	test.concurrent(
		"a namespace that is gone is waited for, and filled when it is back",
		async () => {
			const name = "gone";
			await on.api.tenant(name);
			const before = await settled(name, "serving");
			const where = ["-n", target(name)];
			await kubectl(
				...[...where, "delete", "configmap/etcd-serving-ca"],
				...["secret/etcd-client-cert", "role/etcdproxy-targets"],
				"rolebinding/etcdproxy-targets",
			);
			// As the namespace controller does once all of it is gone.
			await kubectl("delete", "namespace", target(name), "--wait=false");
			await on.cluster.kubectl(
				[
					...[
						"replace",
						"--raw",
						`/api/v1/namespaces/${target(name)}/finalize`,
					],
					...["-f", "-"],
				],
				JSON.stringify({
					...{ apiVersion: "v1", kind: "Namespace" },
					metadata: { name: target(name) },
					spec: { finalizers: [] },
				}),
			);
			await until(
				async () =>
					(await kubectl("get", "ns", target(name), "--ignore-not-found")) ===
					"",
				"the namespace is gone",
			);
			await rotate(name, "serving");
			await rotate(name, "client");
			await reaches(name, "serving", "Publish", {
				not: before,
				waiting:
					/^Target(Forbidden|Missing): ConfigMap k8s-gone\/etcd-serving-ca/,
			});
			await reaches(name, "client", "Sign", {
				waiting:
					/^Target(Forbidden|Missing): Secret k8s-gone\/etcd-client-cert/,
			});
			await blocked(name, /kubectl create namespace k8s-gone/);
			await on.cluster.apply(...apiServerNamespace(target(name)));
			await reaches(name, "serving", "Spread", { not: before });
			await reaches(name, "client", "Retire");
			await on.api.condition(name, "CertificatesReady", /^True /);
			for (const domain of domains) await expectWhole(name, domain);
		},
		LONG,
	);
});

describe("while the new CA spreads", () => {
	test.concurrent(
		"a consumer that may not be restarted any more is named with the way out; once it may, it goes on",
		async () => {
			const name = "forbidden";
			await withConsumers(name, 1);
			const before = await settled(name, "serving");
			await rotate(name, "serving");
			const { generation: ca } = await reaches(name, "serving", "Spread", {
				not: before,
			});
			await kubectl(
				...["-n", target(name), "delete", "rolebinding", "etcdproxy-restart"],
			);
			const told = await blocked(name, /^True ConsumerForbidden: /);
			expect(told).toContain(`Deployment ${target(name)}/api-1`);
			expect(told).toContain("--verb=get,patch --resource=deployments.apps");
			expect(told).toContain("phase Spread");
			expect(told).toContain("Harmless until ");
			expect(await restartedFor(name, "api-1")).toBe("");
			await on.cluster.apply(...consumerRole(name));
			await rollAll(name, 1, ca);
			await reaches(name, "serving", "Retire", { not: before });
			await blocked(name, /^False /);
			// The status comes first.
			const events = await on.api.events(name, /Rotation(Unb|B)locked: /, 2);
			expect(events.map((event) => event.replace(/:.*/s, "")).sort()).toEqual([
				"Normal RotationUnblocked",
				"Warning RotationBlocked",
			]);
		},
		LONG,
	);

	test.concurrent(
		"a consumer whose rollout does not complete is named, and the next one is let alone",
		async () => {
			const name = "stuck";
			await withConsumers(name, 2);
			const before = await settled(name, "serving");
			await rotate(name, "serving");
			const { generation: ca } = await reaches(name, "serving", "Spread", {
				not: before,
			});
			await until(
				async () => (await restartedFor(name, "api-1")) === ca,
				"the first is restarted",
				60_000,
			);
			await says(name, "api-1", "stuck");
			const told = await blocked(name, /^True ConsumerStuck: /);
			expect(told).toContain(
				`kubectl -n ${target(name)} rollout status deployment/api-1`,
			);
			expect(await restartedFor(name, "api-2")).toBe("");
			expect(rotation(name, "serving")?.phase).toBe("Spread");
			await says(name, "api-1", "rolled out");
			await rollAll(name, 2, ca);
			await reaches(name, "serving", "Retire", { not: before });
		},
		LONG,
	);
});

describe("a signer that is lost", () => {
	const ways: [string, (name: string, domain: Domain) => Promise<unknown>][] = [
		[
			"deleted",
			(name, domain) => own("delete", "secret", `${name}-${domain}-signer`),
		],
		[
			"without its key",
			async (name, domain) => {
				const key = secretText(await signer(name, domain), "tls.key");
				await damage(`${name}-${domain}-signer`, {
					"tls.key": base64(half(key)),
				});
			},
		],
	];
	test.concurrent.each(
		ways.flatMap(([what, way], index) =>
			domains.map((domain) => [what, domain, index, way] as const),
		),
	)(
		"(%s, of %s) is replaced only when everybody trusts the next one; until then its certificates stay in use",
		async (_, domain, index, way) => {
			const name = `lost-${domain}-${index}`;
			await withConsumers(name, 1);
			await on.cluster.apply(proxyPod(name));
			const before = await settled(name, domain);
			const handed = record(name);
			await way(name, domain);
			const publish = await reaches(name, domain, "Publish", {
				not: before,
				waiting: domain === "client" ? /^ProxyNotUpdated: / : /^Consumer/,
			});
			const [former] = handed[domain].leaves;
			expect(await leaf(name, domain)).toBe(former ?? "");
			expect(accepts(domain, former ?? "", await bundle(name, domain))).toBe(
				"OK",
			);
			expect(certificates(await bundle(name, domain))).toHaveLength(2);
			expect(
				Object.keys((await signer(name, domain)).data ?? {}),
			).not.toContain("next-cross.crt");
			if (domain === "client") await deleteProxy(name);
			else await rollAll(name, 1, publish.generation);
			const retire = await reaches(name, domain, "Retire", { not: before });
			expect(retire.generation).toBe(publish.generation);
			await expectWhole(name, domain);
			const both = handed[domain].bundles.at(-1) ?? "";
			expect(handed[domain].leaves).toHaveLength(2);
			for (const chain of handed[domain].leaves)
				expect(accepts(domain, chain, both)).toBe("OK");
			expect(handed[domain].bundles).toHaveLength(2);
			await on.api.condition(name, "CertificatesReady", /^True /);
		},
		LONG,
	);

	test.concurrent.each([...domains])(
		"together with our ConfigMap (%s) is replaced, and who must do something about it is told",
		async (domain) => {
			const name = `lost-all-${domain}`;
			await withConsumers(name, 1);
			const before = await settled(name, domain);
			const handed = record(name);
			await own(
				...["delete", `secret/${name}-${domain}-signer`],
				`configmap/${name}-ca-cert`,
			);
			if (domain === "serving") {
				// What the API server trusts tells what there was.
				const publish = await reaches(name, domain, "Publish", {
					not: before,
					waiting: /^Consumer/,
				});
				expect(certificates(await bundle(name, domain))).toHaveLength(2);
				await rollAll(name, 1, publish.generation);
				await reaches(name, domain, "Retire", { not: before });
				for (const chain of handed[domain].leaves)
					expect(accepts(domain, chain, await bundle(name, domain))).toBe("OK");
			} else
				await until(
					() =>
						generation(name, domain) !== before &&
						/^(Retire|Steady)$/.test(rotation(name, domain)?.phase ?? ""),
					"all is of another one",
					60_000,
				);
			await on.api.condition(name, "CertificatesReady", /^True /);
			await expectWhole(name, domain);
		},
		LONG,
	);

	test.concurrent.each([
		[
			"half of the signer's bundle",
			async (name: string) => {
				const text = secretText(await signer(name, "client"), "ca-bundle.crt");
				await damage(`${name}-client-signer`, {
					"ca-bundle.crt": base64(half(text)),
				});
			},
			"client",
		],
		[
			"half of the target's bundle",
			async (name: string) => {
				const text = await bundle(name, "serving");
				await kubectl(
					...["-n", target(name), "patch", "configmap", "etcd-serving-ca"],
					...merge({ data: { "serving-ca.crt": half(text) } }),
				);
				// It is looked at every 40 s; something happens.
				await own("delete", "service", `etcd-${name}`);
			},
			"serving",
		],
		[
			"half of our copy of the bundle",
			async (name: string) => {
				const text = await bundle(name, "client");
				await own(
					...["patch", "configmap", `${name}-ca-cert`],
					...merge({ data: { "client-ca.crt": half(text) } }),
				);
			},
			"client",
		],
	] as [string, (name: string) => Promise<void>, Domain][])(
		"%s is made whole again, with the former CA, and nothing is issued",
		async (what, way, domain) => {
			const name = `cut-${what.replaceAll(/\W/g, "").slice(-18)}`.toLowerCase();
			await on.api.tenant(name);
			for (const one of domains) {
				const former = generation(name, one);
				await rotate(name, one);
				await reaches(name, one, one === "client" ? "Retire" : "Spread", {
					not: former,
				});
			}
			const whole = await bundle(name, domain);
			expect(certificates(whole)).toHaveLength(2);
			const [secret, handed] = [await signer(name, domain), record(name)];
			await way(name);
			await until(
				async () =>
					(await bundle(name, domain)) === whole &&
					Bun.deepEquals((await signer(name, domain)).data, secret.data),
				"all is as it was",
				60_000,
			);
			for (const one of domains) expect(handed[one].leaves).toHaveLength(1);
		},
		LONG,
	);
});

test.concurrent("CAs and certificates of a minute follow each other in real time, and whoever shows what he has is accepted with what others have", async () => {
	const name = "fleeting";
	await on.cluster.apply(
		...apiServerNamespace(target(name)),
		...consumerRole(name),
		consumer(name, "api-1", 0),
	);
	await says(name, "api-1", "rolled out", 0);
	await on.cluster.apply(
		etcdStorage(name, target(name), {
			consumers: consumers(name, 1),
			signingCertificateValidity: "1m",
			servingCertificateValidity: "1m",
			clientCertificateValidity: "1m",
		}),
	);
	await on.api.condition(name, "CertificatesReady", /^True /);
	const handed = record(name);
	// Each as it was 15 s ago, as if a kubelet had brought it late.
	const kept: { at: number; leaf: string; bundle: string }[] = [];
	const begun = performance.now();
	let judged = 0;
	await until(
		async () => {
			for (const domain of domains) {
				const at = performance.now();
				const now = {
					at,
					leaf: await leaf(name, domain),
					bundle: await bundle(name, domain),
				};
				const late = kept.findLast(
					(one) =>
						at - one.at > 15_000 &&
						one.leaf.length > 0 &&
						certificates(one.leaf)[0]?.issuer.includes(domain),
				);
				for (const [chain, trusted] of [
					[now.leaf, now.bundle],
					[late?.leaf ?? now.leaf, now.bundle],
					[now.leaf, late?.bundle ?? now.bundle],
				] as const) {
					expect([domain, accepts(domain, chain, trusted)]).toEqual([
						domain,
						"OK",
					]);
					judged++;
				}
				kept.push(now);
			}
			await Bun.sleep(500);
			return performance.now() - begun > 100_000;
		},
		"a hundred seconds have passed",
		120_000,
	);
	expect(judged).toBeGreaterThan(100);
	for (const domain of domains) {
		// At 24 to 30 s of each one's life.
		expect(handed[domain].next.length).toBeGreaterThanOrEqual(3);
		expect(handed[domain].lost).toBe(0);
		const trusted = certificates(await bundle(name, domain));
		expect(trusted.length).toBeLessThanOrEqual(3);
		const first = certificates(handed[domain].bundles[0] ?? "")[0];
		expect(trusted.map(({ fingerprint }) => fingerprint)).not.toContain(
			first?.fingerprint ?? "",
		);
	}
}, 180_000);
