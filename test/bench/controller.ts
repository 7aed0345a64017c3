/**
 * `npm run bench:controller`: the program as it is shipped, and N EtcdStorages, against a real API server without a kubelet. Measured from the moment before the
 * first is created until every certificate is written and every Service and Deployment exists, as the API server's
 * own watch tells it. The peer, in the same run on the same cluster, is a loop that does nothing but send the very same
 * requests with ready-made content: what is left when the controller costs nothing.
 *
 *     npm run bench:controller [-- N ...]     default: 1 50 200; then 60 s at rest with the last N
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { compile } from "../../build/program.ts";
import { issue, materialOf } from "../../certificates.ts";
import { type EtcdStorage, readSpec, type Spec } from "../../etcdstorage.ts";
import { Kube, type KubeObject, loadKubeConfig } from "../../kube.ts";
import { domains } from "../../lifetimes.ts";
import {
	bundles,
	certificates,
	FIELD_MANAGER,
	type Material,
	signerSecret,
} from "../../manifests.ts";
import { decide, type Observed } from "../../reconcile.ts";
import { workload } from "../../workload.ts";
import {
	apiServerNamespace,
	type Cluster,
	type Controller,
	etcdStorage,
	NAMESPACE,
	startCluster,
	startController,
	until,
} from "../harness.ts";

const REST_SECONDS = 60;
/** As many as the controller visits at once. */
const CONCURRENCY = 8;
const counts = process.argv.slice(2).map(Number);
if (counts.length === 0) counts.push(1, 50, 200);
if (counts.some((count) => !Number.isInteger(count) || count < 1)) {
	console.error("usage: npm run bench:controller [-- N ...]");
	process.exit(2);
}

/** The Go controller of 2018 on a machine of the same size (2 cores): seconds; each took 15 requests and 0.2 CPU s, 31 MiB in all. */
const of2018: Record<number, number> = { 1: 0.62, 50: 128, 200: 519 };

interface Row {
	count: number;
	seconds: number;
	/** The peer's. */
	bare: number;
	requests: number;
	cpuMs: number;
	rssMiB: number;
	restWrites?: number;
	restReads?: number;
}

const rows: Row[] = [];
for (const [index, count] of counts.entries())
	rows.push(await measure(count, index === counts.length - 1));

const columns = [
	"EtcdStorages",
	"seconds",
	"bare requests, seconds",
	"ratio",
	"2018, seconds",
	"requests each",
	"CPU ms each",
	"RSS MiB",
];
const table = rows.map((row) => [
	`${row.count}`,
	row.seconds.toFixed(2),
	row.bare.toFixed(2),
	(row.seconds / row.bare).toFixed(2),
	`${of2018[row.count] ?? ""}`,
	row.requests.toFixed(1),
	row.cpuMs.toFixed(0),
	row.rssMiB.toFixed(0),
]);
console.log("");
for (const line of [columns, columns.map(() => "---:"), ...table])
	console.log(`| ${line.join(" | ")} |`);
const last = rows.at(-1);
console.log(
	`\nAt rest for ${REST_SECONDS} s with ${last?.count}: ${last?.restWrites} writes, ${last?.restReads} reads of targets.`,
);
process.exit(0);

async function measure(count: number, rest: boolean): Promise<Row> {
	console.error(`${count} EtcdStorages: starting a control plane`);
	const cluster = await startCluster();
	const kube = new Kube(loadKubeConfig(cluster.kubeconfig), {
		fieldManager: "bench",
	});
	const numbered = (prefix: string) =>
		Array.from({ length: count }, (_, index) => `${prefix}-${index}`);
	const names = numbered("bench");
	const peers = numbered("bare");
	for (const list of [["warm-up"], names, peers])
		for (let from = 0; from < list.length; from += 50)
			await cluster.apply(
				...list
					.slice(from, from + 50)
					.flatMap((name) => apiServerNamespace(`ns-${name}`)),
			);

	const { file } = await compile(join(cluster.dir, "etcdproxy-controller"));
	const controller = await startController(cluster, { command: [file] });
	const progress = await watch(kube);
	// The API server needs seconds to settle after a CustomResourceDefinition is made, and a just-in-time compiler warms up.
	await kube.create(storageOf("warm-up"));
	await progress.complete(["warm-up"]);
	await cluster.kubectl(["delete", "etcdstorage", "warm-up"]);
	await settled(controller);

	const before = await counters(controller);
	const begun = performance.now();
	await Promise.all(names.map((name) => kube.create(storageOf(name))));
	await progress.complete(names);
	const seconds = (performance.now() - begun) / 1000;
	await check(cluster, count);
	await settled(controller);
	const after = await counters(controller);
	const resting = rest ? await atRest(cluster) : {};
	await controller.stop();

	const bare = await bareRequests(cluster, kube, peers);
	console.error(
		`${count} EtcdStorages: ${seconds.toFixed(2)} s; bare requests: ${bare.toFixed(2)} s`,
	);
	await progress.stop();
	await cluster.stop();
	return {
		count,
		seconds,
		bare,
		requests: (after.requests - before.requests) / count,
		cpuMs: ((after.cpu - before.cpu) * 1000) / count,
		rssMiB: after.rss / 2 ** 20,
		...resting,
	};
}

function storageOf(name: string): EtcdStorage {
	return etcdStorage(name, `ns-${name}`) as EtcdStorage;
}

function settled(controller: Controller): Promise<boolean> {
	return until(
		async () =>
			(await controller.metrics()).includes("\netcdproxy_queue_depth 0\n"),
		"the queue is empty",
	);
}

/** Follows the EtcdStorages. Their status says that certificates are delivered only after every write. */
async function watch(kube: Kube) {
	const stop = new AbortController();
	const ready = new Set<string>();
	let look = () => {};
	const see = (storage: EtcdStorage) => {
		const condition = storage.status?.conditions?.find(
			(one) => one.type === "CertificatesReady",
		);
		if (condition?.status === "True") ready.add(storage.metadata.name);
		look();
	};
	const following = kube.follow<EtcdStorage>("EtcdStorage", {
		signal: stop.signal,
		onSync: (list) => list.forEach(see),
		onEvent: (_, storage) => see(storage),
	});
	return {
		complete: (names: string[]) =>
			new Promise<void>((resolve) => {
				look = () => {
					if (names.every((name) => ready.has(name))) resolve();
				};
				look();
			}),
		async stop() {
			stop.abort();
			await following;
		},
	};
}

/** Sends what the controller sends for each EtcdStorage, in its order and with its rights, and nothing else. Returns seconds. */
async function bareRequests(
	cluster: Cluster,
	admin: Kube,
	names: string[],
): Promise<number> {
	const kubeconfig = await cluster.kubeconfigForServiceAccount(
		NAMESPACE,
		"etcdproxy-controller-sa",
	);
	const kube = new Kube(loadKubeConfig(kubeconfig), {
		fieldManager: FIELD_MANAGER,
	});
	const environment = {
		namespace: NAMESPACE,
		coreUrls: [cluster.etcd.url],
		coreCAConfigMap: "etcd-coreserving-ca",
		coreCertsSecret: "etcd-coreserving-cert",
		proxyImage: "etcdproxy-controller",
		proxyPriorityClass: "",
	};
	const { status } =
		(await cluster.get<EtcdStorage>("etcdstorage", "bench-0")) ?? {};
	const specOf = (storage: EtcdStorage) => readSpec(storage) as Spec;
	const material = await readyMade(specOf(storageOf("bare-0")));
	const one = async (name: string) => {
		const storage = await admin.create(storageOf(name));
		const spec = specOf(storage);
		const { apiVersion, kind, metadata } = storage;
		const leaf = Object.values(material.leaves)[1];
		const mine = {
			...material,
			leaves: {
				...material.leaves,
				...(leaf && { [`client/ns-${name}/etcd-client-cert`]: leaf }),
			},
		};
		await kube.patch(
			{ apiVersion, kind, name },
			{ metadata: { finalizers: ["etcd.xmudrii.com/targets"] } },
			"merge",
		);
		await Promise.all(
			spec.targets.map((target) => kube.get({ apiVersion: "v1", ...target })),
		);
		await Promise.all(
			domains.map((domain) =>
				kube.create(
					signerSecret(storage, environment, domain, mine.signers[domain]),
				),
			),
		);
		for (const objects of [
			bundles(storage, environment, spec.targets, mine),
			certificates(storage, environment, spec.targets, mine),
			workload(storage, environment, spec, mine),
		])
			await Promise.all(objects.map((object) => kube.apply(object)));
		const { uid = "" } = metadata;
		await kube.apply(
			{ apiVersion, kind, metadata: { name, uid }, status } as KubeObject,
			{ subresource: "status" },
		);
		await kube.create({
			apiVersion: "v1",
			kind: "Event",
			metadata: { name: `${name}.bare`, namespace: "default" },
			involvedObject: { apiVersion, kind, name, uid },
			type: "Normal",
			reason: "Bare",
			message: "server (not there)",
		} as KubeObject);
	};
	const waiting = [...names];
	const begun = performance.now();
	const worker = async () => {
		for (let name = waiting.shift(); name !== undefined; name = waiting.shift())
			await one(name);
	};
	await Promise.all(Array.from({ length: CONCURRENCY }, worker));
	return (performance.now() - begun) / 1000;
}

/** Certificates of the right size, made once. */
async function readyMade(spec: Spec): Promise<Material> {
	const missing = { missing: true } as const;
	const leaves = {
		server: missing,
		"client/ns-bare-0/etcd-client-cert": missing,
	};
	const signers = {
		current: missing,
		next: missing,
		trusted: [],
		answered: {},
	};
	const reach = { unwritten: [], undelivered: [], unread: [], handedOut: true };
	const observed: Observed = {
		signers: { client: signers, serving: signers },
		reach: { client: reach, serving: reach },
		leaves,
	};
	const now = Date.now();
	const plan = decide(spec, NAMESPACE, observed, now);
	const [client, serving] = await Promise.all([
		issue("client", plan, observed, now),
		issue("serving", plan, observed, now),
	]);
	return materialOf({ client, serving }, "");
}

/** Not the controller's word for it: the objects are counted. */
async function check(cluster: Cluster, count: number): Promise<void> {
	for (const [kind, expected] of [
		["service", count],
		["deployment", count],
		["poddisruptionbudget", count],
		["secret", 3 * count],
	] as const) {
		const text = await cluster.kubectl([
			"get",
			kind,
			"-n",
			NAMESPACE,
			"-o",
			"name",
		]);
		const found = text
			.split("\n")
			.filter((line) => line.includes("bench-")).length;
		if (found !== expected)
			throw new Error(
				`${found} objects of kind ${kind} instead of ${expected}`,
			);
	}
}

async function counters(controller: { metrics(): Promise<string> }) {
	const text = await controller.metrics();
	const sum = (name: string) =>
		[...text.matchAll(new RegExp(`^${name}(?:\\{.*\\})? (.+)$`, "gm"))].reduce(
			(total, [, value]) => total + Number(value),
			0,
		);
	return {
		requests: sum("etcdproxy_api_requests_total"),
		cpu: sum("process_cpu_seconds_total"),
		rss: sum("process_resident_memory_bytes"),
	};
}

/** What the audit log holds of the controller's in the next minute: a fixed time is what is being measured here. */
async function atRest(
	cluster: Cluster,
): Promise<{ restWrites: number; restReads: number }> {
	const from = readFileSync(cluster.auditLog).length;
	console.error(`watching the audit log for ${REST_SECONDS} s at rest`);
	await Bun.sleep(REST_SECONDS * 1000);
	const verbs = readFileSync(cluster.auditLog)
		.subarray(from)
		.toString()
		.split("\n")
		.filter(
			(line) =>
				line.includes("etcdproxy-controller-sa") &&
				line.includes('"ResponseComplete"'),
		)
		.map((line) => JSON.parse(line).verb as string);
	const isRead = (verb: string) => ["get", "list", "watch"].includes(verb);
	return {
		restWrites: verbs.filter((verb) => !isRead(verb)).length,
		restReads: verbs.filter(isRead).length,
	};
}
