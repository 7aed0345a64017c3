/**
 * The one-node cluster as the Go controller of 2018 left it, with its RSA certificates and etcd's own proxies, is taken
 * over under load, and given back: by the commands of artifacts/upgrade-from-2018.md.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { EtcdStorage } from "../../etcdstorage.ts";
import { domains } from "../../lifetimes.ts";
import { secretText } from "../client.ts";
import { FIRST_BUILD, type Json, NAMESPACE, until } from "../harness.ts";
import * as predecessor from "../predecessor.ts";
import {
	applyCoreEtcd,
	applyFile,
	coreClient,
	type EtcdClient,
	etcdctl,
	importProgram,
	meanwhile,
	underLoad,
	waitFor,
} from "./demo.ts";
import type { LawsReport } from "./laws.ts";
import { CONCURRENCY, type LoadReport } from "./load.ts";
import { type Cluster, startCluster } from "./node.ts";
import { etcdImage } from "./nodeconfig.ts";
import { obstacle } from "./prerequisites.ts";
import { step, terminalLog } from "./steps.ts";

const reason = await obstacle();
if (reason !== undefined) console.log(`skipped: ${reason}`);

const NAME = "sample-apiserver";
const TENANT = "k8s-sample-apiserver";
const MINUTE = 60_000;
const DAY = 24 * 60 * MINUTE;
/** What the certificates of 2018 have left: for the start of the API server, for the takeover, and then to be seen to end. */
const LEFT = 5 * MINUTE;
const PROXIES = 3;

const guide = readFileSync(
	join(import.meta.dir, "../../artifacts/upgrade-from-2018.md"),
	"utf8",
);
/** The kubectl commands under a heading of the guide, in its numbered blocks, as words. */
const commands = (heading: string): string[][][] => {
	const [, section = ""] = guide.split(`\n## ${heading}\n`);
	const [own = ""] = section.split(/\n##? /);
	return [...own.matchAll(/^ *```sh\n(.*?)^ *```$/gms)].map(([, block = ""]) =>
		block
			.trim()
			.split("\n")
			.map((line) =>
				[...line.trim().matchAll(/'([^']*)'|(\S+)/g)].map(
					([, quoted, word = ""]) => quoted ?? word,
				),
			),
	);
};

describe.skipIf(reason !== undefined)("a cluster of 2018", () => {
	let cluster: Cluster;
	let core: EtcdClient;
	let before: Awaited<ReturnType<typeof state>>;

	beforeAll(async () => {
		const log = terminalLog();
		cluster = await startCluster(log);
		await importProgram(cluster, log);
		await step(log, "the Go controller of 2018 has been there", inherit);
		await step(log, "its API server is Available", async () => {
			await applyFile(cluster, "demo/01-sample-apiserver.yaml");
			const service = "apiservice/v1alpha1.wardle.example.com";
			await waitFor(cluster, "Available", service, 120);
			await applyFile(cluster, "demo/flunder.yaml");
		});
		core = await coreClient(cluster);
		before = await state();
	}, FIRST_BUILD);
	afterAll(() => cluster?.stop(), MINUTE);

	/** All that it leaves behind, but for its own program, of which there is no image. */
	async function inherit(): Promise<void> {
		const { url, caFile, certFile, keyFile } = cluster.etcd;
		await cluster.exec(
			[
				...[cluster.binary("etcdctl"), `--endpoints=${url}`],
				...[`--cacert=${caFile}`, `--cert=${certFile}`, `--key=${keyFile}`],
				...["put", predecessor.crdKey],
			],
			{ stdin: JSON.stringify(predecessor.storedCrd()) },
		);
		await waitFor(cluster, "Established", `crd/etcdstorages.etcd.xmudrii.com`);
		const list = { apiVersion: "v1", kind: "List" };
		await cluster.kubectl(
			["create", "--filename=-"],
			JSON.stringify({ ...list, items: predecessor.installation() }),
		);
		await applyCoreEtcd(cluster);
		await applyFile(cluster, "demo/00-namespace.yaml");
		await applyFile(cluster, "etcdstorage/rbac.yaml");
		const material = await predecessor.material(NAME, {
			issued: Date.now() - 20 * DAY,
			expires: Date.now() + LEFT,
		});
		// The image has no shell for the probe: it would end the proxies.
		await predecessor.leave(cluster.kubectl, NAME, {
			...{ material, image: etcdImage, probe: false, unmanaged: true },
		});
		await rolledOut();
	}

	const json = async <T = Json>(...args: string[]): Promise<T> =>
		JSON.parse(await cluster.kubectl([...args, "--output=json"]));
	const own = (...args: string[]) =>
		cluster.kubectl([`--namespace=${NAMESPACE}`, ...args]);
	const proxies = async () => {
		const { items } = await json(
			...["get", "pods", `--namespace=${NAMESPACE}`],
			`--selector=apiserver=${NAME}`,
		);
		return items as Json[];
	};
	const rolledOut = async () => {
		await own("rollout", "status", `deployment/etcd-${NAME}`, "--timeout=180s");
		await until(
			async () => (await proxies()).length === PROXIES,
			"the former pods are gone",
			MINUTE,
		);
	};
	/** What must stay as it is. */
	const state = async () => ({
		// One that the load does not touch, with its revisions.
		keys: (
			await etcdctl(cluster, core, [
				...["get", "--prefix", `/${NAME}/`, "--write-out=fields"],
			])
		)
			.split(/(?=^"Key" : )/m)
			.filter((one) => /^"Key" : \S+my-first-flunder"$/m.test(one))
			.map((one) => one.split(/^"More" : /m)[0]),
		address: await own(
			...["get", "service", `etcd-${NAME}`],
			"--output=jsonpath={.spec.clusterIP}",
		),
		uid: await own(
			...["get", "deployment", `etcd-${NAME}`],
			"--output=jsonpath={.metadata.uid}",
		),
	});
	const phase = async (domain: string) => {
		const { status } = await json<EtcdStorage>("get", "etcdstorage", NAME);
		return status?.certificates?.find((one) => one.name === `${domain}-signer`)
			?.rotation?.phase;
	};
	const all = async (wanted: string, timeout: number) => {
		for (const domain of domains)
			await until(
				async () => (await phase(domain)) === wanted,
				`the ${domain} CA is in ${wanted}`,
				timeout,
			);
	};
	/** Every certificate that is handed out or trusted. */
	const handedOut = async () => {
		const tenant = `--namespace=${TENANT}`;
		const [copy, server, target, leaf] = await Promise.all([
			json("get", "configmap", `${NAME}-ca-cert`, `--namespace=${NAMESPACE}`),
			json("get", "secret", `${NAME}-server-cert`, `--namespace=${NAMESPACE}`),
			json("get", "configmap", "etcd-serving-ca", tenant),
			json("get", "secret", "etcd-client-cert", tenant),
		]);
		return [
			...[copy.data["client-ca.crt"], target.data["serving-ca.crt"]],
			...[secretText(server, "tls.crt"), secretText(leaf, "tls.crt")],
		].flatMap((text: string) =>
			text
				.split(/(?=-----BEGIN)/)
				.map((pem) => new X509Certificate(pem).publicKey.asymmetricKeyType),
		);
	};
	/** Runs the guide's commands of one block. */
	const run = async (
		block: string[][] = [],
		edit = (words: string[]) => words,
	) => {
		for (const [program, ...words] of block) {
			expect(program).toBe("kubectl");
			await cluster.kubectl(edit(words));
		}
	};
	/** A load on the API server, and a look at who accepts whom, both all the time. */
	const observed = async (
		what: string,
		action: () => Promise<unknown>,
	): Promise<{ load: LoadReport; laws: LawsReport }> => {
		let laws: LawsReport | undefined;
		const load = await underLoad(cluster, what, async () => {
			laws = await meanwhile<LawsReport>(cluster, what, "laws.ts", action, {
				LENIENT: "1",
			});
		});
		if (!laws) throw new Error("no laws");
		const { samples, handshakes, violations } = laws;
		console.log(
			`${what}: ${samples} looks, ${handshakes} handshakes, ${violations.length} violations`,
		);
		for (const one of violations.slice(0, 10)) console.log(one);
		return { load, laws };
	};
	/** Expects that nothing failed but what was under way in etcd's own proxies when they ended. */
	const expectServed = ({ failures, missed }: LoadReport) => {
		expect(missed).toEqual([]);
		expect(failures.length).toBeLessThanOrEqual(PROXIES * CONCURRENCY);
		for (const one of failures) expect(one).toContain("code = Unavailable");
	};

	test(
		"is taken over under load: nobody refuses anybody, no event is missed, no key moves, and all certificates are ours in the end",
		async () => {
			const [, copy] = commands("Before");
			const [stop, install, consumers, look] = commands("Take over");
			const { load, laws } = await observed("a takeover", async () => {
				const begun = performance.now();
				const seconds = () => ((performance.now() - begun) / 1000).toFixed(0);
				await run(copy, (words) => words.slice(0, words.indexOf(">")));
				await run(stop);
				expect(install).toEqual([
					[
						...["kubectl", "apply", "-f"],
						"artifacts/deployment/00-etcdproxy-controller.yaml",
					],
				]);
				await applyFile(cluster, "deployment/00-etcdproxy-controller.yaml");
				await run(consumers);
				await run(look);
				await rolledOut();
				console.log(`gateways after ${seconds()} s`);
				await all("Retire", 3 * MINUTE);
				console.log(`certificates of the new CAs after ${seconds()} s`);
				expect((await handedOut()).toSorted().join()).toBe(
					"ec,ec,ec,ec,rsa,rsa",
				);
				await all("Steady", LEFT);
				console.log(`the former CAs are gone after ${seconds()} s`);
			});
			expect(load.requests).toBeGreaterThan(1000);
			expectServed(load);
			expect(laws.violations).toEqual([]);
			expect(laws.handshakes).toBeGreaterThan(100);
			expect(await handedOut()).toEqual(["ec", "ec", "ec", "ec"]);
			expect(await state()).toEqual(before);
			expect(before.keys).toHaveLength(1);
			const { uid } = (await json("get", "etcdstorage", NAME)).metadata;
			for (const object of [
				...[`deployment/etcd-${NAME}`, `service/etcd-${NAME}`],
				...[`configmap/${NAME}-ca-cert`, `secret/${NAME}-server-cert`],
			]) {
				const { metadata } = await json(
					...["get", object, `--namespace=${NAMESPACE}`],
				);
				expect([object, metadata.ownerReferences?.[0]?.uid]).toEqual([
					...[object, uid],
				]);
			}
			const restarts = (await proxies()).map(
				(pod) => pod.status.containerStatuses[0].restartCount,
			);
			expect(restarts).toEqual([0, 0, 0]);
		},
		LEFT + 10 * MINUTE,
	);

	test(
		"is given back under load: its proxies serve with the certificates that are there",
		async () => {
			const [stop, proxy, release, start, clean] = commands("Back out");
			const list = { apiVersion: "v1", kind: "List" };
			const manifest = JSON.stringify({
				...list,
				items: predecessor.installation(),
			});
			const { load } = await observed("back out", async () => {
				await run(stop);
				await run(proxy);
				await rolledOut();
				await run(release);
				const [reconcile, ...others] = start ?? [];
				expect(reconcile).toEqual([
					...["kubectl", "auth", "reconcile", "-f", "2018.yaml"],
				]);
				await cluster.kubectl(["auth", "reconcile", "-f", "-"], manifest);
				await run(others);
				await run(clean);
				await Bun.sleep(5_000);
			});
			expectServed(load);
			for (const { spec } of await proxies())
				expect(spec.containers).toMatchObject([
					{
						image: etcdImage,
						command: ["/usr/local/bin/etcd", "grpc-proxy", "start"],
					},
				]);
			expect(await state()).toEqual(before);
			const { spec } = await json(
				...["get", "deployment", "etcdproxy-controller-deployment"],
				`--namespace=${NAMESPACE}`,
			);
			expect(spec.replicas).toBe(1);
			const { metadata } = await json("get", "etcdstorage", NAME);
			expect(metadata.finalizers).toBeUndefined();
			const { rules } = await json(
				...["get", "role", "etcdproxy-controller-role"],
				`--namespace=${NAMESPACE}`,
			);
			expect(JSON.stringify(rules)).toContain('"update"');
		},
		6 * MINUTE,
	);
});
