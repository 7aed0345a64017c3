/** The controller's main job, against a real API server without a kubelet. */

import { beforeAll, describe, expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { EtcdStorage } from "../etcdstorage.ts";
import type { Kind } from "../kube.ts";
import { flags } from "../options.ts";
import { keyMatches, parseCertificates } from "../pki.ts";
import { base64, material, opensslVerify } from "./client.ts";
import { Authority } from "./cluster/certificates.ts";
import { type Json, NAMESPACE, startController, until } from "./harness.ts";
import { stage } from "./stage.ts";

const on = stage();

const kubectl = (...args: string[]) => on.cluster.kubectl(args);
const own = (...args: string[]) => kubectl("-n", NAMESPACE, ...args);

describe("a new EtcdStorage", () => {
	let storage: EtcdStorage;
	beforeAll(async () => {
		await on.api.tenant("new");
		storage = await on.api.get("EtcdStorage", "new");
	}, 30_000);

	test("owns each of its objects in the controller's namespace, and these have their keys", async () => {
		const keys: [Kind, string, string[]][] = [
			["Secret", "new-client-signer", ["ca-bundle.crt", "tls.crt", "tls.key"]],
			["Secret", "new-serving-signer", ["ca-bundle.crt", "tls.crt", "tls.key"]],
			["Secret", "new-server-cert", ["tls.crt", "tls.key"]],
			["ConfigMap", "new-ca-cert", ["client-ca.crt", "serving-ca.crt"]],
			["Service", "etcd-new", []],
			["Deployment", "etcd-new", []],
		];
		for (const [kind, name, expected] of keys) {
			const object = await on.api.get(kind, name);
			expect(Object.keys(object.data ?? {}).sort()).toEqual(expected);
			expect(object.metadata.ownerReferences).toEqual([
				{
					apiVersion: "etcd.xmudrii.com/v1alpha1",
					kind: "EtcdStorage",
					name: "new",
					uid: storage.metadata.uid,
					controller: true,
				},
			]);
		}
	});

	test("says in annotations when a certificate expires, who signed it, and who fills a target", async () => {
		for (const [kind, name, namespace, key] of [
			["Secret", "new-server-cert", NAMESPACE, "tls.crt"],
			["Secret", "new-client-signer", NAMESPACE, "tls.crt"],
			["ConfigMap", "new-ca-cert", NAMESPACE, "client-ca.crt"],
			["Secret", "etcd-client-cert", "k8s-new", "tls.crt"],
			["ConfigMap", "etcd-serving-ca", "k8s-new", "serving-ca.crt"],
		] as const) {
			const object = await on.api.get(kind, name, namespace);
			const pem = object.data[key];
			const x509 = new X509Certificate(
				kind === "Secret" ? Buffer.from(pem, "base64") : pem,
			);
			const { annotations } = object.metadata;
			const expiry = annotations["etcd.xmudrii.com/certificate-expiry-date"];
			expect(expiry).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
			expect(Date.parse(expiry)).toBe(Date.parse(x509.validTo));
			const domain = /server|serving/.test(name) ? "serving" : "client";
			expect(annotations["etcd.xmudrii.com/certificate-signed-by"]).toContain(
				`etcd ${domain} CA`,
			);
			expect(annotations["etcd.xmudrii.com/etcdstorage"]).toBe(
				namespace === NAMESPACE ? undefined : "new",
			);
		}
	});

	test("gets certificates that openssl accepts, each in its own trust domain only", async () => {
		const { clientCA, servingCA, server, client } = await material(
			on.api,
			"new",
		);
		expect(
			opensslVerify(
				"sslserver",
				server,
				servingCA,
				...["-verify_hostname", `etcd-new.${NAMESPACE}.svc`],
			),
		).toBe("OK");
		expect(opensslVerify("sslclient", client, clientCA)).toBe("OK");
		expect(opensslVerify("sslclient", client, servingCA)).not.toBe("OK");
		expect(opensslVerify("sslserver", server, clientCA)).not.toBe("OK");
		expect(opensslVerify("sslclient", server, servingCA)).not.toBe("OK");
		expect(opensslVerify("sslserver", client, clientCA)).not.toBe("OK");
	});

	test("gets a server certificate for every name of its Service, and keys that match", async () => {
		const { server, serverKey, client, clientKey } = await material(
			on.api,
			"new",
		);
		const x509 = new X509Certificate(server);
		expect(x509.subjectAltName).toBe(
			[
				"DNS:etcd-new",
				`DNS:etcd-new.${NAMESPACE}`,
				`DNS:etcd-new.${NAMESPACE}.svc`,
				`DNS:etcd-new.${NAMESPACE}.svc.cluster.local`,
				"DNS:localhost",
				"IP Address:127.0.0.1",
			].join(", "),
		);
		expect(new X509Certificate(client).subjectAltName).toBeUndefined();
		for (const [pem, key] of [
			[server, serverKey],
			[client, clientKey],
		] as const) {
			const [facts] = parseCertificates(pem);
			if (!facts) throw new Error("no certificate");
			expect(keyMatches(facts, key)).toBe(true);
			expect(key).toStartWith("-----BEGIN PRIVATE KEY-----");
			const life = facts.notAfter - facts.notBefore;
			expect(life / 60_000).toBe(730 * 60 + 5);
		}
	});

	test("gets gateways with the flags of etcd's own proxy, and pods that Pod Security admits in a restricted namespace", async () => {
		const { spec } = await on.api.get("Deployment", "etcd-new");
		expect(spec.replicas).toBe(3);
		expect(spec.selector).toEqual({ matchLabels: { apiserver: "new" } });
		const [container] = spec.template.spec.containers;
		expect(container.image).toBe(flags["etcd-proxy-image"].default);
		expect([...container.command, ...container.args]).toEqual([
			...["/usr/local/bin/etcdproxy-controller", "grpc-proxy", "start"],
			`--endpoints=${on.cluster.etcd.url}`,
			"--namespace=/new/",
			"--listen-addr=0.0.0.0:2379",
			"--metrics-addr=http://0.0.0.0:2381",
			`--advertise-client-url=https://etcd-new.${NAMESPACE}.svc:2379`,
			"--cacert=/etc/coreetcd-certs/ca/ca.crt",
			"--cert=/etc/coreetcd-certs/client/tls.crt",
			"--key=/etc/coreetcd-certs/client/tls.key",
			"--trusted-ca-file=/etc/etcdproxy-certs/ca/client-ca.crt",
			"--cert-file=/etc/etcdproxy-certs/server/tls.crt",
			"--key-file=/etc/etcdproxy-certs/server/tls.key",
		]);

		const create = (pod: Json) =>
			on.cluster.kubectl(
				["-n", NAMESPACE, "create", "--dry-run=server", "-f", "-"],
				JSON.stringify(pod),
			);
		const pod = {
			...{ apiVersion: "v1", kind: "Pod", metadata: { name: "as-templated" } },
			spec: spec.template.spec,
		};
		expect(await create(pod)).toContain("pod/as-templated created");
		const lax = structuredClone(pod);
		delete lax.spec.containers[0].securityContext;
		await expect(create(lax)).rejects.toThrow('PodSecurity "restricted');
	});

	test("gets a Service on the port that goes into --etcd-servers", async () => {
		const { spec } = await on.api.get("Service", "etcd-new");
		expect(spec).toMatchObject({
			type: "ClusterIP",
			selector: { apiserver: "new" },
			ports: [{ port: 2379, targetPort: 2379, protocol: "TCP" }],
		});
		expect(spec.clusterIP).not.toBe("None");
	});

	test("tells in its status what was issued, until when, and what carries it", async () => {
		const { status, metadata } = storage;
		expect(status?.observedGeneration).toBe(metadata.generation ?? 0);
		expect(status?.endpoint).toBe(`https://etcd-new.${NAMESPACE}.svc:2379`);
		expect(status?.targets).toEqual([
			{ kind: "ConfigMap", name: "etcd-serving-ca", namespace: "k8s-new" },
			{ kind: "Secret", name: "etcd-client-cert", namespace: "k8s-new" },
		]);
		const list = status?.certificates ?? [];
		expect(list.map(({ name }) => name)).toEqual([
			...["client-signer", "serving-signer", "server"],
			"client/k8s-new/etcd-client-cert",
		]);
		const { server } = await material(on.api, "new");
		const { validFrom, validTo } = new X509Certificate(server);
		const shown = list[2];
		expect(Date.parse(shown?.notBefore ?? "")).toBe(Date.parse(validFrom));
		expect(Date.parse(shown?.notAfter ?? "")).toBe(Date.parse(validTo));
		for (const { notBefore, notAfter, renewalTime } of list)
			expect([notBefore, renewalTime, notAfter]).toEqual(
				[notBefore, renewalTime, notAfter].sort(),
			);
		expect(status?.nextExpiry).toBe(
			list.map(({ notAfter }) => notAfter).sort()[0] ?? "",
		);
	});

	test("is not deployed before its Deployment is available, then once, and says so when it no longer is", async () => {
		const available = (status: "True" | "False") =>
			own(
				...["patch", "deployment", "etcd-new", "--subresource=status"],
				"--type=merge",
				"-p",
				JSON.stringify({
					status: {
						...(status === "True"
							? { replicas: 3, readyReplicas: 3, availableReplicas: 3 }
							: { replicas: 3, readyReplicas: 0, availableReplicas: 0 }),
						conditions: [{ type: "Available", status }],
					},
				}),
			);
		const waiting = await on.api.condition("new", "Deployed", /^False/);
		expect(waiting).toStartWith("False DeploymentNotAvailable: ");
		expect(waiting).toContain(`Deployment ${NAMESPACE}/etcd-new has 0 of 3`);
		expect(waiting).toContain(
			`kubectl -n ${NAMESPACE} describe pods -l apiserver=new`,
		);
		await on.api.condition("new", "Ready", /^False DeploymentNotAvailable: /);

		await available("True");
		await on.api.condition("new", "Ready", /^True Ready: serving https:/);
		await on.api.condition("new", "Deployed", /^True Deployed: /);
		const table = await kubectl("get", "es", "new");
		expect(table.split("\n")[0]).toMatch(
			/^NAME +ENDPOINT +READY +NEXT EXPIRY +AGE *$/,
		);
		expect(table.split("\n")[1]).toMatch(
			/^new +https:\/\/etcd-new\.kube-apiserver-storage\.svc:2379 +True +\d{4}-\S+Z +\S+ *$/,
		);

		await available("False");
		await on.api.condition("new", "Deployed", /^False .* has 0 of 3 replicas/);
		await available("True");
		await on.api.condition("new", "Ready", /^True /);
		const told = /^Normal EtcdStorageDeployed: Deployment .* is available/;
		expect(await on.api.events("new", told, 2)).toHaveLength(2);
		const failure = /^Warning EtcdStorageDeployFailure: /;
		expect(await on.api.events("new", failure, 1)).toHaveLength(1);
	}, 40_000);
});

/** What the controller has written since the audit log had the given length, events included. */
function writes(since: number): string[] {
	return readFileSync(on.cluster.auditLog)
		.subarray(since)
		.toString()
		.split("\n")
		.filter((line) => line.includes("etcdproxy-controller-sa"))
		.map((line) => JSON.parse(line))
		.filter(
			({ user, verb }) =>
				user.username ===
					`system:serviceaccount:${NAMESPACE}:etcdproxy-controller-sa` &&
				!["get", "list", "watch"].includes(verb),
		)
		.map(({ verb, objectRef }) =>
			[verb, objectRef.resource, objectRef.namespace, objectRef.name].join(" "),
		);
}

/** How many visits have ended, and how many wait. */
async function visits() {
	const text = await on.controller.metrics();
	const sum = (name: string) =>
		[...text.matchAll(new RegExp(`^${name}(?:{.*})? (\\d+)$`, "gm"))]
			.map(([, value]) => Number(value))
			.reduce((a, b) => a + b, 0);
	return {
		ended: sum("etcdproxy_reconcile_duration_seconds_count"),
		waiting: sum("etcdproxy_queue_depth"),
	};
}

describe("at rest", () => {
	async function versions(): Promise<Record<string, string>> {
		const text = await kubectl(
			...[
				"get",
				"etcdstorages,deployments,services,poddisruptionbudgets,configmaps,secrets,events",
			],
			...["--all-namespaces", "-o", "json"],
		);
		return Object.fromEntries(
			(JSON.parse(text).items as Json[]).map(({ kind, metadata }) => [
				`${kind} ${metadata.namespace}/${metadata.name}`,
				metadata.resourceVersion,
			]),
		);
	}
	beforeAll(() => on.api.tenant("rest"), 30_000);

	test("a visit after a touch of a watched object writes nothing", async () => {
		const before = await visits();
		await own("annotate", "service", "etcd-rest", "touched=yes");
		const [length, found] = [
			readFileSync(on.cluster.auditLog).length,
			await versions(),
		];
		await own("annotate", "configmap", "rest-ca-cert", "touched=yes");
		await until(async () => {
			const { ended, waiting } = await visits();
			return ended > before.ended + 1 && waiting === 0;
		}, "the touches have been looked at");
		delete found[`ConfigMap ${NAMESPACE}/rest-ca-cert`];
		expect(await versions()).toMatchObject(found);
		expect(writes(length)).toEqual([]);
	}, 30_000);

	test("a restarted controller writes nothing and repeats no event", async () => {
		await on.controller.stop();
		const [length, found] = [
			readFileSync(on.cluster.auditLog).length,
			await versions(),
		];
		on.controller = await startController(on.cluster);
		const { items } = JSON.parse(
			await kubectl("get", "etcdstorages", "-o", "json"),
		);
		await until(async () => {
			const { ended, waiting } = await visits();
			return ended >= items.length && waiting === 0;
		}, "each EtcdStorage has been looked at");
		expect(await versions()).toEqual(found);
		expect(writes(length)).toEqual([]);
		expect(on.controller.log()).not.toMatch(/WARN|ERROR|issued/);
	}, 30_000);
});

describe("a changed spec", () => {
	beforeAll(() => on.api.tenant("changes"), 30_000);
	const change = (spec: object) =>
		kubectl(
			...["patch", "etcdstorage", "changes", "--type=merge", "-p"],
			JSON.stringify({ spec }),
		);

	test("with another validity re-issues only what it touches", async () => {
		const before = await material(on.api, "changes");
		const issued = await on.api.issuedBy("changes", () =>
			change({ servingCertificateValidity: "500h" }),
		);
		expect(issued).toBe("server (validity changed: from 730h0m0s to 500h0m0s)");
		const now = await material(on.api, "changes");
		const { server, serverKey } = now;
		expect(now).toEqual({ ...before, server, serverKey });
		const { validFromDate, validToDate } = new X509Certificate(server);
		expect(+validToDate - +validFromDate).toBe((500 * 60 + 5) * 60_000);
	}, 20_000);

	test("with another validity of signers replaces them, and who trusts only the old ones accepts the new certificates", async () => {
		const before = await material(on.api, "changes");
		const issued = await on.api.issuedBy("changes", () =>
			change({ signingCertificateValidity: "700h" }),
		);
		// Of the two domains, none waits for the other.
		expect(issued).toContain(
			"client-signer (validity changed: from 730h0m0s to 700h0m0s); serving-signer (validity changed: from 730h0m0s to 700h0m0s)",
		);
		await until(async () => {
			const storage: EtcdStorage = await on.api.get("EtcdStorage", "changes");
			const phases = storage.status?.certificates?.map(
				({ rotation }) => rotation?.phase,
			);
			return phases?.[0] === "Retire" && phases[1] === "Spread";
		}, "all certificates are of the new signers");
		const now = await material(on.api, "changes");
		for (const { servingCA, clientCA } of [before, now]) {
			expect(opensslVerify("sslserver", now.server, servingCA)).toBe("OK");
			expect(opensslVerify("sslclient", now.client, clientCA)).toBe("OK");
		}
		expect(opensslVerify("sslclient", before.client, now.clientCA)).toBe("OK");
		expect(now.clientCA.match(/BEGIN CERTIFICATE/g)).toHaveLength(2);
	}, 20_000);

	test("with other replicas scales the Deployment, and nothing else", async () => {
		const before = await material(on.api, "changes");
		await change({ replicas: 5 });
		await until(
			async () =>
				(await on.api.get("Deployment", "etcd-changes")).spec.replicas === 5,
			"there are five replicas",
			10_000,
		);
		await on.api.condition("changes", "Deployed", / has 0 of 5 replicas ready/);
		expect(await material(on.api, "changes")).toEqual(before);
	});
});

describe("the proxies of an EtcdStorage", () => {
	beforeAll(() => on.api.tenant("plane"), 30_000);
	const deployment = () => on.api.get("Deployment", "etcd-plane");
	const problem =
		/^False CoreCredentialsInvalid: .* has the Common Name "boss"/;
	const withFlags = async (...flags: string[]) => {
		await on.controller.stop();
		on.controller = await startController(on.cluster, { flags });
	};

	test("that are gateways are not rolled by another CA of the core, and may have a Common Name in their certificate for it", async () => {
		const before = await deployment();
		const core = await Authority.create(join(on.cluster.dir, "core"), "core");
		const boss = await core.issue("boss", { subject: "/CN=boss" });
		const text = (path: string) => readFileSync(path, "utf8");
		const { ended } = await visits();
		for (const [kind, name, data] of [
			["configmap", "etcd-coreserving-ca", { "ca.crt": text(core.certFile) }],
			[
				...["secret", "etcd-coreserving-cert"],
				{
					"tls.crt": base64(text(boss.certFile)),
					"tls.key": base64(text(boss.keyFile)),
				},
			],
		] as [string, string, object][])
			await own(
				...["patch", kind, name, "--type=merge", "-p"],
				JSON.stringify({ data }),
			);
		const { items } = JSON.parse(
			await kubectl("get", "etcdstorages", "-o", "json"),
		);
		await until(async () => {
			const now = await visits();
			return now.ended >= ended + items.length && now.waiting === 0;
		}, "each EtcdStorage has been looked at");
		await on.api.condition("plane", "Deployed", /^False DeploymentNotAv/);
		expect(await deployment()).toEqual(before);
	}, 30_000);

	test("become etcd's own with etcd's image, and gateways again without it, each by one change", async () => {
		const before = await deployment();
		const container = ({ spec }: Json) => spec.template.spec.containers[0];
		await withFlags("--etcd-proxy-image=quay.io/coreos/etcd:v3.7.3");
		await on.api.condition("plane", "Deployed", problem);
		const { certFile, keyFile } = on.cluster.etcd;
		await own(
			...["patch", "secret", "etcd-coreserving-cert", "--type=merge", "-p"],
			JSON.stringify({
				data: {
					"tls.crt": base64(readFileSync(certFile, "utf8")),
					"tls.key": base64(readFileSync(keyFile, "utf8")),
				},
			}),
		);
		await on.api.condition("plane", "Deployed", /^False DeploymentNotAv/);
		const etcd = await deployment();
		expect(container(etcd).image).toBe("quay.io/coreos/etcd:v3.7.3");
		expect(container(etcd).command[0]).toBe("/usr/local/bin/etcd");
		expect(Object.keys(etcd.spec.template.metadata.annotations)).toEqual([
			"etcd.xmudrii.com/client-ca-sha256",
			"etcd.xmudrii.com/core-ca-sha256",
		]);
		await withFlags();
		await until(
			async () =>
				container(await deployment()).image === container(before).image,
			"they are gateways again",
		);
		const after = await deployment();
		expect(after.spec).toEqual(before.spec);
		expect(after.metadata.generation).toBe(before.metadata.generation + 2);
	}, 60_000);

	test("have the priority that they are to have, and none any more without it, each by one change", async () => {
		const before = await deployment();
		const priority = async () =>
			(await deployment()).spec.template.spec.priorityClassName;
		await withFlags("--etcd-proxy-priority-class=etcdproxy");
		await until(async () => (await priority()) === "etcdproxy", "they have it");
		await withFlags();
		await until(async () => (await priority()) === undefined, "they have none");
		const after = await deployment();
		expect(after.spec).toEqual(before.spec);
		expect(after.metadata.generation).toBe(before.metadata.generation + 2);
	}, 60_000);
});
