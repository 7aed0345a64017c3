/**
 * End to end on the one-node cluster: what `npm start` shows, and what comes after: outages, repairs, rotation, deletion.
 * One cluster for all; the tests go in order and build on each other, as a cluster's life does.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import type { EtcdStorage } from "../../etcdstorage.ts";
import { allRequests, inTurn } from "../audit.ts";
import {
	etcdStorage,
	FIRST_BUILD,
	type Json,
	NAMESPACE,
	until,
} from "../harness.ts";
import { objectsIn } from "../installation.ts";
import { granted, used } from "../rights.ts";
import {
	applied,
	type Demo,
	etcdctl,
	runDemo,
	tenantClient,
	underLoad,
	waitFor,
} from "./demo.ts";
import type { Refusal } from "./handshake.ts";
import { CONCURRENCY } from "./load.ts";
import { type Cluster, startCluster } from "./node.ts";
import { etcdImage, programImage } from "./nodeconfig.ts";
import { obstacle } from "./prerequisites.ts";
import { importPrevious, previousRevision } from "./previous.ts";
import { processesWith, run } from "./processes.ts";
import { terminalLog } from "./steps.ts";

const reason = await obstacle();
if (reason !== undefined) console.log(`skipped: ${reason}`);

const before = await previousRevision();
if (before === undefined)
	console.log("skipped: no history of git, so no version before this one");

const NAME = "sample-apiserver";
const TENANT = "k8s-sample-apiserver";
const SERVICE_ACCOUNT = `system:serviceaccount:${NAMESPACE}:etcdproxy-controller-sa`;
const MINUTE = 60_000;

describe.skipIf(reason !== undefined)("on a one-node cluster", () => {
	let cluster: Cluster;
	let demo: Demo;
	/** While controllers of the version before may be at work, milliseconds since the epoch. */
	const previous = { from: 0, to: 0 };
	beforeAll(async () => {
		const log = terminalLog();
		cluster = await startCluster(log);
		// The 2018 example manifest, unchanged, up to a Flunder that is read back and nobody else can see.
		demo = await runDemo(cluster, log);
	}, FIRST_BUILD);
	// Where a test ended badly; after the last one there is nothing left to stop.
	afterAll(() => cluster?.stop(), MINUTE);

	const json = async <T = Json>(...args: string[]): Promise<T> =>
		JSON.parse(await cluster.kubectl([...args, "--output=json"]));
	const storage = () => json<EtcdStorage>("get", "etcdstorage", NAME);
	const shown = async (type: string) => {
		const found = (await storage()).status?.conditions?.find(
			(one) => one.type === type,
		);
		return `${found?.status}: ${found?.message}`;
	};
	/** How far the replacement of the serving CA has got. */
	const serving = async () =>
		(await storage()).status?.certificates?.find(
			(one) => one.name === "serving-signer",
		)?.rotation;
	const patchStorage = (change: object) =>
		cluster.kubectl([
			...["patch", "etcdstorage", NAME, "--type=merge"],
			`--patch=${JSON.stringify(change)}`,
		]);
	const annotate = (what: string, why: string) =>
		patchStorage({
			metadata: { annotations: { [`etcd.xmudrii.com/${what}`]: why } },
		});
	const ready = async () =>
		(await storage()).status?.conditions?.find((one) => one.type === "Ready")
			?.status;
	const allPods = async () => {
		const selector = `--selector=apiserver=${NAME}`;
		const { items } = await json(
			"get",
			"pods",
			`--namespace=${NAMESPACE}`,
			selector,
		);
		return items as Json[];
	};
	/** The proxies, without those that are on their way out. */
	const pods = async () =>
		(await allPods()).filter((pod) => !pod.metadata.deletionTimestamp);
	const podNames = async () =>
		(await pods()).map((pod) => pod.metadata.name).sort();
	const deployment = () =>
		json("get", "deployment", `etcd-${NAME}`, `--namespace=${NAMESPACE}`);
	const ownKubectl = (...args: string[]) =>
		cluster.kubectl([`--namespace=${NAMESPACE}`, ...args]);
	/** Until the Deployment's pods are as it says, and those that they replace have ended. */
	const rolledOut = async () => {
		await ownKubectl(
			...["rollout", "status", `deployment/etcd-${NAME}`, "--timeout=180s"],
		);
		await until(
			async () => (await allPods()).length === 3,
			"the former pods are gone",
			MINUTE,
		);
	};
	/** Until all of its pods run another image. */
	const movedTo = async (image: string) => {
		await until(
			async () =>
				(await deployment()).spec.template.spec.containers[0].image === image,
			"the Deployment has the other image",
			MINUTE,
		);
		await rolledOut();
		await waitFor(cluster, "Ready", `etcdstorage/${NAME}`);
	};
	/** How often each gateway has taken up other client CAs. */
	const reloads = async () => {
		const logs = (await podNames()).map((pod) => ownKubectl("logs", pod));
		return (await Promise.all(logs)).map(
			(log) => log.split("client CA bundle reloaded").length - 1,
		);
	};
	const restarts = async () =>
		(await pods()).map(
			(pod) => pod.status.containerStatuses?.[0]?.restartCount ?? 0,
		);
	const flunder = (name: string) =>
		cluster.kubectl(
			["apply", "--filename=-"],
			JSON.stringify({
				apiVersion: "wardle.example.com/v1alpha1",
				kind: "Flunder",
				metadata: { name, namespace: "default" },
				spec: { reference: "" },
			}),
		);

	test("the EtcdStorage of 2018 is ready, with an endpoint and valid certificates", async () => {
		const { status } = await storage();
		expect(status?.endpoint).toBe(`https://etcd-${NAME}.${NAMESPACE}.svc:2379`);
		expect(
			status?.conditions?.map((one) => `${one.type}=${one.status}`).sort(),
		).toEqual([
			"CertificatesReady=True",
			"Deployed=True",
			"Ready=True",
			"RotationBlocked=False",
			"ValidityWarning=False",
		]);
		expect(status?.certificates?.map((one) => one.name)).toEqual([
			"client-signer",
			"serving-signer",
			"server",
			"client/k8s-sample-apiserver/etcd-client-cert",
		]);
	});

	test("three proxies run under the restricted Pod Security level, spread, with no token, and none has restarted", async () => {
		const found = await pods();
		expect(found).toHaveLength(3);
		expect(await restarts()).toEqual([0, 0, 0]);
		for (const pod of found)
			expect(JSON.stringify(pod.spec.volumes)).not.toContain(
				"serviceAccountToken",
			);
		const namespace = await json("get", "namespace", NAMESPACE);
		expect(
			namespace.metadata.labels["pod-security.kubernetes.io/enforce"],
		).toBe("restricted");
	});

	test(
		"the API server lists, changes, watches and deletes its objects through the endpoint",
		async () => {
			await flunder("second");
			await cluster.kubectl(["label", "flunder", "second", "colour=blue"]);
			const list = await json("get", "flunders", "--selector=colour=blue");
			expect((list.items as Json[]).map((one) => one.metadata.name)).toEqual([
				"second",
			]);
			await cluster.kubectl(["delete", "flunder", "second"]);
			const keys = await etcdctl(cluster, demo.core, [
				"get",
				"--prefix",
				"--keys-only",
				`/${NAME}/`,
			]);
			expect(keys).not.toContain("flunders/default/second");
		},
		MINUTE,
	);

	test(
		"a deleted Service and Deployment are back, and the API server works on",
		async () => {
			const before = await json(
				"get",
				"deployment",
				`etcd-${NAME}`,
				"--namespace",
				NAMESPACE,
			);
			await cluster.kubectl([
				"delete",
				"service,deployment",
				`etcd-${NAME}`,
				"--namespace",
				NAMESPACE,
			]);
			await until(
				async () => {
					const list = await json(
						"get",
						"deployment,service",
						"--namespace",
						NAMESPACE,
					);
					const found = (list.items as Json[]).filter(
						(one) =>
							one.metadata.name === `etcd-${NAME}` &&
							one.metadata.uid !== before.metadata.uid,
					);
					return found.length === 2;
				},
				"both are back",
				MINUTE,
			);
			await until(
				async () => (await ready()) === "True",
				"the EtcdStorage is ready again",
				MINUTE,
			);
			await until(
				() =>
					flunder("third").then(
						() => true,
						() => false,
					),
				"the API server reaches its etcd again",
				MINUTE,
			);
		},
		3 * MINUTE,
	);

	test(
		"while the core etcd is away, proxies are not ready but never restarted, and all recovers by itself",
		async () => {
			const before = await restarts();
			// The example core etcd loses its data with its pod; pausing the process keeps it.
			const pids = processesWith("--data-dir=/data/etcd");
			expect(pids).toHaveLength(1);
			for (const pid of pids) process.kill(pid, "SIGSTOP");
			try {
				await until(
					async () =>
						(await shown("Deployed")).includes("0 of 3 replicas ready"),
					"the EtcdStorage says that no proxy is ready",
					2 * MINUTE,
				);
				expect(await shown("Ready")).toStartWith("False");
				expect(await shown("CertificatesReady")).toStartWith("True");
			} finally {
				for (const pid of pids) process.kill(pid, "SIGCONT");
			}
			await until(
				async () => (await ready()) === "True",
				"the EtcdStorage is ready again",
				2 * MINUTE,
			);
			expect(before).toEqual([0, 0, 0]);
			expect(await restarts()).toEqual(before);
			await until(
				() =>
					flunder("fourth").then(
						() => true,
						() => false,
					),
				"the API server works again",
				MINUTE,
			);
		},
		6 * MINUTE,
	);

	test(
		"a core etcd that is killed and started again is found again by the gateways, which go on running",
		async () => {
			const core = async () => {
				const pod = await json("get", "pod", "etcd-0", "--namespace=etcd");
				return pod.status.containerStatuses[0];
			};
			const before = await core();
			for (const pid of processesWith("--data-dir=/data/etcd"))
				process.kill(pid, "SIGKILL");
			await until(
				async () => {
					const now = await core();
					return now.restartCount > before.restartCount && now.ready;
				},
				"the core etcd is back",
				MINUTE,
			);
			const back = performance.now();
			const works = () =>
				flunder("found-again").then(
					() => true,
					() => false,
				);
			await until(works, "the API server works again", MINUTE);
			const seconds = (performance.now() - back) / 1000;
			console.log(`works ${seconds.toFixed(1)} s after the core is back`);
			await waitFor(cluster, "Ready", `etcdstorage/${NAME}`);
			expect(await restarts()).toEqual([0, 0, 0]);
		},
		3 * MINUTE,
	);

	test(
		"shorter validities re-issue the leaves, and API server and proxies take it up without a restart of either",
		async () => {
			const before = await json(
				"get",
				"pods",
				"--namespace",
				"k8s-sample-apiserver",
			);
			const served = async () =>
				(
					await cluster.exec([
						"sh",
						"-c",
						`openssl s_client -connect etcd-${NAME}.${NAMESPACE}.svc:2379 </dev/null 2>/dev/null | openssl x509 -noout -serial -enddate`,
					])
				).trim();
			const old = await served();
			await cluster.kubectl([
				"patch",
				"etcdstorage",
				NAME,
				"--type=merge",
				`--patch={"spec":{"servingCertificateValidity":"100h","clientCertificateValidity":"100h"}}`,
			]);
			await until(
				// One that cannot be connected to at this moment tells nothing.
				async () => (await served().catch(() => old)) !== old,
				"the proxies serve the new certificate",
				3 * MINUTE,
			);
			expect(
				await etcdctl(cluster, await tenantClient(cluster), [
					"get",
					"--prefix",
					"--keys-only",
					"/registry/",
				]),
			).toContain("flunders/default/fourth");
			await flunder("fifth");
			const after = await json(
				"get",
				"pods",
				"--namespace",
				"k8s-sample-apiserver",
			);
			expect(
				(after.items as Json[]).map(
					(pod) => pod.status.containerStatuses[0].restartCount,
				),
			).toEqual(
				(before.items as Json[]).map(
					(pod) => pod.status.containerStatuses[0].restartCount,
				),
			);
		},
		5 * MINUTE,
	);

	test(
		"a new client CA is taken up by the gateways that run, and no request fails",
		async () => {
			const [before, { metadata }] = [await podNames(), await deployment()];
			const report = await underLoad(cluster, "a new client CA", async () => {
				await cluster.kubectl([
					"patch",
					"etcdstorage",
					NAME,
					"--type=merge",
					`--patch={"spec":{"signingCertificateValidity":"500h"}}`,
				]);
				await until(
					async () => (await reloads()).every((count) => count > 0),
					"each gateway has the new CA",
					2 * MINUTE,
				);
				// With the certificate that the new CA has signed.
				const keys = ["get", "--prefix", "--keys-only", "/registry/"];
				expect(
					await etcdctl(cluster, await tenantClient(cluster), keys),
				).toContain("flunders/default/fourth");
			});
			expect(report.requests).toBeGreaterThan(50);
			expect(report.failures).toEqual([]);
			expect(report.missed).toEqual([]);
			expect(await podNames()).toEqual(before);
			expect(await restarts()).toEqual([0, 0, 0]);
			expect((await deployment()).metadata.generation).toBe(
				metadata.generation,
			);
			const bundle = await json(
				...["get", "configmap", `${NAME}-ca-cert`],
				`--namespace=${NAMESPACE}`,
			);
			expect(
				bundle.data["client-ca.crt"].match(/BEGIN CERTIFICATE/g),
			).toHaveLength(2);
		},
		5 * MINUTE,
	);

	test(
		"a client certificate that got into wrong hands is refused by every gateway soon after somebody says so, and connections with it are closed",
		async () => {
			const { caFile, certificate, url } = await tenantClient(
				cluster,
				"stolen",
			);
			const thief = cluster.spawn("stolen", [
				...[process.execPath, join(import.meta.dir, "handshake.ts")],
				new URL(url).hostname,
				...[caFile, certificate?.certFile ?? "", certificate?.keyFile ?? ""],
				...(await pods()).map((pod) => pod.status.podIP),
			]);
			const said = () => readFileSync(thief.logFile, "utf8").trim().split("\n");
			await until(
				() => said().includes("open"),
				"it is accepted by each",
				MINUTE,
			);
			const start = Date.now();
			await annotate("compromised-client", "stolen");
			expect(await thief.exited).toBe(0);
			const { closed, refused }: Refusal = JSON.parse(said().at(-1) ?? "");
			const [closedAfter, refusedAfter] = [closed, refused].map((times) =>
				Object.values(times).map((time) => (Date.parse(time) - start) / 1000),
			) as [number[], number[]];
			console.log(
				`a stolen certificate: refused after ${refusedAfter} s, its connections closed after ${closedAfter} s`,
			);
			expect(refusedAfter).toHaveLength(3);
			// What a kubelet may take, and no more.
			expect(Math.max(...refusedAfter, ...closedAfter)).toBeLessThan(120);
			await until(
				() =>
					flunder("locked-out").then(
						() => true,
						() => false,
					),
				"the API server works with its new certificate",
				2 * MINUTE,
			);
			const bundle = await json(
				...["get", "configmap", `${NAME}-ca-cert`],
				`--namespace=${NAMESPACE}`,
			);
			expect(
				bundle.data["client-ca.crt"].match(/BEGIN CERTIFICATE/g),
			).toHaveLength(1);
			expect(await restarts()).toEqual([0, 0, 0]);
		},
		5 * MINUTE,
	);

	test(
		"an API server that is named as a consumer is restarted for the new CA, once, and no request fails",
		async () => {
			expect(await shown("RotationBlocked")).toStartWith("True");
			expect(await shown("RotationBlocked")).toContain("spec.consumers");
			const report = await underLoad(
				cluster,
				"a consumer's restart",
				async () => {
					await patchStorage({
						spec: {
							consumers: [
								{ kind: "Deployment", name: NAME, namespace: TENANT },
							],
						},
					});
					await until(
						async () => (await serving())?.phase === "Retire",
						"it has read the new CA",
						3 * MINUTE,
					);
				},
			);
			expect(report.failures).toEqual([]);
			expect(report.missed).toEqual([]);
			expect(await shown("RotationBlocked")).toStartWith("False");
			const apiServer = await json(
				...["get", "deployment", NAME, `--namespace=${TENANT}`],
			);
			expect(
				apiServer.spec.template.metadata.annotations[
					"etcd.xmudrii.com/serving-ca"
				],
			).toBe((await serving())?.generation);
		},
		5 * MINUTE,
	);

	test(
		"an API server that does not come back from its restart is waited for and said, and goes on when it is healed",
		async () => {
			const before = (await serving())?.generation;
			const setImage = (image: string) =>
				cluster.kubectl([
					...["set", "image", `deployment/${NAME}`, `${NAME}=${image}`],
					`--namespace=${TENANT}`,
				]);
			const apiServer = await json(
				...["get", "deployment", NAME, `--namespace=${TENANT}`],
			);
			await setImage("localhost/not-there:1");
			await annotate("rotate-serving", "a test of bad images");
			await until(
				async () => (await shown("RotationBlocked")).startsWith("True"),
				"it says that somebody is waited for",
				2 * MINUTE,
			);
			const said = await shown("RotationBlocked");
			console.log(`a consumer that does not start: ${said}`);
			expect(said).toContain(`Deployment ${TENANT}/${NAME} does not get on`);
			expect(said).toContain("Harmless until");
			expect(await serving()).toMatchObject({ phase: "Spread" });
			expect((await serving())?.generation).not.toBe(before);
			expect(await ready()).toBe("True");
			await flunder("served-by-the-former");
			await setImage(apiServer.spec.template.spec.containers[0].image);
			await until(
				async () => (await serving())?.phase === "Retire",
				"the spread is confirmed",
				3 * MINUTE,
			);
			expect(await shown("RotationBlocked")).toStartWith("False");
			await flunder("served-by-the-next");
		},
		6 * MINUTE,
	);

	test(
		"a bundle that cannot be written keeps the new CA from signing, is said, and goes on when it can",
		async () => {
			const before = (await serving())?.generation;
			const ofTenant = (...args: string[]) =>
				cluster.kubectl([`--namespace=${TENANT}`, ...args]);
			await ofTenant(
				...["patch", "configmap", "etcd-serving-ca"],
				...["--type=merge", '--patch={"immutable":true}'],
			);
			await annotate("rotate-serving", "a test of immutable targets");
			await until(
				async () => (await shown("RotationBlocked")).startsWith("True"),
				"it says that somebody is waited for",
				2 * MINUTE,
			);
			const said = await shown("RotationBlocked");
			console.log(`an immutable target: ${said}`);
			expect(said).toContain(
				`ConfigMap ${TENANT}/etcd-serving-ca is immutable`,
			);
			expect(await serving()).toMatchObject({ phase: "Publish" });
			await flunder("before-the-new-ca-signs");
			await ofTenant("delete", "configmap", "etcd-serving-ca");
			await ofTenant("create", "configmap", "etcd-serving-ca");
			await until(
				async () => {
					const now = await serving();
					return now?.phase === "Retire" && now.generation !== before;
				},
				"the spread is confirmed",
				3 * MINUTE,
			);
			expect(await shown("RotationBlocked")).toStartWith("False");
			expect(await ready()).toBe("True");
			await flunder("after-the-new-ca-has-signed");
		},
		6 * MINUTE,
	);

	test(
		"gateways that are replaced, one after the other and twice, cost not one request and not one event of a watch",
		async () => {
			const report = await underLoad(
				cluster,
				"two rolling restarts",
				async () => {
					for (const _ of ["once", "again"]) {
						const before = await podNames();
						await ownKubectl(
							...["rollout", "restart", `deployment/etcd-${NAME}`],
						);
						await rolledOut();
						for (const name of await podNames())
							expect(before).not.toContain(name);
					}
				},
			);
			expect(report.requests).toBeGreaterThan(500);
			expect(report.events).toBeGreaterThan(200);
			expect(report.failures).toEqual([]);
			expect(report.missed).toEqual([]);
			expect(await restarts()).toEqual([0, 0, 0]);
		},
		8 * MINUTE,
	);

	test.skipIf(before === undefined)(
		"the version before takes the place of this one and the other way round, by its manifest, and no request fails",
		async () => {
			const log = terminalLog();
			const manifest = await importPrevious(
				cluster,
				before ?? "",
				demo.program,
				log,
			);
			const move = async (to: string) => {
				await cluster.kubectl(["apply", "--filename=-"], to);
				await demo.controller.rolledOut();
				const [image = ""] = /\S+\/etcdproxy-controller:\S+/.exec(to) ?? [];
				await movedTo(image);
			};
			const ours = await applied("deployment/00-etcdproxy-controller.yaml");
			Object.assign(previous, { from: Date.now(), to: Infinity });
			for (const [what, to] of [
				["downgrade", manifest],
				["upgrade", ours],
			] as const) {
				const report = await underLoad(cluster, what, () => move(to));
				expect(report.requests).toBeGreaterThan(100);
				expect(report.failures).toEqual([]);
				expect(report.missed).toEqual([]);
			}
			previous.to = Date.now();
		},
		8 * MINUTE,
	);

	test(
		"etcd's own proxies take the gateways' place and the other way round, while the API server works on",
		async () => {
			const move = async (image: string) => {
				await demo.controller.setProxyImage(image);
				await movedTo(image);
			};
			const program = async () =>
				(await pods()).map((pod) => pod.spec.containers[0].command[0]);
			const key = ["get", "--print-value-only", "/moved"];

			const there = await underLoad(cluster, "gateway to etcd", () =>
				move(etcdImage),
			);
			expect(await program()).toEqual(Array(3).fill("/usr/local/bin/etcd"));
			const tenant = await tenantClient(cluster);
			await etcdctl(cluster, tenant, ["put", "/moved", "through etcd"]);
			const [, lease = ""] =
				/^lease (\w+) granted/.exec(
					await etcdctl(cluster, tenant, ["lease", "grant", "600"]),
				) ?? [];
			await etcdctl(cluster, tenant, ["put", "/leased", "", "--lease", lease]);

			const back = await underLoad(cluster, "etcd to gateway", () =>
				move(programImage),
			);
			expect(await program()).toEqual(
				Array(3).fill("/usr/local/bin/etcdproxy-controller"),
			);
			expect((await etcdctl(cluster, tenant, key)).trim()).toBe("through etcd");
			// Its number is not one of the gateway's, but the lease still holds the key.
			const leased = async () =>
				JSON.parse(
					await etcdctl(cluster, tenant, [
						"get",
						"/leased",
						"--write-out=json",
					]),
				).kvs;
			expect(await leased()).toMatchObject([{ version: 1 }]);
			expect((await leased())[0].lease).toBeUndefined();
			await etcdctl(cluster, demo.core, ["lease", "revoke", lease]);
			expect(await leased()).toBeUndefined();

			const { annotations = {} } = (await deployment()).spec.template.metadata;
			expect(JSON.stringify(annotations)).not.toContain("ca-sha256");

			expect(there.requests).toBeGreaterThan(100);
			expect(there.failures).toEqual([]);
			expect(there.missed).toEqual([]);
			expect(back.requests).toBeGreaterThan(100);
			// grpc-proxy ends without draining: what is under way in one of the three is answered Unavailable.
			expect(back.failures.length).toBeLessThanOrEqual(3 * CONCURRENCY);
			for (const failure of back.failures)
				expect(failure).toContain("code = Unavailable");
			expect(back.missed).toEqual([]);
		},
		8 * MINUTE,
	);

	test(
		"a name of 58 characters works down to the pods, also with targets in the controller's own namespace",
		async () => {
			const name = "n".repeat(58);
			await ownKubectl("create", "configmap", "etcd-serving-ca");
			await ownKubectl("create", "secret", "generic", "etcd-client-cert");
			await cluster.kubectl(
				["apply", "--filename=-"],
				JSON.stringify(etcdStorage(name, NAMESPACE, { replicas: 1 })),
			);
			await waitFor(cluster, "Ready", `etcdstorage/${name}`);
			await cluster.kubectl(["delete", "etcdstorage", name, "--timeout=60s"]);
		},
		2 * MINUTE,
	);

	test(
		"another controller leads within 15 s after the leader was killed, paused or cut off from the network, at once after it was told to go; and no two ever write at once",
		async () => {
			const { controller } = demo;
			const service = async () => {
				const { items } = await json(
					...["get", "services", `--namespace=${NAMESPACE}`],
				);
				return (items as Json[]).find(
					(one) => one.metadata.name === `etcd-${NAME}`,
				)?.metadata.uid;
			};
			const led = [await controller.leader()];
			const container = async (pod: string) => {
				const found = await json(
					...["get", "pod", pod, `--namespace=${NAMESPACE}`],
				);
				return found.status.containerStatuses[0];
			};
			/** @param limit in seconds; what is promised, and as much again for a machine that is busy */
			const takeover = async (
				what: string,
				limit: number,
				end: (leader: string) => Promise<unknown>,
			) => {
				const leader = await controller.leader();
				const { restartCount } = await container(leader);
				const start = performance.now();
				await end(leader);
				led.push(await controller.leaderOtherThan(leader));
				const seconds = (performance.now() - start) / 1000;
				console.log(`another leads ${seconds.toFixed(1)} s after ${what}`);
				expect(seconds).toBeLessThan(2 * limit);
				const before = await service();
				await ownKubectl("delete", "service", `etcd-${NAME}`);
				await until(
					async () => ![undefined, before].includes(await service()),
					"it repairs",
					MINUTE,
				);
				return { pod: leader, restartCount };
			};
			/** Until it runs anew: it has ended by itself, or by the kubelet, whose probe it did not answer. */
			const restarted = (before: { pod: string; restartCount: number }) =>
				until(
					async () => {
						const now = await container(before.pod);
						return now.ready && now.restartCount > before.restartCount;
					},
					"it has started anew",
					2 * MINUTE,
				);

			await takeover("SIGKILL", 15, () => controller.kill());
			await controller.rolledOut();
			await takeover("SIGTERM", 5, (leader) =>
				ownKubectl("delete", "pod", leader, "--wait=false"),
			);
			await controller.rolledOut();

			let pid = 0;
			const paused = await takeover("SIGSTOP", 15, async (leader) => {
				pid = controller.pid(leader);
				process.kill(pid, "SIGSTOP");
			});
			// Unless the kubelet has ended it, after three probes in vain.
			if (processesWith("--leader-elect").includes(pid))
				process.kill(pid, "SIGCONT");
			await restarted(paused);

			// Held open, since the process ends.
			let network = 0;
			const nft = (rules: string) => {
				const path = `/proc/${process.pid}/fd/${network}`;
				return run(["nsenter", `--net=${path}`, "nft", rules]);
			};
			const lonely = await takeover("its network was cut", 15, (leader) => {
				network = openSync(`/proc/${controller.pid(leader)}/ns/net`, "r");
				return nft(
					"add table inet cut; add chain inet cut out { type filter hook output priority 0; policy drop; }",
				);
			});
			await nft("delete table inet cut");
			closeSync(network);
			await restarted(lonely);

			const requests = await allRequests(cluster);
			const writers = inTurn(
				requests.filter(({ user }) => user === SERVICE_ACCOUNT),
				"pod",
			);
			expect(writers.slice(writers.indexOf(led[0]))).toEqual(led);
		},
		8 * MINUTE,
	);

	test(
		"deletion takes everything along but the data, and empties the targets",
		async () => {
			await cluster.kubectl(["delete", "etcdstorage", NAME, "--timeout=60s"]);
			await until(
				async () => {
					const list = await json(
						"get",
						"deployment,service,poddisruptionbudget,configmap,secret,pods",
						"--namespace",
						NAMESPACE,
					);
					return (list.items as Json[]).every(
						(one) => !one.metadata.name.includes(NAME),
					);
				},
				"the controller's namespace holds nothing of it",
				2 * MINUTE,
			);
			const targets = await json(
				"get",
				"configmap/etcd-serving-ca",
				"secret/etcd-client-cert",
				"--namespace=k8s-sample-apiserver",
			);
			for (const target of targets.items as Json[]) {
				expect(Object.values(target.data ?? {}).join("")).toBe("");
				expect(JSON.stringify(target.metadata.annotations ?? {})).not.toContain(
					"etcd.xmudrii.com",
				);
			}
			const keys = await etcdctl(cluster, demo.core, [
				"get",
				"--prefix",
				"--keys-only",
				`/${NAME}/`,
			]);
			expect(keys).toContain("flunders/default/my-first-flunder");
			expect(
				await cluster.kubectl([
					"get",
					"events",
					"--namespace=default",
					"--field-selector=reason=DataRetained",
				]),
			).toContain(NAME);
		},
		4 * MINUTE,
	);

	test("the controller has used each of its rights, and was refused nothing", async () => {
		const files = [
			"deployment/00-etcdproxy-controller.yaml",
			"etcdstorage/rbac.yaml",
		];
		const texts = await Promise.all(files.map(applied));
		const roles = texts.flatMap(objectsIn);
		// Those of the version before were of the same ServiceAccount, but say nothing of this one: it may use rights that
		// this one has and leaves, and what it was refused is no fault of this one's.
		const requests = (await allRequests(cluster)).filter(
			({ user, at }) =>
				user === SERVICE_ACCOUNT && (at < previous.from || at > previous.to),
		);
		const rights = used(requests);
		expect(granted(roles).filter((one) => !rights.has(one))).toEqual([]);
		expect(
			requests
				.filter(({ decision }) => decision === "forbid")
				.map(
					(one) => `${one.verb} ${one.resource} ${one.namespace}/${one.name}`,
				),
		).toEqual([]);
	});

	test(
		"the cluster leaves no process, mount, link or cgroup behind",
		async () => {
			const traces = () => [
				...processesWith(basename(cluster.dir)),
				...readFileSync("/proc/mounts", "utf8")
					.split("\n")
					.filter((line) => line.includes(basename(cluster.dir))),
				...readdirSync("/sys/fs/cgroup", {
					recursive: true,
					encoding: "utf8",
				}).filter((path) => path.includes(basename(cluster.dir))),
				...readdirSync(tmpdir()).filter(
					(name) => name === basename(cluster.dir),
				),
			];
			expect(traces().length).toBeGreaterThan(5);
			await cluster.stop();
			expect(traces()).toEqual([]);
		},
		MINUTE,
	);
});
