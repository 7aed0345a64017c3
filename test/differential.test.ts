import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type DataPlane, type Endpoint, startDataPlane } from "./dataplane.ts";
import { Comparison, Side } from "./differential.ts";
import { MEMBER_ID, PREFIX } from "./etcdmodel.ts";
import { EtcdClient } from "./grpcclient.ts";
import { FIRST_BUILD } from "./harness.ts";
import { etcdProtobuf, int, len, type Plain } from "./protobuf.ts";
import { MAX_REQUEST_BYTES, type Op, script, TOO_LARGE } from "./scripts.ts";

/** Scripts in each of the tests of any script; a long run has thousands. */
const RUNS = Number(process.env.RUNS ?? 300);
const TIMEOUT_MS = 60_000 + 500 * RUNS;
const PROGRESS_INTERVAL_MS = 200;

let plane: DataPlane;
let comparison: Comparison;
let gateway: EtcdClient;
let etcd: EtcdClient;
let gatewayUrl: string;
beforeAll(async () => {
	const protobuf = await etcdProtobuf();
	plane = await startDataPlane();
	const flags = [
		`--max-request-bytes=${MAX_REQUEST_BYTES}`,
		`--watch-progress-notify-interval=${PROGRESS_INTERVAL_MS}ms`,
	];
	const [core, alone] = await Promise.all([
		plane.etcd(flags),
		plane.etcd(flags),
	]);
	const served = await plane.gateway(core, { prefix: PREFIX });
	gatewayUrl = served.url;
	const connect = (endpoint: Endpoint) =>
		EtcdClient.connect(endpoint, protobuf);
	gateway = await connect(served);
	etcd = await connect(alone);
	comparison = new Comparison(
		new Side("gateway", gateway, await connect(core), protobuf),
		new Side("etcd", etcd, etcd, protobuf),
	);
}, FIRST_BUILD);
afterAll(() => plane.stop());

const call = (rpc: string, request: Plain = {}): Op => ({
	op: "call",
	rpc,
	request,
});
const put = (key: string, more: Plain = {}) =>
	call("KV/Put", { key, value: "v", ...more });
const range = (more: Plain) => call("KV/Range", { key: "a", ...more });
const txn = (request: Plain) => call("KV/Txn", request);
const watch = (request: Plain): Op => ({ op: "watch", stream: 0, request });
const grant = (slot: string, ID?: string, TTL = "600"): Op => ({
	op: "grant",
	slot,
	TTL,
	...(ID && { ID }),
});

/** What is new in the tally. */
async function answers(ops: Op[]): Promise<string[]> {
	const before = new Map(comparison.tally);
	await comparison.run({ noise: "between operations", ops });
	return [...comparison.tally]
		.filter(([what, count]) => count > (before.get(what) ?? 0))
		.map(([what]) => what);
}

describe("any script of operations", () => {
	const holds = (length: number, watches: boolean, runs: number) =>
		fc.assert(
			fc.asyncProperty(script(length, watches), (one) => comparison.run(one)),
			{ numRuns: runs },
		);

	test(
		"on keys and leases has the same answers as from etcd",
		() => holds(20, false, RUNS),
		TIMEOUT_MS,
	);

	test(
		"with watches has the same answers and events as from etcd",
		() => holds(24, true, Math.ceil(RUNS / 3)),
		TIMEOUT_MS,
	);

	test("has come by what is asked most", () => {
		if (process.env.RUNS)
			for (const [what, count] of [...comparison.tally].sort())
				console.log(`${String(count).padStart(8)} ${what}`);
		for (const rpc of [
			...["Range", "RangeStream", "Put", "DeleteRange", "Txn", "Watch"],
			...["LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive"],
			"LeaseLeases",
		])
			expect(comparison.tally.get(`${rpc} OK`) ?? 0).toBeGreaterThan(0);
	});
});

test("every comparison with everything that can be compared has the same result", async () => {
	const operands: Record<string, string[]> = {
		version: ["0", "1", "2", "-1", "9223372036854775807"],
		create_revision: ["0", "@0", "@1", "@2", "-1"],
		mod_revision: ["0", "@0", "@1", "@2", "-1"],
		value: ["", "v", "w", "\0"],
		lease: [
			...["0", "#e1", "#e2", "77", "2097151", "2097152", "-1"],
			...["9223372036854775807", "-9223372036854775808"],
		],
	};
	const compared = [
		...["a", "b", "c"].map((key): Plain => ({ key })),
		{ key: "a", range_end: "b" },
		{ key: "a", range_end: "\0" },
		{ key: "b", range_end: "a" },
		{ key: "a", range_end: "" },
	];
	const ops = Object.entries(operands).flatMap(([name, values], target) =>
		values.flatMap((value) =>
			[0, 1, 2, 3].flatMap((result) =>
				compared.map((range) =>
					txn({ compare: [{ ...range, target, result, [name]: value }] }),
				),
			),
		),
	);
	await comparison.run({
		noise: "none",
		ops: [
			...[grant("e1", "1"), grant("e2", "2"), put("a", { lease: "#e1" })],
			...[put("b", { value: "" }), put("a", { lease: "#e2" }), ...ops],
		],
	});
});

describe("an error is etcd's, word for word:", () => {
	const nested = (depth: number, request: Plain): Plain =>
		depth === 0
			? request
			: nested(depth - 1, { success: [{ request_txn: request }] });
	const puts = (count: number): Plain[] =>
		Array.from({ length: count }, (_, i) => ({
			request_put: { key: `k${i}` },
		}));
	const deletion = { request_delete_range: { key: "a", range_end: "c" } };

	test.each<[string, Op[]]>([
		["Put etcdserver: key is not provided", [put("")]],
		["Range etcdserver: key is not provided", [range({ key: "" })]],
		[
			"DeleteRange etcdserver: key is not provided",
			[call("KV/DeleteRange", { range_end: "\0" })],
		],
		[
			"Txn etcdserver: key is not provided",
			[txn(nested(3, { compare: [{ range_end: "\0" }] }))],
		],
		["Txn etcdserver: key not found", [txn(nested(3, { failure: [{}] }))]],
		[
			"Txn etcdserver: duplicate key given in txn request",
			[txn({ success: [...puts(1), ...puts(1)] })],
		],
		[
			"Txn etcdserver: duplicate key given in txn request",
			[
				txn({
					success: [
						deletion,
						{ request_txn: { failure: [{ request_put: { key: "b" } }] } },
					],
				}),
			],
		],
		["Txn OK", [txn({ success: [deletion, { request_put: { key: "c" } }] })]],
		[
			"Txn etcdserver: too many operations in txn request",
			[txn({ success: puts(129) })],
		],
		[
			"Txn etcdserver: too many operations in txn request",
			[
				txn({
					failure: [
						...puts(28),
						...(nested(1, { success: puts(101) }).success as Plain[]),
					],
				}),
			],
		],
		["Txn OK", [txn({ success: puts(128) })]],
		["Range etcdserver: invalid sort option", [range({ sort_order: 3 })]],
		[
			"Txn etcdserver: invalid sort option",
			[
				txn(
					nested(2, {
						success: [{ request_range: { key: "a", sort_target: 5 } }],
					}),
				),
			],
		],
		[
			"Range etcdserver: mvcc: required revision is a future revision",
			[put("a"), range({ revision: "next" })],
		],
		[
			"Range etcdserver: mvcc: required revision has been compacted",
			[
				put("a"),
				put("a"),
				{ op: "compact", revision: "@1" },
				range({ revision: "@0" }),
			],
		],
		[
			"Txn etcdserver: mvcc: required revision has been compacted",
			[
				...[put("a"), put("a"), { op: "compact", revision: "@1" } as const],
				txn({ success: [{ request_range: { key: "a", revision: "@0" } }] }),
			],
		],
		[
			"RangeStream RangeStream does not support custom sort orders",
			[call("KV/RangeStream", { key: "a", sort_order: 2 })],
		],
		[
			"RangeStream RangeStream does not support revision filters",
			[call("KV/RangeStream", { key: "a", max_mod_revision: "5" })],
		],
		["Put etcdserver: value is provided", [put("a", { ignore_value: true })]],
		[
			"Put etcdserver: key not found",
			[put("a", { value: "", ignore_value: true })],
		],
		["Put etcdserver: key not found", [put("a", { ignore_lease: true })]],
		[
			"Put etcdserver: lease is provided",
			[grant("e1", "1"), put("a", { lease: "#e1", ignore_lease: true })],
		],
		["Put etcdserver: requested lease not found", [put("a", { lease: "5" })]],
		["Put etcdserver: requested lease not found", [put("a", { lease: "-5" })]],
		[
			"Txn etcdserver: requested lease not found",
			[
				txn({
					success: [
						{ request_put: { key: "a", lease: "4611686018427387904" } },
					],
				}),
			],
		],
		["Put etcdserver: request is too large", [put("a", { value: TOO_LARGE })]],
		[
			"LeaseGrant etcdserver: lease already exists",
			[grant("e1", "1"), grant("e1", "1")],
		],
		[
			"LeaseGrant etcdserver: too large lease TTL",
			[grant("e1", "1", "9000000001")],
		],
		[
			"LeaseRevoke etcdserver: requested lease not found",
			[
				grant("p1"),
				call("Lease/LeaseRevoke", { ID: "#p1" }),
				call("Lease/LeaseRevoke", { ID: "#p1" }),
			],
		],
		["LeaseTimeToLive OK", [call("Lease/LeaseTimeToLive", { ID: "5" })]],
		[
			"Watch mvcc: duplicate watch ID provided on the WatchStream",
			[watch({ key: "a", watch_id: "7" }), watch({ key: "b", watch_id: "7" })],
		],
		[
			"Watch mvcc: watcher range is empty",
			[watch({ key: "b", range_end: "a" })],
		],
		[
			"Watch mvcc: watcher range is empty",
			[watch({ key: "b", range_end: "b" })],
		],
		[
			"Watch etcdserver: mvcc: required revision has been compacted",
			[watch({ key: "a", start_revision: "-1" })],
		],
		[
			"Watch compacted",
			[
				put("a"),
				put("a"),
				{ op: "compact", revision: "@1" },
				watch({ start_revision: "@0" }),
			],
		],
	])("%s", async (message, ops) => {
		expect(await answers(ops)).toContain(message);
	});
});

describe("what is large", () => {
	test("is passed on whole, at once and in parts", async () => {
		const everything = { key: "\0", range_end: "\0" };
		const range = { request_range: everything };
		// Half a megabyte, in values of all sizes.
		const puts = Array.from({ length: 150 }, (_, i) =>
			put(`k${i}`, {
				value: String.fromCharCode(i).repeat((i * 7919) % 8_000),
			}),
		);
		await comparison.run({
			noise: "none",
			ops: [
				...puts,
				call("KV/Range", everything),
				call("KV/Range", { ...everything, limit: "149", sort_order: 2 }),
				call("KV/Range", { ...everything, keys_only: true }),
				call("KV/RangeStream", everything),
				call("KV/RangeStream", { ...everything, limit: "149" }),
				txn({ success: [range, { request_txn: { success: [range] } }, range] }),
				call("KV/DeleteRange", { ...everything, prev_kv: true }),
			],
		});
	});

	test("is cut into several responses by both, if there are many", async () => {
		await comparison.clear();
		for (const client of [gateway, etcd]) {
			for (let i = 0; i < 40; i++)
				await client.ok("KV/Put", { key: `k${i}`, value: "v".repeat(4_000) });
			const { responses } = await client.call("KV/RangeStream", {
				key: "\0",
				range_end: "\0",
			});
			expect(responses.length).toBeGreaterThan(1);
		}
	});

	// A length of up to 127 is one byte, and the prefix may make it two.
	test("may be a key of any length", async () => {
		const lengths = Array.from({ length: 20 }, (_, i) => 111 + i);
		const ops = [...lengths, 4_000, 8_000].flatMap((length) => {
			const key = "k".repeat(length);
			return [put(key), range({ key }), range({ key: "a", range_end: key })];
		});
		await comparison.run({
			noise: "none",
			ops: [watch({ range_end: "\0" }), ...ops],
		});
	});

	test("comes in fragments to a watch that wants it so, and whole to another", async () => {
		const fragments = async (client: EtcdClient, request: Plain) => {
			const stream = client.open("Watch/Watch");
			stream.send({ create_request: request });
			const parts: boolean[] = [];
			for (let events = 0; events < 60; ) {
				const response = await stream.next();
				if (!response) throw new Error("the watch has ended");
				if (!response.events) continue;
				events += (response.events as Plain[]).length;
				parts.push(response.fragment === true);
			}
			stream.cancel();
			return parts;
		};
		await comparison.clear();
		for (const client of [gateway, etcd]) {
			const put = async (i: number) => {
				const value = "v".repeat(12_000);
				const { header } = await client.ok("KV/Put", { key: `k${i}`, value });
				return String((header as Plain).revision);
			};
			const start_revision = await put(0);
			for (let i = 1; i < 60; i++) await put(i);
			const all = { range_end: "\0", start_revision };
			// More than etcd takes in a request, and 512 KiB.
			expect(await fragments(client, { ...all, fragment: true })).toEqual([
				true,
				false,
			]);
			expect(await fragments(client, all)).toEqual([false]);
		}
	});
});

describe("time:", () => {
	test("a lease that expires takes its keys along, and watches are told", async () => {
		await comparison.clear();
		const told = async (client: EtcdClient) => {
			const { ID = "0", TTL = "0" } = await client.ok("Lease/LeaseGrant", {
				TTL: "1",
			});
			const stream = client.open("Watch/Watch");
			stream.send({ create_request: { range_end: "\0", prev_kv: true } });
			await stream.next();
			await client.ok("KV/Put", { key: "a", value: "v", lease: ID });
			await client.ok("KV/Put", { key: "b", value: "v" });
			const events: Plain[] = [];
			while (events.length < 3) {
				const response = await stream.next();
				if (!response) throw new Error("the watch has ended");
				for (const { type = 0, kv, prev_kv } of (response.events ??
					[]) as Plain[]) {
					const { lease } = (prev_kv ?? {}) as Plain;
					events.push({
						type,
						key: (kv as Plain).key as string,
						had: lease === ID,
					});
				}
			}
			stream.cancel();
			const left = await client.ok("Lease/LeaseTimeToLive", { ID });
			return [TTL, events, left.TTL];
		};
		const [ours, theirs] = await Promise.all([told(gateway), told(etcd)]);
		expect(ours).toEqual(theirs);
		expect(ours[1]).toEqual([
			{ type: 0, key: "a", had: false },
			{ type: 0, key: "b", had: false },
			{ type: 1, key: "a", had: true },
		]);
	}, 20_000);

	test("a watch that wants it is told of progress from time to time, another is not", async () => {
		const told = async (client: EtcdClient, progress_notify: boolean) => {
			const stream = client.open("Watch/Watch");
			stream.send({
				create_request: { range_end: "\0", watch_id: "5", progress_notify },
			});
			await stream.next();
			const next = await Promise.race([
				stream.next(),
				...(progress_notify
					? []
					: [Bun.sleep(5 * PROGRESS_INTERVAL_MS).then(() => undefined)]),
			]);
			stream.cancel();
			return next && Object.keys(next);
		};
		for (const client of [gateway, etcd]) {
			expect(await told(client, true)).toEqual(["header", "watch_id"]);
			expect(await told(client, false)).toBeUndefined();
		}
	});

	test("a stream whose time is up ends, with the same status", async () => {
		const ended = async (client: EtcdClient, rpc: string) => {
			const stream = client.open(rpc, { "grpc-timeout": "200m" });
			if (rpc === "Watch/Watch") stream.send({ create_request: { key: "a" } });
			return stream.status;
		};
		for (const rpc of ["Watch/Watch", "Lease/LeaseKeepAlive"]) {
			const [ours, theirs] = await Promise.all([
				ended(gateway, rpc),
				ended(etcd, rpc),
			]);
			expect(ours).toEqual(theirs);
			expect(ours.code).toBe(4);
		}
	});

	test("a watch goes on when its stream gets no further requests; keepalives end", async () => {
		await comparison.clear();
		for (const client of [gateway, etcd]) {
			const stream = client.open("Watch/Watch");
			stream.send({ create_request: { key: "a" } });
			stream.end();
			expect((await stream.next())?.created).toBe(true);
			await client.ok("KV/Put", { key: "a" });
			expect((await stream.next())?.events).toHaveLength(1);
			stream.cancel();
			const leases = client.open("Lease/LeaseKeepAlive");
			leases.end();
			expect(await leases.status).toEqual({ code: 0, message: "" });
		}
	});
});

// README has these, in fewer words.
describe("known to differ from etcd:", () => {
	const ask = async (client: EtcdClient, rpc: string, request: Plain = {}) => {
		const { code, message, responses } = await client.call(rpc, request);
		return { code, message, response: responses[0] };
	};
	test("Compact is answered, whatever its revision, and does nothing", async () => {
		await comparison.clear();
		await gateway.ok("KV/Put", { key: "a", value: "old" });
		const { header } = await gateway.ok("KV/Put", { key: "a" });
		const now = Number((header as Plain).revision);
		for (const revision of [now, now, 1, now + 1_000, -1]) {
			const compacted = await ask(gateway, "KV/Compact", {
				revision: String(revision),
				physical: true,
			});
			expect(compacted.code).toBe(0);
			expect(Object.keys(compacted.response ?? {})).toEqual(["header"]);
		}
		const { kvs } = await gateway.ok("KV/Range", {
			key: "a",
			revision: String(now - 1),
		});
		expect(kvs).toMatchObject([{ value: "old" }]);
		expect(
			await ask(etcd, "KV/Compact", { revision: "1000000000" }),
		).toMatchObject({
			code: 11,
			message: "etcdserver: mvcc: required revision is a future revision",
		});
	});

	test("lease ids are 1 to 2097150; one that is picked is any of them", async () => {
		await comparison.clear();
		for (const ID of ["-1", "2097151", "4611686018427387904"]) {
			expect(
				await ask(gateway, "Lease/LeaseGrant", { ID, TTL: "60" }),
			).toMatchObject({
				code: 3,
				message:
					"etcdproxy: LeaseGrantRequest.ID: lease ids are 1 to 2097150 here; leave it out, and one is picked",
			});
			expect(
				await ask(etcd, "Lease/LeaseGrant", { ID, TTL: "60" }),
			).toMatchObject({ code: 0 });
		}
		const { ID } = await gateway.ok("Lease/LeaseGrant", { TTL: "60" });
		expect(Number(ID)).toBeWithin(1, 2_097_151);
	});

	test("an answer about a lease that cannot be names 2097151", async () => {
		await comparison.clear();
		for (const [rpc, rest] of [
			["Lease/LeaseTimeToLive", { TTL: "-1" }],
			["Lease/LeaseKeepAlive", {}],
		] as const)
			for (const ID of ["-7", "2097152", "4611686018427387904"]) {
				expect(await gateway.ok(rpc, { ID })).toEqual({
					header: expect.anything(),
					ID: "2097151",
					...rest,
				});
				expect(await etcd.ok(rpc, { ID })).toEqual({
					header: expect.anything(),
					ID,
					...rest,
				});
			}
	});

	test("a Txn that puts a key and deletes from one before it, without an end, has it twice", async () => {
		await comparison.clear();
		const request = {
			success: [
				{ request_delete_range: { key: "a", range_end: "\0" } },
				{ request_put: { key: "b" } },
			],
		};
		expect(await ask(gateway, "KV/Txn", request)).toEqual({
			code: 3,
			message: "etcdserver: duplicate key given in txn request",
			response: undefined,
		});
		// It would say so, too, if the end were any other key after b: it takes this one for a range that ends before it begins.
		expect(await ask(etcd, "KV/Txn", request)).toMatchObject({ code: 0 });
	});

	test("of several faults of a Txn, that a key is missing is told first", async () => {
		const request = {
			success: Array.from({ length: 129 }, () => ({ request_put: {} })),
		};
		expect(await ask(gateway, "KV/Txn", request)).toMatchObject({
			code: 3,
			message: "etcdserver: key is not provided",
		});
		expect(await ask(etcd, "KV/Txn", request)).toMatchObject({
			code: 3,
			message: "etcdserver: too many operations in txn request",
		});
	});

	test("Txns are nested 16 deep at most", async () => {
		await comparison.clear();
		const nested = (depth: number, request: Plain): Plain => ({
			success: [
				depth === 0 ? request : { request_txn: nested(depth - 1, request) },
			],
		});
		const requests: Plain[] = [
			{ request_put: { key: "a", value: "v" } },
			{ request_put: { key: "a", value: "w", prev_kv: true } },
			{ request_range: { key: "a" } },
			{ request_delete_range: { key: "a", prev_kv: true } },
			{ request_txn: {} },
		];
		const txn = (depth: number, request: Plain): Op =>
			call("KV/Txn", nested(depth, request));
		await comparison.run({
			noise: "none",
			ops: requests.map((request) => txn(16, request)),
		});
		for (const request of requests) {
			expect(await ask(gateway, "KV/Txn", nested(17, request))).toEqual({
				code: 3,
				message: "etcdproxy: RequestOp: is nested too deeply",
				response: undefined,
			});
			expect(await ask(etcd, "KV/Txn", nested(17, request))).toMatchObject({
				code: 0,
			});
		}
	});

	test("a field that etcd 3.7 does not have is refused, and so is one that is there twice", async () => {
		const path = "/etcdserverpb.KV/Range";
		for (const [bytes, message] of [
			[
				[...len(1, "a"), ...int(99, 1)],
				"etcdproxy: RangeRequest: field 99 is not known to this gateway",
			],
			[
				[...len(1, "a"), ...len(1, "b")],
				"etcdproxy: RangeRequest.key: is there twice",
			],
		] as const) {
			expect(
				await gateway.grpc.call(path, Uint8Array.from(bytes)),
			).toMatchObject({ code: 3, message });
			expect(await etcd.grpc.call(path, Uint8Array.from(bytes))).toMatchObject({
				code: 0,
			});
		}
	});

	test("a request on a watch stream that asks for nothing ends the stream", async () => {
		const [ours, theirs] = [gateway, etcd].map((client) =>
			client.open("Watch/Watch"),
		);
		ours?.send({});
		expect(await ours?.status).toEqual({
			code: 3,
			message:
				"etcdproxy: WatchRequest: neither creates nor cancels a watch, nor asks for progress",
		});
		theirs?.send({});
		theirs?.send({ create_request: { key: "a" } });
		expect((await theirs?.next())?.created).toBe(true);
		theirs?.cancel();
	});

	test("the prefix counts among the bytes that a request may have", async () => {
		const { code: ours } = await ask(gateway, "KV/Put", fitting());
		const { code: theirs } = await ask(etcd, "KV/Put", fitting());
		expect([ours, theirs]).toEqual([3, 0]);
	});

	test("MemberList shows the gateway alone", async () => {
		expect(
			await gateway.ok("Cluster/MemberList", { linearizable: true }),
		).toEqual({
			header: expect.anything(),
			members: [{ ID: MEMBER_ID, name: "etcdproxy", clientURLs: [gatewayUrl] }],
		});
	});

	test("Status tells etcd's version, and not how large it is", async () => {
		const [ours, theirs] = await Promise.all(
			[gateway, etcd].map((client) => client.ok("Maintenance/Status", {})),
		);
		expect(ours).toMatchObject({
			version: theirs?.version as string,
			storageVersion: theirs?.storageVersion as string,
			leader: MEMBER_ID,
		});
		for (const name of [
			"raftIndex",
			"raftAppliedIndex",
			"dbSizeQuota",
			"downgradeInfo",
		])
			expect([ours?.[name], theirs?.[name]]).toEqual([
				undefined,
				expect.anything(),
			]);
	});
});

/** A put that is as large as etcd takes, to the byte or nearly. */
const fitting = (): Plain => ({
	key: "a",
	value: "v".repeat(MAX_REQUEST_BYTES - 25),
});
