/**
 * `npm run bench`: N EtcdStorages against a real API server without a kubelet. Measured from the moment before the
 * first is created until every certificate is written and every Service and Deployment exists, as the API server's
 * own watch tells it.
 *
 *     npm run bench [-- N ...]     default: 1 50 200; then 60 s at rest with the last N
 */
import { readFileSync } from "node:fs";
import type { EtcdStorage } from "../../etcdstorage.ts";
import { Kube, type KubeObject, loadKubeConfig } from "../../kube.ts";
import {
	apiServerNamespace,
	type Cluster,
	etcdStorage,
	NAMESPACE,
	startCluster,
	startController,
	until,
} from "../harness.ts";

const REST_SECONDS = Number(process.env.REST ?? 60);
const counts = process.argv.slice(2).map(Number);
if (counts.length === 0) counts.push(1, 50, 200);
if (counts.some((count) => !Number.isInteger(count) || count < 1)) {
	console.error("usage: npm run bench [-- N ...]");
	process.exit(2);
}

/** The Go controller of 2018 on a machine of the same size (2 cores): seconds; each took 15 requests and 0.2 CPU s, 31 MiB in all. */
const of2018: Record<number, number> = { 1: 0.62, 50: 128, 200: 519 };

interface Row {
	count: number;
	seconds: number;
	requests: number;
	cpuMs: number;
	rssMiB: number;
	restWrites?: number;
	restReads?: number;
}

const rows: Row[] = [];
for (const [index, count] of counts.entries())
	rows.push(await measure(count, index === counts.length - 1));

console.log(
	"\n| EtcdStorages | seconds | 2018, seconds | requests each | CPU ms each | RSS MiB |",
);
console.log("| ---: | ---: | ---: | ---: | ---: | ---: |");
for (const row of rows)
	console.log(
		`| ${row.count} | ${row.seconds.toFixed(2)} | ${of2018[row.count] ?? ""} | ${row.requests.toFixed(1)} | ${row.cpuMs.toFixed(0)} | ${row.rssMiB.toFixed(0)} |`,
	);
const last = rows.at(-1);
console.log(
	`\nAt rest for ${REST_SECONDS} s with ${last?.count}: ${last?.restWrites} writes, ${last?.restReads} reads of targets.`,
);
process.exit(0);

async function measure(count: number, rest: boolean): Promise<Row> {
	console.error(`${count} EtcdStorages: starting a control plane`);
	const cluster = await startCluster();
	const names = Array.from({ length: count }, (_, index) => `bench-${index}`);
	for (let from = 0; from < count; from += 50)
		await cluster.apply(
			...names
				.slice(from, from + 50)
				.flatMap((name) => apiServerNamespace(`ns-${name}`)),
		);
	const controller = await startController(cluster);
	const before = await counters(controller);

	const kube = new Kube(loadKubeConfig(cluster.kubeconfig), {
		fieldManager: "bench",
	});
	const stop = new AbortController();
	const complete = new Set<string>();
	let finished = () => {};
	const done = new Promise<void>((resolve) => {
		finished = resolve;
	});
	// The status says that certificates are delivered only after every write; Service and Deployment come before it.
	const see = (storage: EtcdStorage) => {
		if (
			storage.status?.conditions?.some(
				(one) => one.type === "CertificatesReady" && one.status === "True",
			)
		)
			complete.add(storage.metadata.name);
		if (complete.size === count) finished();
	};
	const following = kube.follow<EtcdStorage>("EtcdStorage", {
		signal: stop.signal,
		onSync: (list) => list.forEach(see),
		onEvent: (_, storage) => see(storage),
	});
	const begun = performance.now();
	await Promise.all(
		names.map((name) =>
			kube.create(etcdStorage(name, `ns-${name}`) as KubeObject),
		),
	);
	await done;
	const seconds = (performance.now() - begun) / 1000;
	await check(cluster, count);

	const settled = async () =>
		(await controller.metrics()).includes("\netcdproxy_queue_depth 0\n");
	await until(settled, "the queue is empty");
	const after = await counters(controller);
	const row: Row = {
		count,
		seconds,
		requests: (after.requests - before.requests) / count,
		cpuMs: ((after.cpu - before.cpu) * 1000) / count,
		rssMiB: after.rss / 2 ** 20,
	};
	console.error(`${count} EtcdStorages: ${seconds.toFixed(2)} s`);
	if (rest) Object.assign(row, await atRest(cluster));
	stop.abort();
	await following;
	await controller.stop();
	await cluster.stop();
	return row;
}

/** Not the controller's word for it: the objects are counted. */
async function check(cluster: Cluster, count: number): Promise<void> {
	for (const [kind, expected] of [
		["service", count],
		["deployment", count + 1],
		["secret", 3 * count + 1],
	] as const) {
		const text = await cluster.kubectl([
			"get",
			kind,
			"-n",
			NAMESPACE,
			"-o",
			"name",
		]);
		const found = text.trim().split("\n").length;
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
