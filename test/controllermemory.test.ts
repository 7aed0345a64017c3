/** What the controller takes of a node's memory as it is shipped, and how soon it watches. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { compile, type Program } from "../build/program.ts";
import {
	apiServerNamespace,
	type Cluster,
	condition,
	etcdStorage,
	FIRST_BUILD,
	startCluster,
	startController,
	until,
} from "./harness.ts";

const AT_REST_MB = 80;

setDefaultTimeout(120_000);

let cluster: Cluster;
let program: Program;
let command: string[];

beforeAll(async () => {
	cluster = await startCluster();
	program = await compile(join(cluster.dir, "etcdproxy-controller"));
	command = [program.file, "--leader-elect"];
	await cluster.apply(...apiServerNamespace("memory"));
}, FIRST_BUILD);
afterAll(() => cluster?.stop());

/** Megabytes, as the kernel counts them. */
function resident(pid: number): number {
	const status = readFileSync(`/proc/${pid}/status`, "utf8");
	return (Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024) / 1e6;
}

/** Visits that have ended well, by the metrics. */
const successes = (metrics: string) =>
	Number(
		/^etcdproxy_reconcile_total\{result="success"\} (\d+)$/m.exec(
			metrics,
		)?.[1] ?? 0,
	);

test("with an EtcdStorage it is at rest under 80 MB, whether it has made the certificates itself or found them", async () => {
	for (const how of ["made", "found"]) {
		const controller = await startController(cluster, { command });
		await cluster.apply(etcdStorage("memory", "memory"));
		await until(
			async () =>
				(await condition(cluster, "memory", "CertificatesReady")).startsWith(
					"True",
				),
			"its certificates are ready",
		);
		// Of those that are found, the condition tells nothing: it was there before.
		let before = 0;
		await until(
			async () => {
				const visits = successes(await controller.metrics());
				const done = visits > 0 && visits === before;
				before = visits;
				if (!done) await Bun.sleep(1_000);
				return done;
			},
			"it has visited the EtcdStorage, and has nothing more to do",
			60_000,
		);
		const megabytes = await until(
			() => {
				const now = resident(controller.process.pid);
				return now < AT_REST_MB ? now : undefined;
			},
			`the controller takes less than ${AT_REST_MB} MB`,
			60_000,
		);
		console.log(`certificates ${how}: ${megabytes.toFixed(0)} MB`);
		expect(await controller.stop()).toBe(0);
	}
});

test("its metrics tell which build it is", async () => {
	const controller = await startController(cluster, { command });
	const { version, commit, date } = program.build;
	expect(await controller.metrics()).toContain(
		`\netcdproxy_build_info{version="${version}",commit="${commit}",date="${date}"} 1\n`,
	);
	await controller.stop();
});

test("it watches soon after it is started", async () => {
	const times: number[] = [];
	for (let round = 0; round < 5; round++) {
		const begun = performance.now();
		const controller = await startController(cluster, {
			command,
			unready: true,
		});
		await until(
			() => controller.log().includes("watching 1 EtcdStorages"),
			"it watches",
		);
		times.push(performance.now() - begun);
		expect(await controller.stop()).toBe(0);
	}
	console.log(`watching after ${times.map(Math.round).join(", ")} ms`);
	// 0.3 s where nobody else is at work.
	expect(Math.min(...times)).toBeLessThan(3_000);
});
