/** What a tenant may ask of the gateway at once: readers who do not read, and limits. */
import {
	afterAll,
	afterEach,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { binaries } from "./cluster/binaries.ts";
import { until } from "./cluster/processes.ts";
import {
	type DataPlane,
	type Etcd,
	type Gateway,
	startDataPlane,
} from "./dataplane.ts";
import {
	eventsIn,
	fill,
	grpc,
	memory,
	PUT,
	quantile,
	RANGE,
	Raw,
	type RawOptions,
	range,
	Script,
	WATCH,
	watchCreate,
} from "./gatewayclient.ts";
import { FIRST_BUILD, type Json } from "./harness.ts";
import { data, reset } from "./http2wire.ts";
import { len } from "./protobuf.ts";

const MIB = 1024 * 1024;
const BUDGET_MIB = 32;
/** Beyond the budget: what the garbage collector has not yet collected, and what comes unasked. */
const MARGIN_MIB = 100;
/** 10 s of standing still, and a slow machine. */
const CUT_MS = 40_000;
/** 20 MB. */
const LIST = range("/big/", "/big0");
const NOT_READ =
	"8: etcdproxy: nothing was sent or read for a while, and others wait for room";
const CUTS = "etcdproxy_gateway_budget_cuts_total";
const IN_FLIGHT = "etcdproxy_gateway_bytes_in_flight";

setDefaultTimeout(180_000);

let plane: DataPlane;
let core: Etcd;
/** With a small budget, and with that of a gateway in a pod. */
let gateway: Gateway, usual: Gateway;
let script: Script;

beforeAll(async () => {
	plane = await startDataPlane();
	core = await plane.etcd();
	[gateway, usual] = await Promise.all([
		plane.gateway(core, {
			flags: [`--max-bytes-in-flight=${BUDGET_MIB * MIB}`],
		}),
		plane.gateway(core, { prefix: "/usual/" }),
	]);
	script = await Script.start(gateway);
	await fill(script, "/big/", 2_000, 10_000);
}, FIRST_BUILD);

const raws: Raw[] = [];
afterEach(() => {
	for (const raw of raws.splice(0)) raw.destroy();
});
afterAll(async () => {
	await script?.stop();
	await plane?.stop();
});

async function connect(to: Gateway, options?: RawOptions): Promise<Raw> {
	const raw = await Raw.connect(to, options);
	raws.push(raw);
	return raw;
}

/** One who reads as fast as it comes. */
const reader = (to: Gateway) =>
	connect(to, { window: 2 ** 30, connectionWindow: 2 ** 30 });

const allIsReleased = (of: Gateway) =>
	until(
		"all is released",
		async () =>
			(await of.metric(IN_FLIGHT)) === 0 &&
			(await of.metric("etcdproxy_gateway_open_streams")) === 0,
		{ timeout: CUT_MS },
	);

describe.each(["its socket", "its streams"])("who does not read %s", (what) => {
	test(
		"holds up nobody who asks for little, and gives way to who asks for much",
		async () => {
			const before = await gateway.metric(CUTS);
			const { now } = memory(gateway);
			const sleeper = await connect(gateway, { connectionWindow: 2 ** 30 });
			if (what === "its socket") sleeper.socket.pause();
			const lists = Array.from({ length: 60 }, () => sleeper.call(RANGE, LIST));
			await until(
				"a list is in the gateway",
				async () => (await gateway.metric(IN_FLIGHT)) > 19_000_000,
			);
			const times: number[] = [];
			for (let index = 0; index < 100; index++) {
				const start = performance.now();
				await script.run("get", { key: "/big/00001" });
				times.push(performance.now() - start);
			}
			expect(quantile(times, 0.9)).toBeLessThan(1_000);
			expect(await gateway.metric(CUTS)).toBe(before);

			const other = await reader(gateway);
			const list = other.call(RANGE, LIST);
			expect(await other.ended(list, CUT_MS)).toBe("0");
			expect(other.stream(list).bytes).toBeGreaterThan(20_000_000);
			// What has been read is given back at once, not some time.
			const more = Array.from({ length: 40 }, () => other.call(RANGE, LIST));
			for (const id of more) expect(await other.ended(id)).toBe("0");
			expect(memory(gateway).peak).toBeLessThan(now + BUDGET_MIB + MARGIN_MIB);
			sleeper.socket.resume();
			for (const id of lists) {
				const status = await sleeper.ended(id);
				// What had begun can only be reset: gRPC takes ENHANCE_YOUR_CALM for RESOURCE_EXHAUSTED, too.
				if (sleeper.stream(id).bytes > 0) expect(status).toBe("reset 11");
				else expect(status).toBe(NOT_READ);
			}
			expect(await gateway.metric(CUTS, { budget: "bytes_in_flight" })).toBe(
				before + lists.length,
			);
			expect(
				await gateway.metric("etcdproxy_gateway_requests_total", {
					method: "Range",
					code: "ResourceExhausted",
				}),
			).toBe(before + lists.length);
			await allIsReleased(gateway);
		},
		3 * CUT_MS,
	);
});

test("small answers that nobody reads are bounded, too: no new calls, and then they are cut", async () => {
	const before = await gateway.metric(CUTS);
	const { now } = memory(gateway);
	await script.run("put", { key: "/sixty", value: "v".repeat(60_000) });
	const sleepers = await Promise.all(
		[1, 2].map(() => connect(gateway, { connectionWindow: 2 ** 30 })),
	);
	const calls = sleepers.flatMap((sleeper) => {
		sleeper.socket.pause();
		return Array.from({ length: 2_000 }, () => ({
			sleeper,
			id: sleeper.call(RANGE, range("/sixty")),
		}));
	});
	await until(
		"new calls are refused",
		async () => (await gateway.metric(CUTS)) > before,
	);
	const refused = await gateway.metric(CUTS);
	await until(
		"who stands still is cut, and there is room for others",
		async () =>
			(await gateway.metric(CUTS)) > refused &&
			(await gateway.metric(IN_FLIGHT)) <= BUDGET_MIB * MIB &&
			(await script.failure("get", { key: "/sixty" })) === "OK",
		{ timeout: CUT_MS },
	);
	expect(memory(gateway).peak).toBeLessThan(now + 2 * BUDGET_MIB + MARGIN_MIB);
	for (const { socket } of sleepers) socket.resume();
	await until("all have ended", async () =>
		calls.every(({ sleeper, id }) => sleeper.status(id) !== ""),
	);
	const ends = new Set(calls.map(({ sleeper, id }) => sleeper.status(id)));
	expect([...ends].sort()).toEqual([
		"0",
		"8: etcdproxy: too much is under way; see --max-bytes-in-flight of the gateway",
		"reset 11",
	]);
	await allIsReleased(gateway);
});

test("a watcher who stops for a while costs little, and then gets every event", async () => {
	const watcher = await Script.start(gateway);
	const lines = await watcher.watch("w", { key: "/events/", prefix: true });
	const { now } = memory(gateway);
	watcher.signal("SIGSTOP");
	const value = "v".repeat(10_000);
	const expected: string[] = [];
	for (let round = 0; round < 40; round++)
		await Promise.all(
			Array.from({ length: 100 }, async (_, index) => {
				const key = `/events/${index}`;
				const { header } = await script.run("put", { key, value });
				expected.push(`${key}@${header.revision}`);
			}),
		);
	expect(await gateway.metric(IN_FLIGHT)).toBeGreaterThan(100_000);
	expect(await gateway.metric(IN_FLIGHT)).toBeLessThan(2 * MIB);
	expect(memory(gateway).peak).toBeLessThan(now + BUDGET_MIB + MARGIN_MIB);
	watcher.signal("SIGCONT");
	await until(
		"all events have come",
		async () => eventsIn(lines).length >= expected.length,
	);
	const revision = (event: string) => Number(event.split("@")[1]);
	expect(eventsIn(lines)).toEqual(
		expected.sort((a, b) => revision(a) - revision(b)),
	);
	await watcher.stop();
	await allIsReleased(gateway);
}, 120_000);

describe("a limit", () => {
	let limited: Gateway;
	beforeAll(async () => {
		limited = await plane.gateway(core, {
			flags: [
				`--max-bytes-in-flight=${4 * MIB}`,
				"--max-concurrent-streams=10",
				"--max-watches=5",
				"--max-connections=3",
				"--max-send-bytes=500000",
			],
		});
	});
	const cuts = (budget: string) => limited.metric(CUTS, { budget });

	test("of a request: RESOURCE_EXHAUSTED says how large it may be", async () => {
		const client = await Script.start(limited);
		const put = (length: number) =>
			client.failure("put", { key: "k", value: "v".repeat(length) });
		expect(await put(499_990)).toBe("OK");
		expect(await put(500_000)).toBe(
			"ResourceExhausted: etcdproxy: a request of 500007 bytes; up to 500000 are taken",
		);
		expect(await cuts("request_bytes")).toBe(1);
		await client.stop();
	});

	test("of an answer: what is larger than all that there is room for is refused", async () => {
		const client = await reader(limited);
		expect(await client.ended(client.call(RANGE, LIST))).toMatch(
			/^8: etcdproxy: an answer of 20\d{6} bytes; up to 4194304 are passed on: ask for fewer keys at once \(limit\), or raise --max-bytes-in-flight of the gateway$/,
		);
		expect(await cuts("bytes_in_flight")).toBe(1);
		await allIsReleased(limited);
	});

	test("of streams on a connection: one more is refused, and may be tried again", async () => {
		const client = await connect(limited);
		const ids = Array.from({ length: 10 }, () => client.open(WATCH));
		expect(await client.ended(client.open(WATCH))).toBe("reset 7");
		client.send(reset(ids[0] as number, 8));
		const next = client.call(RANGE, range("none"));
		expect(await client.ended(next)).toBe("0");
	});

	test("of watches on a connection", async () => {
		const client = await connect(limited);
		const watches = Array.from({ length: 6 }, () => {
			const id = client.open(WATCH);
			client.send(data(id, grpc(watchCreate("k"))));
			return id;
		});
		expect(await client.ended(watches[5] as number)).toBe(
			"8: etcdproxy: too many watches on one connection; see --max-watches of the gateway",
		);
		expect(await limited.metric("etcdproxy_gateway_open_watches")).toBe(5);
		expect(await cuts("watches")).toBe(1);
		client.send(reset(watches[0] as number, 8));
		const again = client.open(WATCH);
		client.send(data(again, grpc(watchCreate("k"))));
		await until("it watches", async () => client.stream(again).bytes > 0);
		expect(client.status(again)).toBe("");
	});

	test("of connections: one more is closed, until another one goes", async () => {
		await until(
			"those of before have gone",
			async () =>
				(await limited.metric("etcdproxy_gateway_open_connections")) === 0,
		);
		const [first] = await Promise.all([1, 2, 3].map(() => connect(limited)));
		const one = await connect(limited);
		expect([one.ready, one.closed]).toEqual([false, true]);
		expect(await cuts("connections")).toBe(1);
		first?.destroy();
		await until("there is room", async () => (await connect(limited)).ready);
	});
});

test("half a request holds what it has said it would bring, until others need that or the client goes", async () => {
	const client = await connect(gateway);
	const put = [...len(1, "/half"), ...len(2, [...new Uint8Array(1_500_000)])];
	const half = grpc(put).subarray(0, 60_000);
	const halves = Array.from({ length: 21 }, () => {
		const id = client.open(PUT);
		for (let at = 0; at < half.length; at += 15_000)
			client.send(data(id, half.subarray(at, at + 15_000)));
		return id;
	});
	await until(
		"all are known",
		async () => (await gateway.metric(IN_FLIGHT)) > 21 * 1_500_000,
	);
	expect(await script.failure("put", { key: "/other" })).toBe("OK");
	const other = await reader(gateway);
	expect(await other.ended(other.call(RANGE, LIST), CUT_MS)).toBe("0");
	const ends = halves.map((id) => client.status(id));
	expect(new Set(ends)).toEqual(new Set([NOT_READ, ""]));
	client.destroy();
	await allIsReleased(gateway);
});

test("the usual limits are no limits for 70 connections with 1000 watches, nor do large lists hold up small gets", async () => {
	const { etcdload } = await binaries(["etcdload"]);
	const child = Bun.spawn(
		[
			etcdload,
			`--target=gateway=${usual.url},cacert=${usual.caFile},cert=${usual.certFile},key=${usual.keyFile}`,
			"--connections=70",
			"--rows=put:140,watch:1000,getduringlists",
			...["--rounds=1", "--seconds=3"],
		],
		{ stdin: "ignore", stdout: "pipe", stderr: "ignore" },
	);
	let most = { connections: 0, watches: 0 };
	const sampler = setInterval(async () => {
		const count = (what: string) =>
			usual.metric(`etcdproxy_gateway_open_${what}`);
		const [connections, watches] = await Promise.all([
			count("connections"),
			count("watches"),
		]);
		most = {
			connections: Math.max(most.connections, connections),
			watches: Math.max(most.watches, watches),
		};
	}, 200);
	const { rows }: Json = JSON.parse(await child.stdout.text());
	clearInterval(sampler);
	for (const [name, { gateway }] of Object.entries<Json>(rows))
		expect([name, gateway.errors]).toEqual([name, 0]);
	expect(most).toEqual({ connections: 70, watches: 1000 });
	expect(await usual.metric(CUTS)).toBe(0);
	// A list takes hundreds of milliseconds.
	const { p50ms, p99ms } = rows.getduringlists.gateway.median;
	expect(p50ms).toBeLessThan(100);
	expect(p99ms).toBeLessThan(3_000);
	await allIsReleased(usual);
}, 120_000);
