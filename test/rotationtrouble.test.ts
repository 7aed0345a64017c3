/**
 * What somebody does to the objects that a replacement of signers goes by, while it is under way: frozen, taken away,
 * damaged, restored, put back. Against a real API server without a kubelet.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { EtcdStorage } from "../etcdstorage.ts";
import { base64, secretText } from "./client.ts";
import { apiServerNamespace, NAMESPACE, until } from "./harness.ts";
import {
	accepts,
	certificates,
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
	kubectl,
	own,
	rotate,
	reaches,
	generation,
	settled,
	bundle,
	leaf,
	record,
} = scene;
beforeAll(() => scene.follow());
afterAll(() => scene.end());

const freeze = (secret: string) =>
	own("patch", "secret", secret, ...merge({ immutable: true }));
const statusOf = async (name: string) => {
	const storage: EtcdStorage = await on.api.get("EtcdStorage", name);
	return storage.status;
};
const shownEnd = async (name: string, of: string) =>
	(await statusOf(name))?.certificates?.find((one) => one.name === of)
		?.notAfter;
const endOf = (chain: string) =>
	certificates(chain)[0]?.validToDate.toISOString().replace(".000", "");
/** What was issued besides, as events tell, which come after the status. @param before what they told before */
const issuedEvents = async (name: string, before: string[] = []) => {
	const pattern = /^Normal CertificatesIssued: /;
	const events = await on.api.events(name, pattern, before.length + 1);
	return events.filter((one) => !before.includes(one));
};
const patchSpec = (name: string, spec: object) =>
	kubectl("patch", "etcdstorage", name, ...merge({ spec }));

describe("an object of ours that is immutable", () => {
	test.concurrent(
		"and holds a signer stops that domain where it is, and is named; the other one, and leaves of the signer that is there, go on",
		async () => {
			const name = "frozen-signer";
			await on.api.tenant(name);
			const before = await settled(name, "client");
			await freeze(`${name}-client-signer`);
			await rotate(name, "client");
			const told = await scene.blocked(name, /^True ObjectImmutable: /);
			expect(told).toContain(`client CA ${before}, phase Steady: `);
			expect(told).toContain(
				`kubectl -n ${NAMESPACE} delete secret ${name}-client-signer`,
			);
			await on.api.condition(
				name,
				"CertificatesReady",
				/^False ObjectImmutable: /,
			);
			const changed = "validity changed: from 730h0m0s to 500h0m0s";
			const issued = await on.api.issuedBy(name, () =>
				patchSpec(name, {
					clientCertificateValidity: "500h",
					servingCertificateValidity: "500h",
				}),
			);
			expect(issued.split("; ").sort()).toEqual([
				`client/${target(name)}/etcd-client-cert (${changed})`,
				`server (${changed})`,
			]);
			const [chain, trusted] = [
				await leaf(name, "client"),
				await bundle(name, "client"),
			];
			expect(accepts("client", chain, trusted)).toBe("OK");
			const former = await settled(name, "serving");
			await rotate(name, "serving");
			await reaches(name, "serving", "Spread", { not: former });
			// All that there is goes on being told.
			expect((await statusOf(name))?.certificates).toHaveLength(4);
			expect(generation(name, "client")).toBe(before);
			await own("delete", "secret", `${name}-client-signer`);
			await reaches(name, "client", "Retire", { not: before });
			await on.api.condition(name, "CertificatesReady", /^True /);
			await scene.expectWhole(name, "client");
		},
		LONG,
	);

	test.concurrent(
		"and holds the server's certificate keeps what is told true: the old one counts, nothing is issued in vain, and a replacement waits for it",
		async () => {
			const name = "frozen-server";
			await on.api.tenant(name);
			const before = await settled(name, "serving");
			const chain = await leaf(name, "serving");
			const issued = await issuedEvents(name);
			await freeze(`${name}-server-cert`);
			await patchSpec(name, { servingCertificateValidity: "500h" });
			await on.api.condition(
				name,
				"CertificatesReady",
				new RegExp(
					`^False ObjectImmutable: Secret ${NAMESPACE}/${name}-server-cert is immutable`,
				),
			);
			expect(await shownEnd(name, "server")).toBe(endOf(chain) ?? "");
			await rotate(name, "serving");
			await reaches(name, "serving", "Sign", {
				not: before,
				waiting: new RegExp(
					`^ObjectImmutable: Secret ${NAMESPACE}/${name}-server-cert `,
				),
			});
			await scene.blocked(name, /^True ObjectImmutable: /);
			expect(await leaf(name, "serving")).toBe(chain);
			expect(await shownEnd(name, "server")).toBe(endOf(chain) ?? "");
			const since = await issuedEvents(name, issued);
			expect(since).toHaveLength(1);
			expect(since[0]).toContain("serving-signer (requested: audit)");
			expect(since[0]).not.toContain("server (");
			await own("delete", "secret", `${name}-server-cert`);
			await reaches(name, "serving", "Spread", { not: before });
			await scene.expectWhole(name, "serving");
			await on.api.condition(name, "CertificatesReady", /^True /);
		},
		LONG,
	);
});

test.concurrent(
	"our ConfigMap that is immutable keeps a new client CA from being used, and nothing else from going on",
	async () => {
		const name = "frozen-bundle";
		await on.api.tenant(name);
		const before = await settled(name, "client");
		const handed = record(name);
		await own(
			...["patch", "configmap", `${name}-ca-cert`],
			...merge({ immutable: true }),
		);
		await rotate(name, "client");
		const what = `ObjectImmutable: ConfigMap ${NAMESPACE}/${name}-ca-cert is immutable`;
		const waiting = new RegExp(`^${what}`);
		const { generation: published } = await reaches(name, "client", "Publish", {
			...{ not: before, waiting },
		});
		await on.api.condition(
			name,
			"CertificatesReady",
			new RegExp(`^False ${what}`),
		);
		const issued = await on.api.issuedBy(name, () =>
			patchSpec(name, {
				clientCertificateValidity: "500h",
				servingCertificateValidity: "500h",
			}),
		);
		expect(issued).toContain("server (validity changed: ");
		expect(issued).toContain(`client/${target(name)}/etcd-client-cert (`);
		const trusted = await bundle(name, "client");
		const shown = await leaf(name, "client");
		expect(accepts("client", shown, trusted)).toBe("OK");
		// What lies there is enough for proxies.
		await own("delete", "deployment", `etcd-${name}`);
		await until(
			() => on.api.get("Deployment", `etcd-${name}`),
			"the Deployment is back",
		);
		// What a CA signs that is in no bundle, and certified by none, is not handed out, and not said to be.
		const first = await issuedEvents(name);
		await own("delete", "secret", `${name}-client-signer`);
		await until(
			() => ![before, published].includes(generation(name, "client")),
			"another is published",
		);
		const told = [...first, ...(await issuedEvents(name, first))];
		await kubectl(
			...["annotate", "etcdstorage", name],
			"etcd.xmudrii.com/compromised-client=stolen",
		);
		await reaches(name, "client", "Sign", {
			waiting: /^CertificateNotWritten: /,
		});
		await on.api.condition(
			name,
			"CertificatesReady",
			new RegExp(`^False ${what}`),
		);
		expect(await leaf(name, "client")).toBe(shown);
		const id = `client/${target(name)}/etcd-client-cert`;
		expect(await shownEnd(name, id)).toBe(endOf(shown) ?? "");
		const since = await issuedEvents(name, told);
		expect(since).toHaveLength(1);
		expect(since[0]).not.toContain("etcd-client-cert");
		await own("delete", "configmap", `${name}-ca-cert`);
		await reaches(name, "client", "Steady", { not: before });
		await scene.expectWhole(name, "client");
		await on.api.condition(name, "CertificatesReady", /^True /);
		expect(handed.client.bundles.at(-1)).not.toContain(trusted);
	},
	LONG,
);

describe("while a new serving CA spreads", () => {
	test.concurrent(
		"a cross-certificate that is damaged is made again: who trusts only the former CA is not cut off",
		async () => {
			const name = "cross";
			await scene.withConsumers(name, 1);
			const before = await settled(name, "serving");
			const former = await bundle(name, "serving");
			const handed = record(name);
			await rotate(name, "serving");
			await reaches(name, "serving", "Spread", { not: before });
			const cross = secretText(
				await scene.signer(name, "serving"),
				"cross.crt",
			);
			await scene.damage(`${name}-serving-signer`, {
				"cross.crt": base64(half(cross)),
			});
			await until(async () => {
				const now = secretText(
					await scene.signer(name, "serving"),
					"cross.crt",
				);
				return now !== cross && now.includes("END CERTIFICATE");
			}, "there is another one");
			await until(() => handed.serving.leaves.length === 3, "it is handed out");
			for (const chain of handed.serving.leaves)
				expect(accepts("serving", chain, former)).toBe("OK");
			// The leaf itself is the one that was.
			const [, second = "", third = ""] = handed.serving.leaves;
			expect(certificates(third)[0]?.raw).toEqual(
				certificates(second)[0]?.raw ?? Buffer.alloc(0),
			);
		},
		LONG,
	);

	test.concurrent(
		"a ConfigMap in a namespace of which no consumer is named is waited for beside those that are",
		async () => {
			const name = "half-named";
			const other = `${target(name)}-2`;
			await on.cluster.apply(...apiServerNamespace(other));
			await scene.withConsumers(name, 1);
			const where = { name: "etcd-serving-ca" };
			await patchSpec(name, {
				caCertConfigMap: [
					{ ...where, namespace: target(name) },
					{ ...where, namespace: other },
				],
			});
			await on.api.condition(name, "CertificatesReady", /^True /);
			const before = await settled(name, "serving");
			await rotate(name, "serving");
			const { generation: ca } = await reaches(name, "serving", "Spread", {
				not: before,
			});
			await scene.rollAll(name, 1, ca);
			const { waitingFor } = await reaches(name, "serving", "Spread", {
				not: before,
				waiting: /^ConsumerUnknown: /,
			});
			expect(waitingFor).toHaveLength(1);
			expect(waitingFor?.[0]).toContain(`ConfigMap ${other}/etcd-serving-ca`);
			await scene.blocked(name, /^True ConsumerUnknown: /);
		},
		LONG,
	);

	test.concurrent(
		"a restart that somebody takes back is not repeated, but said, and others are restarted nevertheless",
		async () => {
			const name = "undone";
			await scene.withConsumers(name, 2);
			const before = await settled(name, "serving");
			await rotate(name, "serving");
			const { generation: ca } = await reaches(name, "serving", "Spread", {
				not: before,
			});
			await until(
				async () => (await scene.restartedFor(name, "api-1")) === ca,
				"the first is restarted",
				60_000,
			);
			const annotations = { "etcd.xmudrii.com/serving-ca": null };
			await kubectl(
				...["-n", target(name), "patch", "deployment", "api-1"],
				...merge({ spec: { template: { metadata: { annotations } } } }),
			);
			await scene.says(name, "api-1", "rolled out");
			const told = await scene.blocked(name, /^True ConsumerStuck: /);
			expect(told).toContain(
				`kubectl -n ${target(name)} rollout restart deployment/api-1`,
			);
			await until(
				async () => (await scene.restartedFor(name, "api-2")) === ca,
				"the second is restarted",
				60_000,
			);
			await scene.says(name, "api-2", "rolled out");
			expect(await scene.restartedFor(name, "api-1")).toBe("");
			await kubectl(
				...["-n", target(name), "rollout", "restart", "deployment/api-1"],
			);
			await scene.says(name, "api-1", "rolled out");
			await reaches(name, "serving", "Retire", { not: before });
		},
		LONG,
	);

	test.concurrent(
		"a target that comes back from a backup as it was counts from then on, and consumers are restarted",
		async () => {
			const name = "restored";
			await scene.withConsumers(name, 1);
			const before = await settled(name, "serving");
			await scene.makeImmutable(name);
			await rotate(name, "serving");
			await reaches(name, "serving", "Publish", { not: before });
			const text = await bundle(name, "serving");
			await scene.recreate(name);
			const { generation: ca } = await reaches(name, "serving", "Spread", {
				not: before,
			});
			expect(await bundle(name, "serving")).not.toBe(text);
			const backup = await on.api.get(
				...(["ConfigMap", "etcd-serving-ca", target(name)] as const),
			);
			const { annotations, namespace } = backup.metadata;
			await kubectl("-n", namespace, "delete", "configmap", "etcd-serving-ca");
			await on.cluster.kubectl(
				["create", "-f", "-"],
				JSON.stringify({
					...{ apiVersion: "v1", kind: "ConfigMap", data: backup.data },
					metadata: { name: "etcd-serving-ca", namespace, annotations },
				}),
			);
			await scene.rollAll(name, 1, ca);
			await reaches(name, "serving", "Retire", { not: before });
		},
		LONG,
	);

	test.concurrent(
		"another rotation that has to wait for this one is told of",
		async () => {
			const name = "put-off";
			await scene.withConsumers(name, 1);
			const before = await settled(name, "serving");
			await rotate(name, "serving", "first");
			const { generation: ca } = await reaches(name, "serving", "Spread", {
				not: before,
			});
			// So long that the former CA ends early in the life of the present one.
			await patchSpec(name, { signingCertificateValidity: "8760h" });
			const { generation: long } = await reaches(name, "serving", "Spread", {
				waiting: /^Consumer/,
				not: ca,
			});
			await rotate(name, "serving", "second");
			await reaches(name, "serving", "Spread", {
				waiting: new RegExp(
					`RotationPutOff: another serving CA \\(requested: second\\) is made when all who verify have loaded CA ${long}, or its predecessor has expired`,
				),
			});
			await scene.rollAll(name, 1, long);
			await until(
				() => ![before, ca, long].includes(generation(name, "serving")),
				"it is made",
				60_000,
			);
		},
		LONG,
	);
});

test.concurrent(
	"a client certificate that is of no use while its signer is lost is told of",
	async () => {
		const name = "useless";
		const other = `${target(name)}-2`;
		await on.cluster.apply(...apiServerNamespace(other), proxyPod(name));
		const where = { name: "etcd-client-cert" };
		await on.api.tenant(name, {
			clientCertSecret: [
				{ ...where, namespace: target(name) },
				{ ...where, namespace: other },
			],
		});
		const before = await settled(name, "client");
		await own("delete", "secret", `${name}-client-signer`);
		await reaches(name, "client", "Publish", {
			not: before,
			waiting: /^ProxyNotUpdated: /,
		});
		const server = await on.api.get("Secret", `${name}-server-cert`);
		await kubectl(
			...["-n", target(name), "patch", "secret", "etcd-client-cert"],
			...merge({ data: { "tls.key": server.data["tls.key"] } }),
		);
		await on.api.condition(
			name,
			"CertificatesReady",
			new RegExp(
				`^False SignerPending: client/${target(name)}/etcd-client-cert`,
			),
			60_000,
		);
		await scene.deleteProxy(name);
		await reaches(name, "client", "Retire", { not: before });
		await on.api.condition(name, "CertificatesReady", /^True /, 60_000);
	},
	LONG,
);

test.concurrent(
	"a target that may not be read while the status is lost is waited for, as it may have been filled",
	async () => {
		const name = "forgotten";
		const where = ["-n", target(name)];
		await on.api.tenant(name);
		const before = await settled(name, "serving");
		const server = await leaf(name, "serving");
		await kubectl(...where, "delete", "role", "etcdproxy-targets");
		const forbidden = () =>
			on.api.condition(
				name,
				"CertificatesReady",
				/^False TargetForbidden: /,
				60_000,
			);
		await forbidden();
		await kubectl(
			...["patch", "etcdstorage", name, "--subresource=status"],
			...merge({ status: null }),
		);
		await forbidden();
		await rotate(name, "serving");
		await reaches(name, "serving", "Publish", {
			not: before,
			waiting: /etcd-serving-ca may not be read and written/,
		});
		expect(await leaf(name, "serving")).toBe(server);
		await on.cluster.apply(...apiServerNamespace(target(name)));
		await on.api.condition(name, "CertificatesReady", /^True /, 60_000);
		expect(accepts("serving", server, await bundle(name, "serving"))).toBe(
			"OK",
		);
	},
	LONG,
);
