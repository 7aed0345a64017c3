/**
 * `npm run bench:gateway`: our gateway, `etcd grpc-proxy` and the core etcd itself, in one interleaved run on one core
 * etcd: round after round each of them in turn, and of the rounds the median. The load is etcd's Go client's
 * (test/cluster/go/etcd/etcdload), and kube-apiserver's.
 *
 *     npm run bench:gateway [-- ROWS [ROUNDS [SECONDS]]]     default: all rows, 5 rounds of 2 s each
 */
import { join } from "node:path";
import { compile } from "../../build/program.ts";
import { type ApiServer, kubeApiServer } from "../apiserver.ts";
import { binaries } from "../cluster/binaries.ts";
import {
	type DataPlane,
	type Endpoint,
	type Gateway,
	startDataPlane,
} from "../dataplane.ts";

const ALL_ROWS = [
	...["put", "get"].flatMap((what) =>
		[1, 16, 64, 256].map((callers) => `${what}:${callers}`),
	),
	"list:1",
	"list:16",
	"watch:100",
	"watch:1000",
	"getduringlists",
	"kubernetes",
];
const CREATES = 500;
const CREATORS = 16;
const LISTS = 5;

const [rows = ALL_ROWS.join(","), rounds = "5", seconds = "2"] =
	process.argv.slice(2);

type Target = "direct" | "grpc-proxy" | "gateway";
const targets: Target[] = ["direct", "grpc-proxy", "gateway"];

interface Row {
	title: string;
	/** Medians. */
	values: Record<Target, number>;
	cpu?: Partial<Record<Target, number>>;
	/** Less is better. */
	time?: true;
}

const plane = await startDataPlane();
try {
	const results = await measure(plane);
	print(results);
} finally {
	await plane.stop();
}
process.exit(0);

async function measure(plane: DataPlane): Promise<Row[]> {
	const core = await plane.etcd();
	const { file } = await compile(join(plane.dir, "gateway"));
	const gateway = await plane.gateway(core, { command: [file] });
	const proxy = await plane.grpcProxy(core, { prefix: "/proxied/" });
	const atRest = { gateway: rss(gateway), "grpc-proxy": rss(proxy) };
	const wanted = rows.split(",").filter((row) => row !== "kubernetes");
	const results =
		wanted.length > 0 ? await load(core, proxy, gateway, wanted) : [];
	if (rows.includes("kubernetes"))
		results.push(...(await kubernetes(plane, core, proxy, gateway)));
	for (const name of ["grpc-proxy", "gateway"] as const)
		console.error(
			`${name}: RSS ${atRest[name]} MB at rest, ${rss(name === "gateway" ? gateway : proxy)} MB at the end`,
		);
	return results;
}

async function load(
	core: Endpoint,
	proxy: Gateway,
	gateway: Gateway,
	wanted: string[],
): Promise<Row[]> {
	const { etcdload } = await binaries(["etcdload"]);
	const target = (name: Target, one: Endpoint, prefix: string) =>
		`--target=${name}=${one.url},cacert=${one.caFile},cert=${one.certFile},key=${one.keyFile},prefix=${prefix}`;
	const child = Bun.spawn(
		[
			etcdload,
			target("direct", core, "/direct/"),
			target("grpc-proxy", proxy, ""),
			target("gateway", gateway, ""),
			`--pid=grpc-proxy=${proxy.child.pid}`,
			`--pid=gateway=${gateway.child.pid}`,
			`--rows=${wanted.join(",")}`,
			`--rounds=${rounds}`,
			`--seconds=${seconds}`,
		],
		{ stdin: "ignore", stdout: "pipe", stderr: "inherit" },
	);
	const text = await child.stdout.text();
	if ((await child.exited) !== 0) throw new Error("etcdload failed");
	const answer: {
		rows: Record<
			string,
			Record<
				Target,
				{
					median: {
						opsPerSecond: number;
						p99ms: number;
						cpuMicrosPerOp: number | null;
					};
					errors: number;
				}
			>
		>;
	} = JSON.parse(text);
	return wanted.map((row) => {
		const found = answer.rows[row];
		if (!found) throw new Error(`etcdload has no row ${row}`);
		for (const name of targets) {
			const { errors } = found[name];
			const message = `${row}: ${errors} errors of ${name}`;
			// The peer now and then ends a watch that is slow; that is told, and no reason to stop.
			if (errors > 0 && name === "grpc-proxy") console.error(message);
			else if (errors > 0) throw new Error(message);
		}
		const p99 = row === "getduringlists";
		return {
			title: titleOf(row),
			values: byTarget((name) =>
				p99 ? found[name].median.p99ms : found[name].median.opsPerSecond,
			),
			cpu: byTarget((name) => found[name].median.cpuMicrosPerOp ?? Number.NaN),
			...(p99 && { time: true }),
		};
	});
}

function titleOf(row: string): string {
	const [what = "", callers] = row.split(":");
	const titles: Record<string, string> = {
		put: `put 256 B, ${callers} callers, per s`,
		get: `get 256 B, ${callers} callers, per s`,
		list: `list 500 x 1 KB, ${callers} callers, per s`,
		watch: `events to ${callers} watchers, per s`,
		getduringlists: "get during 20 MB lists, p99 ms",
	};
	return titles[what] ?? row;
}

/** One kube-apiserver on each. */
async function kubernetes(
	plane: DataPlane,
	core: Endpoint,
	proxy: Gateway,
	gateway: Gateway,
): Promise<Row[]> {
	const servers = {
		direct: await kubeApiServer(core),
		"grpc-proxy": await kubeApiServer(proxy),
		gateway: await kubeApiServer(gateway),
	};
	const times = byTarget(() => ({
		creates: [] as number[],
		rest: [] as number[],
		foreign: [] as number[],
	}));
	const path = "/api/v1/namespaces/default/configmaps";
	const timed = async (action: () => Promise<unknown>) => {
		const begun = performance.now();
		await action();
		return performance.now() - begun;
	};
	for (let round = 0; round < Number(rounds); round++) {
		console.error(`kube-apiserver, round ${round + 1}`);
		for (const name of rotated(targets, round)) {
			const server = servers[name];
			times[name].creates.push(
				await timed(() => creates(server, `${path}`, round)),
			);
			for (let list = 0; list < LISTS; list++)
				times[name].rest.push(
					await timed(() => server.request("GET", `${path}?limit=0`)),
				);
			for (let list = 0; list < LISTS; list++) {
				await plane.etcdctl(core, "put", "/foreign", String(list));
				times[name].foreign.push(
					await timed(() => server.request("GET", `${path}?limit=0`)),
				);
			}
			await server.request("DELETE", path);
		}
	}
	for (const server of Object.values(servers)) await server.plane.stop();
	const row = (title: string, values: (name: Target) => number[]): Row => ({
		title,
		values: byTarget((name) => median(values(name))),
		time: true,
	});
	return [
		row(
			`kube-apiserver: ${CREATES} creates, ms`,
			(name) => times[name].creates,
		),
		row(
			"kube-apiserver: consistent list at rest, ms",
			(name) => times[name].rest,
		),
		row(
			"kube-apiserver: consistent list after a foreign write, ms",
			(name) => times[name].foreign,
		),
	];
}

async function creates(
	server: ApiServer,
	path: string,
	round: number,
): Promise<void> {
	let next = 0;
	const creator = async () => {
		for (let index = next++; index < CREATES; index = next++)
			await server.request("POST", path, {
				apiVersion: "v1",
				kind: "ConfigMap",
				metadata: { name: `bench-${round}-${index}` },
				data: { text: "x".repeat(500) },
			});
	};
	await Promise.all(Array.from({ length: CREATORS }, creator));
}

function print(results: Row[]): void {
	const number = (value: number) =>
		value >= 100 ? value.toFixed(0) : value.toFixed(1);
	console.log(
		"\n| | direct | grpc-proxy | gateway | gateway : grpc-proxy | gateway : direct | CPU, gateway : grpc-proxy |",
	);
	console.log("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
	for (const { title, values, cpu, time } of results) {
		const { gateway } = values;
		const ratio = (peer: number) =>
			(time ? peer / gateway : gateway / peer).toFixed(2);
		const used =
			cpu?.gateway && cpu["grpc-proxy"]
				? (cpu.gateway / cpu["grpc-proxy"]).toFixed(2)
				: "";
		console.log(
			`| ${title} | ${targets.map((name) => number(values[name])).join(" | ")} | ${ratio(values["grpc-proxy"])} | ${ratio(values.direct)} | ${used} |`,
		);
	}
	console.log(
		"\nRatios above 1: the gateway is the faster one. CPU: per operation, of the proxy's process alone; below 1 the gateway takes less.",
	);
}

function byTarget<T>(value: (name: Target) => T): Record<Target, T> {
	return {
		direct: value("direct"),
		"grpc-proxy": value("grpc-proxy"),
		gateway: value("gateway"),
	};
}

function rotated<T>(list: T[], by: number): T[] {
	return list.map((_, index) => list[(index + by) % list.length] as T);
}

function median(values: number[]): number {
	const sorted = [...values].sort((a, b) => a - b);
	return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

/** Resident megabytes of a process. */
function rss({ child }: Gateway): number {
	const { stdout } = Bun.spawnSync(["ps", "-o", "rss=", "-p", `${child.pid}`]);
	return Math.round(Number(stdout.toString()) / 1024);
}
