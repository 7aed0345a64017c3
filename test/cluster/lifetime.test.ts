/**
 * Certificates for a lifetime, on the one-node cluster with validities of minutes: signers are replaced and leaves
 * renewed under load, while the controller is killed and gateways are deleted. LIFETIME_MINUTES=30 makes it a long run.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import type { EtcdStorage } from "../../etcdstorage.ts";
import { type Domain, domains } from "../../lifetimes.ts";
import { FIRST_BUILD, type Json, NAMESPACE, until } from "../harness.ts";
import { type Demo, meanwhile, runDemo, underLoad, waitFor } from "./demo.ts";
import type { LawsReport } from "./laws.ts";
import { CONCURRENCY, type LoadReport } from "./load.ts";
import { type Cluster, startCluster } from "./node.ts";
import { etcdImage } from "./nodeconfig.ts";
import { obstacle } from "./prerequisites.ts";
import type { Child } from "./processes.ts";
import { terminalLog } from "./steps.ts";

const reason = await obstacle();
if (reason !== undefined) console.log(`skipped: ${reason}`);

const NAME = "sample-apiserver";
const TENANT = "k8s-sample-apiserver";
const SECOND = 1000;
const MINUTE = 60 * SECOND;

/** How long signers are replaced under load, at least. */
const LIFETIME = Number(Bun.env.LIFETIME_MINUTES ?? 4) * MINUTE;
const long = LIFETIME > 10 * MINUTE;
/** Replaced after half of that, and each must have been read by everybody in the other half. */
const SIGNER = long ? 6 * MINUTE : 3 * MINUTE;
/** What remains of it when it is renewed covers a dead leader's lease and the kubelet. */
const LEAF = long ? 3 * MINUTE : 2 * MINUTE;
/** Of both domains, with the former CA retired. */
const REPLACEMENTS = 2;

const goSeconds = (ms: number) => `${ms / SECOND}s`;
const validities = (signer: number, leaf: number) => ({
	signingCertificateValidity: goSeconds(signer),
	servingCertificateValidity: goSeconds(leaf),
	clientCertificateValidity: goSeconds(leaf),
});
const between = (from: number, to: number) =>
	from + Math.random() * (to - from);

describe.skipIf(reason !== undefined)("certificates for a lifetime", () => {
	let cluster: Cluster;
	let demo: Demo;
	beforeAll(async () => {
		const log = terminalLog();
		cluster = await startCluster(log);
		demo = await runDemo(cluster, log, {
			...validities(SIGNER, LEAF),
			consumers: [{ kind: "Deployment", name: NAME, namespace: TENANT }],
		});
	}, FIRST_BUILD);
	afterAll(() => cluster?.stop(), MINUTE);

	const json = async <T = Json>(...args: string[]): Promise<T> =>
		JSON.parse(await cluster.kubectl([...args, "--output=json"]));
	const storage = () => json<EtcdStorage>("get", "etcdstorage", NAME);
	const condition = async (type: string) => {
		const found = (await storage()).status?.conditions?.find(
			(one) => one.type === type,
		);
		return `${type}=${found?.status} ${found?.reason}: ${found?.message}`;
	};
	const patch = (change: object) =>
		cluster.kubectl([
			...["patch", "etcdstorage", NAME, "--type=merge"],
			`--patch=${JSON.stringify(change)}`,
		]);
	const gateways = async () => {
		const selector = `--selector=apiserver=${NAME}`;
		const { items } = await json(
			...["get", "pods", `--namespace=${NAMESPACE}`, selector],
		);
		return items as Json[];
	};
	const isUp = ({ metadata, status }: Json) =>
		!metadata.deletionTimestamp &&
		status.containerStatuses?.every((one: Json) => one.ready);
	const flunder = (name: string) =>
		cluster.kubectl(
			["apply", "--request-timeout=5s", "--filename=-"],
			JSON.stringify({
				apiVersion: "wardle.example.com/v1alpha1",
				kind: "Flunder",
				metadata: { name, namespace: "default" },
				spec: { reference: "" },
			}),
		);
	const works = (name: string) =>
		flunder(name).then(
			() => true,
			() => false,
		);

	/** Both at once. */
	const observed = async (
		what: string,
		action: (laws: Child) => Promise<unknown>,
	): Promise<{ load: LoadReport; laws: LawsReport }> => {
		let laws: LawsReport | undefined;
		const load = await underLoad(cluster, what, async () => {
			laws = await meanwhile<LawsReport>(cluster, what, "laws.ts", action);
		});
		if (!laws) throw new Error("no laws");
		const { rotations, violations, ...figures } = laws;
		console.log(
			`${what}: ${JSON.stringify(figures)}, ${violations.length} violations`,
		);
		for (const domain of domains)
			for (const one of rotations[domain])
				console.log(
					`${domain} ${one.generation}: made ${one.made}, spread confirmed after ${one.confirmed?.toFixed(0)} s, retired after ${one.retired?.toFixed(0)} s`,
				);
		return { load, laws };
	};
	const linesOf = (child: Child, pattern: RegExp) =>
		readFileSync(child.logFile, "utf8").match(pattern)?.length ?? 0;

	/** How many signers have come to that. */
	const count = (laws: Child, domain: Domain, step: string) =>
		linesOf(laws, new RegExp(`^${domain}: \\w+ ${step}$`, "gm"));

	/** Until told to stop: the controller is killed at any moment, every other time in the middle of a phase. */
	const killing = async (stopped: () => boolean): Promise<number> => {
		const events = cluster.spawn("rotation-events", [
			...[cluster.binary("kubectl"), `--kubeconfig=${cluster.kubeconfig}`],
			...["get", "events", "--namespace=default", "--watch-only"],
		]);
		const steps = () => linesOf(events, /Rotation(Publish|Sign)/g);
		let kills = 0;
		while (!stopped()) {
			const [from, wait] = [steps(), between(20, 60) * SECOND];
			const due = performance.now() + wait;
			while (performance.now() < due && !stopped()) {
				if (kills % 2 === 1 && steps() > from) break;
				await Bun.sleep(20);
			}
			if (stopped()) break;
			await demo.controller.kill();
			kills++;
		}
		await events.stop();
		return kills;
	};

	/** Likewise, for gateways; one at a time, as a drain does. */
	const deleting = async (stopped: () => boolean): Promise<number> => {
		let deleted = 0;
		while (!stopped()) {
			const due = performance.now() + between(15, 40) * SECOND;
			while (performance.now() < due && !stopped()) await Bun.sleep(100);
			const up = (await gateways()).filter(isUp);
			const victim = up[Math.floor(Math.random() * up.length)];
			if (stopped() || up.length < 3) continue;
			await cluster.kubectl([
				...["delete", "pod", victim.metadata.name, "--wait=false"],
				`--namespace=${NAMESPACE}`,
			]);
			deleted++;
		}
		return deleted;
	};

	test(
		"signers and leaves are replaced by age, while the controller is killed and gateways are deleted: no request fails, no event is missed, and everybody accepts everybody all the time",
		async () => {
			const start = performance.now();
			let over = false;
			const acts = { kills: 0, deleted: 0 };
			const { load, laws } = await observed("a lifetime", async (laws) => {
				const chaos = Promise.all([killing(() => over), deleting(() => over)]);
				await until(
					async () => {
						laws.mustRun();
						return (
							performance.now() - start > LIFETIME &&
							domains.every(
								(domain) => count(laws, domain, "retired") >= REPLACEMENTS,
							)
						);
					},
					"signers have been replaced often enough",
					LIFETIME + 4 * MINUTE,
				).finally(() => {
					over = true;
				});
				[acts.kills, acts.deleted] = await chaos;
			});
			console.log(
				`controller killed ${acts.kills} times, ${acts.deleted} gateways deleted`,
			);
			expect(load.requests).toBeGreaterThan(1000);
			expect(load.failures).toEqual([]);
			expect(load.missed).toEqual([]);
			expect(laws.violations).toEqual([]);
			expect(laws.handshakes).toBeGreaterThan(200);
			expect(acts.kills).toBeGreaterThan(2);
			expect(acts.deleted).toBeGreaterThan(3);
			for (const domain of domains) {
				const replaced = laws.rotations[domain].filter(
					(one) => one.retired !== undefined,
				);
				expect(replaced.length).toBeGreaterThanOrEqual(REPLACEMENTS);
				// The first was there before; the last may not have come so far.
				for (const { confirmed } of laws.rotations[domain].slice(1, -1))
					expect(confirmed).toBeLessThan(SIGNER / 2 / SECOND);
			}
			for (const pod of await gateways())
				expect(pod.status.containerStatuses[0].restartCount).toBe(0);
		},
		LIFETIME + 10 * MINUTE,
	);

	test(
		"a controller that was stopped past every expiry makes everything work again, alone",
		async () => {
			await patch({ spec: validities(MINUTE, MINUTE) });
			await until(
				async () => {
					const { certificates = [] } = (await storage()).status ?? {};
					const soon = Date.now() + MINUTE;
					return certificates.every((one) => Date.parse(one.notAfter) <= soon);
				},
				"all certificates have the short validity",
				MINUTE,
			);
			await demo.controller.stop();
			// Of the CAs, which outlive all that they have signed, there are several.
			const { data } = await json(
				...["get", "configmap", `${NAME}-ca-cert`, `--namespace=${NAMESPACE}`],
			);
			const last = Math.max(
				...Object.values<string>(data)
					.flatMap((bundle) => bundle.split(/(?=-----BEGIN)/))
					.map((pem) => Date.parse(new X509Certificate(pem).validTo)),
			);
			await until(
				async () => Date.now() > last + SECOND,
				"everything has expired",
				SIGNER + MINUTE,
			);
			await until(
				async () => !(await works("expired")),
				"the API server has lost its etcd",
				MINUTE,
			);
			await patch({ spec: validities(SIGNER, LEAF) });
			const start = performance.now();
			await demo.controller.start();
			const said = new Set<string>();
			await until(
				async () => {
					for (const type of ["CertificatesReady", "RotationBlocked"])
						said.add(await condition(type));
					return works("recovered");
				},
				"the API server works again",
				5 * MINUTE,
			);
			const seconds = (performance.now() - start) / SECOND;
			await waitFor(cluster, "Ready", `etcdstorage/${NAME}`);
			console.log(
				`works again ${seconds.toFixed(1)} s after the controller's start; it said\n${[...said].join("\n")}`,
			);
			expect(await condition("CertificatesReady")).toStartWith(
				"CertificatesReady=True",
			);
			// It was restarted when its kubelet could have the new CA, not together with the writing of it.
			const ofTenant = [`--namespace=${TENANT}`, "--show-managed-fields"];
			const [target, { items }] = await Promise.all([
				json("get", "configmap", "etcd-serving-ca", ...ofTenant),
				json("get", "pods", ...ofTenant),
			]);
			const written = (target.metadata.managedFields as Json[]).map((one) =>
				Date.parse(one.time),
			);
			const created = (items as Json[]).map((pod) =>
				Date.parse(pod.metadata.creationTimestamp),
			);
			expect(Math.max(...created)).toBeGreaterThanOrEqual(
				Math.max(...written) + 10 * SECOND,
			);
		},
		10 * MINUTE,
	);

	test(
		"with etcd's own proxies both signers are replaced as well",
		async () => {
			await demo.controller.setProxyImage(etcdImage);
			await until(
				async () => {
					const pods = await gateways();
					return (
						pods.length === 3 &&
						pods.every(
							(pod) => isUp(pod) && pod.spec.containers[0].image === etcdImage,
						)
					);
				},
				"all proxies are etcd's",
				3 * MINUTE,
			);
			const { load, laws } = await observed(
				"etcd's own proxy",
				async (laws) => {
					await patch({
						metadata: {
							annotations: {
								"etcd.xmudrii.com/rotate-client": "a test",
								"etcd.xmudrii.com/rotate-serving": "a test",
							},
						},
					});
					// In the short run, the former one is not waited for to expire.
					const step = long ? "retired" : "confirmed";
					await until(
						async () => {
							laws.mustRun();
							return domains.every((domain) => count(laws, domain, step) > 0);
						},
						"both signers have been replaced",
						SIGNER + 2 * MINUTE,
					);
				},
			);
			expect(laws.violations).toEqual([]);
			for (const domain of domains)
				expect(
					laws.rotations[domain].slice(1).map((one) => one.confirmed),
				).toContainEqual(expect.any(Number));
			expect(load.missed).toEqual([]);
			// It ends without draining: a write that is under way in it at that moment is not repeated by the API server.
			expect(load.failures.length).toBeLessThanOrEqual(
				laws.proxies * CONCURRENCY,
			);
			for (const failure of load.failures)
				expect(failure).toContain("code = Unavailable");
		},
		10 * MINUTE,
	);
});
