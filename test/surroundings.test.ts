/** What others may do around an EtcdStorage: foreign objects, bad core credentials, edits by hand. Against a real API server. */

import { beforeAll, describe, expect, test } from "bun:test";
import { createPublicKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { base64, type Material, material, opensslVerify } from "./client.ts";
import { Authority } from "./cluster/certificates.ts";
import {
	apiServerNamespace,
	etcdStorage,
	type Json,
	NAMESPACE,
	until,
} from "./harness.ts";
import { stage } from "./stage.ts";

// With etcd's own proxies: they have more needs than gateways, such as a client certificate without a Common Name.
const on = stage(undefined, ["--etcd-proxy-image=quay.io/coreos/etcd:v3.7.3"]);

const kubectl = (...args: string[]) => on.cluster.kubectl(args);
const own = (...args: string[]) => kubectl("-n", NAMESPACE, ...args);
const merge = (kind: string, name: string, patch: object, ...more: string[]) =>
	own(
		...["patch", kind, name, "--type=merge", "-p", JSON.stringify(patch)],
		...more,
	);
const advice = (message: string) =>
	(/kubectl ([^,;|()]+)/.exec(message)?.[1] ?? "").trim().split(" ");

/** Targets cannot be watched, only looked at now and then: edited here, they are looked at in the last test. */
const edited = ["edited-1", "edited-2", "edited-3"];
let unedited: Material[];
let editedAt: number;
beforeAll(async () => {
	await Promise.all(edited.map((name) => on.api.tenant(name)));
	unedited = await Promise.all(edited.map((name) => material(on.api, name)));
	const edit = (name: string, kind: string, object: string, patch: object) =>
		kubectl(
			...["-n", `k8s-${name}`, "patch", kind, object],
			...["--type=merge", "-p", JSON.stringify(patch)],
		);
	const bundle = (name: string, patch: object) =>
		edit(name, "configmap", "etcd-serving-ca", patch);
	const leaf = (name: string, data: Record<string, string>) =>
		edit(name, "secret", "etcd-client-cert", { data });
	const { client = "", clientKey = "" } = unedited[0] ?? {};
	await bundle("edited-1", { data: { "serving-ca.crt": "junk" } });
	await leaf("edited-1", { "tls.crt": base64("junk") });
	await bundle("edited-2", { data: null });
	await leaf("edited-2", { "tls.key": base64(clientKey) });
	await bundle("edited-3", { metadata: { annotations: null } });
	await leaf("edited-3", { "tls.crt": base64(client) });
	editedAt = performance.now();
}, 30_000);

describe.concurrent("an object of somebody else with a name of ours", () => {
	const foreign = {
		Service: { spec: { ports: [{ port: 80 }] } },
		PodDisruptionBudget: { apiVersion: "policy/v1", spec: { minAvailable: 1 } },
		ConfigMap: { data: { theirs: "data" } },
		Secret: { data: { theirs: base64("data") } },
		Deployment: {
			apiVersion: "apps/v1",
			spec: {
				selector: { matchLabels: { app: "theirs" } },
				template: {
					metadata: { labels: { app: "theirs" } },
					spec: { containers: [{ name: "theirs", image: "theirs:1" }] },
				},
			},
		},
	};
	const TRUSTED = "if the certificates in it are to be trusted";
	test.each([
		["Service", "svc", "etcd-svc", "Deployed", "to be overwritten"],
		["Deployment", "dep", "etcd-dep", "Deployed", "to be overwritten"],
		["PodDisruptionBudget", "pdb", "etcd-pdb", "Deployed", "to be overwritten"],
		["ConfigMap", "map", "map-ca-cert", "CertificatesReady", TRUSTED],
		["Secret", "srv", "srv-server-cert", "CertificatesReady", TRUSTED],
		// Nobody is told to let another's signer sign.
		["Secret", "sig", "sig-client-signer", "CertificatesReady", undefined],
	] as const)(
		"(%s of %s) is neither adopted nor deleted, and named with the command that would",
		async (kind, name, object, type, handOver) => {
			const theirs = {
				...{ apiVersion: "v1", kind, ...foreign[kind] },
				metadata: { name: object, namespace: NAMESPACE },
			};
			await on.cluster.kubectl(["create", "-f", "-"], JSON.stringify(theirs));
			const before = await on.api.get(kind, object);
			await on.cluster.apply(
				...apiServerNamespace(`k8s-${name}`),
				etcdStorage(name, `k8s-${name}`),
			);
			const message = await on.api.condition(name, type, /^False NameTaken: /);
			expect(message).toContain(
				`${kind} ${NAMESPACE}/${object} is there but does not belong to EtcdStorage ${name}`,
			);
			expect(/hand it over (.*?) \(/.exec(message)?.[1]).toBe(
				handOver as string,
			);
			expect(await on.api.condition(name, "Ready", /./)).toBe(message);
			expect(await on.api.get(kind, object)).toEqual(before);
			await kubectl(...advice(message));
			await on.api.condition(name, "CertificatesReady", /^True /, 10_000);
			await on.api.condition(name, "Deployed", /^False DeploymentNotAvailable/);
		},
		30_000,
	);

	test("that is a signer signs nothing", async () => {
		await on.api.tenant("source");
		const { data, type } = await on.api.get("Secret", "source-client-signer");
		const planted = {
			...{ apiVersion: "v1", kind: "Secret", type, data },
			metadata: { name: "planted-client-signer", namespace: NAMESPACE },
		};
		await on.cluster.kubectl(["create", "-f", "-"], JSON.stringify(planted));
		await on.cluster.apply(
			...apiServerNamespace("k8s-planted"),
			etcdStorage("planted", "k8s-planted"),
		);
		await on.api.condition(
			"planted",
			"CertificatesReady",
			/^False NameTaken: /,
		);
		const all = await material(on.api, "planted");
		const { client, clientCA, server, servingCA } = all;
		expect(client).toBe("");
		expect(clientCA).toBeUndefined();
		// The other domain has nothing to do with it, but a proxy needs both.
		expect(opensslVerify("sslserver", server, servingCA)).toBe("OK");
		expect(await on.api.get("Deployment", "etcd-planted")).toBeUndefined();
		expect((await on.api.get("Secret", "planted-client-signer")).data).toEqual(
			data,
		);
	}, 20_000);
});

describe("the core etcd's credentials", () => {
	let authority: Authority;
	beforeAll(async () => {
		authority = await Authority.create(join(on.cluster.dir, "core"), "core-ca");
		await on.api.tenant("core");
		await on.api.condition(
			"core",
			"Deployed",
			/^False DeploymentNotAvailable: /,
		);
	}, 30_000);
	const MAP = "etcd-coreserving-ca";
	const SECRET = "etcd-coreserving-cert";
	/** As it was, in one go: a state in between would be another one to tell of. */
	const put = (...objects: Json[]) =>
		on.cluster.apply(
			...objects.map(({ kind, type, data, metadata: { name, namespace } }) => ({
				...{ apiVersion: "v1", kind, ...(type && { type }), data },
				metadata: { name, namespace },
			})),
		);
	const issued = async (subject: string, days?: number) => {
		const { certFile, keyFile } = await authority.issue(`c${Math.random()}`, {
			subject,
			...(days !== undefined && { days }),
		});
		return {
			"tls.crt": base64(readFileSync(certFile, "utf8")),
			"tls.key": base64(readFileSync(keyFile, "utf8")),
		};
	};
	const map = (data: object | null) => () => merge("configmap", MAP, { data });
	const secret = (data: () => object | Promise<object>) => async () =>
		merge("secret", SECRET, { data: await data() });

	test.each([
		[
			...["missing CA", "CoreCredentialsMissing"],
			() => own("delete", "configmap", MAP),
			`ConfigMap ${NAMESPACE}/${MAP} with the core etcd's CA is not there; create it: kubectl -n ${NAMESPACE} create configmap ${MAP} --from-file=ca.crt`,
		],
		[
			...["CA under another key", "CoreCredentialsInvalid"],
			map({ "ca.crt": null, "ca.pem": "" }),
			`ConfigMap ${NAMESPACE}/${MAP} has no key ca.crt`,
		],
		[
			...["malformed CA", "CoreCredentialsInvalid"],
			map({ "ca.crt": "junk" }),
			`ConfigMap ${NAMESPACE}/${MAP}, key ca.crt, is unreadable`,
		],
		[
			...["expired CA", "CoreCredentialsExpired"],
			async () => {
				const { "tls.crt": pem } = await issued("/CN=expired", -1);
				await map({ "ca.crt": Buffer.from(pem, "base64").toString() })();
			},
			`ConfigMap ${NAMESPACE}/${MAP}, key ca.crt, has expired`,
		],
		[
			...["missing client certificate", "CoreCredentialsMissing"],
			() => own("delete", "secret", SECRET),
			`kubectl -n ${NAMESPACE} create secret tls ${SECRET} --cert=client.crt --key=client.key`,
		],
		[
			...["client certificate without a key", "CoreCredentialsInvalid"],
			secret(() => ({ "tls.key": "" })),
			`Secret ${NAMESPACE}/${SECRET} has no key tls.key`,
		],
		[
			...["malformed client certificate", "CoreCredentialsInvalid"],
			secret(() => ({ "tls.crt": base64("junk") })),
			`Secret ${NAMESPACE}/${SECRET} is unreadable`,
		],
		[
			...["malformed client key", "CoreCredentialsInvalid"],
			secret(() => ({ "tls.key": base64("junk") })),
			`Secret ${NAMESPACE}/${SECRET} is unreadable`,
		],
		[
			...["key of another client certificate", "CoreCredentialsInvalid"],
			secret(async () => ({ "tls.key": (await issued("/"))["tls.key"] })),
			`Secret ${NAMESPACE}/${SECRET}: tls.key does not belong to tls.crt`,
		],
		[
			...["expired client certificate", "CoreCredentialsExpired"],
			secret(() => issued("/", -1)),
			`Secret ${NAMESPACE}/${SECRET}: tls.crt expired at 20`,
		],
		[
			...["client certificate with a Common Name", "CoreCredentialsInvalid"],
			secret(() => issued("/CN=boss")),
			'tls.crt has the Common Name "boss", and etcd grpc-proxy refuses to start with a client certificate that has one; issue one without (openssl req -subj "/O=etcdproxy"), or let the proxies be gateways (see --etcd-proxy-image)',
		],
	] as [string, string, () => Promise<unknown>, string][])(
		"(%s: %s) are named before pods crash over them and roll no pods, and all is as before once they are good",
		async (_, reason, spoil, words) => {
			const before = await on.api.get("Deployment", "etcd-core");
			const ca = await on.api.get("ConfigMap", MAP);
			const cert = await on.api.get("Secret", SECRET);
			try {
				await spoil();
				const named = new RegExp(`^False ${reason}: `);
				const message = await on.api.condition("core", "Deployed", named);
				expect(message).toContain(words);
				const meanwhile = await on.api.get("Deployment", "etcd-core");
				expect(meanwhile.spec).toEqual(before.spec);
			} finally {
				await put(ca, cert);
			}
			await on.api.condition(
				"core",
				"Deployed",
				/^False DeploymentNotAv/,
				10_000,
			);
			const { spec } = await on.api.get("Deployment", "etcd-core");
			expect(spec).toEqual(before.spec);
		},
		30_000,
	);

	test("that are bad keep no certificate from being issued, but pods from being made until they are good", async () => {
		const cert = await on.api.get("Secret", SECRET);
		await own("delete", "secret", SECRET);
		await on.api.condition(
			"core",
			"Deployed",
			/^False CoreCredentialsMissing: /,
		);
		await on.api.tenant("late");
		await on.api.condition(
			"late",
			"Deployed",
			/^False CoreCredentialsMissing: /,
		);
		expect(await on.api.get("Deployment", "etcd-late")).toBeUndefined();
		expect(await on.api.get("Deployment", "etcd-core")).toBeDefined();
		await put(cert);
		await on.api.condition(
			"late",
			"Deployed",
			/^False DeploymentNotAv/,
			10_000,
		);
		expect(await on.api.get("Deployment", "etcd-late")).toBeDefined();
	}, 30_000);

	test("with another CA roll etcd's proxies, which read it only once", async () => {
		const ca = await on.api.get("ConfigMap", MAP);
		const hash = async () =>
			(await on.api.get("Deployment", "etcd-core")).spec.template.metadata
				.annotations["etcd.xmudrii.com/core-ca-sha256"];
		const before = await hash();
		const both = ca.data["ca.crt"] + readFileSync(authority.certFile, "utf8");
		await map({ "ca.crt": both })();
		await until(
			async () => (await hash()) !== before,
			"the Deployment rolls its pods",
			10_000,
		);
		await put(ca);
	}, 20_000);

	test("are one event each time they are bad", async () => {
		const failure = /^Warning EtcdStorageDeployFailure: /;
		expect(await on.api.events("core", failure, 12)).toHaveLength(12);
	});
});

describe("what somebody edits by hand", () => {
	beforeAll(() => on.api.tenant("edited"), 30_000);

	test("in the status is put right", async () => {
		// The visit after the one that has made the signers tells when they are due for others.
		const status = await until(async () => {
			const { status: now } = await on.api.get("EtcdStorage", "edited");
			const signers = now.certificates.filter((one: Json) => one.rotation);
			return signers.every((one: Json) => one.rotation.nextStepAt) && now;
		}, "all is told");
		const other = {
			endpoint: "https://elsewhere:2379",
			nextExpiry: "never",
			certificates: [],
			targets: [{ kind: "Secret", name: "token", namespace: "kube-system" }],
			conditions: [
				...status.conditions
					.filter(({ type }: Json) => type !== "Ready")
					.map((one: Json) => ({ ...one, status: "Unknown" })),
			],
		};
		await kubectl(
			...["patch", "etcdstorage", "edited", "--subresource=status"],
			...["--type=merge", "-p", JSON.stringify({ status: other })],
		);
		const repaired = await until(
			async () => {
				const { status: now } = await on.api.get("EtcdStorage", "edited");
				return now.endpoint === status.endpoint && now;
			},
			"the status is as it was",
			10_000,
		);
		// When something became so, and why, is told by the status alone.
		const timeless = ({ conditions, certificates, ...rest }: Json) => ({
			...rest,
			certificates: certificates.map(({ rotation, ...one }: Json) => ({
				...one,
				...(rotation && {
					rotation: { ...rotation, since: undefined, reason: undefined },
				}),
			})),
			conditions: conditions
				.map(({ lastTransitionTime: _, ...one }: Json) => one)
				.toSorted((a: Json, b: Json) => (a.type < b.type ? -1 : 1)),
		});
		expect(timeless(repaired)).toEqual(timeless(status));
	});

	test("in annotations is put right, and no certificate is issued because of it", async () => {
		const before = await material(on.api, "edited");
		const key = "etcd.xmudrii.com/certificate-expiry-date";
		const look = async () =>
			(await on.api.get("Secret", "edited-server-cert")).metadata.annotations[
				key
			];
		const expiry = await look();
		await own(
			...["annotate", "--overwrite", "secret", "edited-server-cert"],
			`${key}=1970-01-01T00:00:00Z`,
		);
		await until(
			async () => (await look()) === expiry,
			"it is put right",
			10_000,
		);
		expect(await material(on.api, "edited")).toEqual(before);
	});

	test("in the finalizers is put right", async () => {
		await kubectl(
			...["patch", "etcdstorage", "edited", "--type=merge", "-p"],
			'{"metadata":{"finalizers":null}}',
		);
		await until(
			async () =>
				(await on.api.get("EtcdStorage", "edited")).metadata.finalizers?.[0] ===
				"etcd.xmudrii.com/targets",
			"the finalizer is back",
			10_000,
		);
	});

	test("in target objects is put right within a minute", async () => {
		await until(
			async () => {
				const now = await Promise.all(
					edited.map((name) => material(on.api, name)),
				);
				const { metadata } = await on.api.get(
					"ConfigMap",
					"etcd-serving-ca",
					"k8s-edited-3",
				);
				return (
					metadata.annotations?.["etcd.xmudrii.com/etcdstorage"] ===
						"edited-3" &&
					now.every(
						({ client, clientCA, clientKey, servingCA }, index) =>
							servingCA === unedited[index]?.servingCA &&
							clientKey !== unedited[index]?.clientKey &&
							client.startsWith("-----BEGIN") &&
							opensslVerify("sslclient", client, clientCA) === "OK" &&
							new X509Certificate(client).publicKey.equals(
								createPublicKey(clientKey),
							),
					)
				);
			},
			"all targets are as they were",
			editedAt + 60_000 - performance.now(),
		);
	}, 60_000);
});

test("rights that are taken away are a condition that says which, and given back heal by themselves", async () => {
	const name = "rightless";
	await on.api.tenant(name);
	const binding = "etcdproxy-controller-rolebinding";
	const saved = await own("get", "rolebinding", binding, "-o", "yaml");
	await own("delete", "rolebinding", binding);
	await own("delete", "secret", `${name}-client-signer`);
	await on.api.condition(
		name,
		"CertificatesReady",
		/^False FailedDeploying: create Secret kube-apiserver-storage\/rightless-client-signer: Forbidden/,
	);
	await on.cluster.kubectl(["apply", "-f", "-"], saved);
	await on.api.condition(name, "CertificatesReady", /^True/, 40_000);
}, 70_000);
