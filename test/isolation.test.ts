import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { methods, UNKNOWN_METHOD } from "../etcd.ts";
import { until } from "./cluster/processes.ts";
import {
	type DataPlane,
	type Etcd,
	type Gateway,
	startDataPlane,
} from "./dataplane.ts";
import { anyMessage } from "./etcdmodel.ts";
import { EtcdClient, type EtcdStream, type Outcome } from "./grpcclient.ts";
import { FIRST_BUILD } from "./harness.ts";
import {
	etcdProtobuf,
	int,
	latin1,
	len,
	type Plain,
	type Protobuf,
	tag,
	varint,
} from "./protobuf.ts";
import { anyAct, bare, everything, Model, perform } from "./tenantmodel.ts";

/** In each test of anything random; a long run has thousands. */
const RUNS = Number(process.env.RUNS ?? 60);
const TIMEOUT_MS = 60_000 + 500 * RUNS;

/** Each ends where the next one begins, or holds another's name. */
const NAMES = ["t", "t0", "tt"];
const prefixOf = (name: string) => `/${name}/`;
/** Keys of the core that are nobody's: before, between and after the tenants' prefixes, as near as can be. */
const CANARIES = [
	...["\0", "/", "/\xff", "/s/a", "/u/a", "a", "t/a", "\xff", "\xff\xff"],
	...["/t", "/t.", "/t.\xff", "/t/", "/t\0", "/t\xff", "/T/a", "/t-/a"],
	...["/t0", "/t0\0", "/t0.", "/t0/", "/t00", "/t01", "/t00/a", "//t/a"],
	...["/tt", "/tt/", "/tt0", "/tt0/a", "/ttt/a", "/t-t/a", "/t.t/a"],
];
const CANARY_LEASE = "4711";

interface TenantOf {
	name: string;
	prefix: string;
	gateway: Gateway;
	client: EtcdClient;
	model: Model;
	/** Of everything, from the start. */
	events: Plain[];
	watch: EtcdStream;
}

let protobuf: Protobuf;
let plane: DataPlane;
let core: Etcd;
let direct: EtcdClient;
let tenants: TenantOf[];
let canaries: Plain[];
beforeAll(async () => {
	protobuf = await etcdProtobuf();
	plane = await startDataPlane();
	core = await plane.etcd();
	direct = await EtcdClient.connect(core, protobuf);
	await direct.ok("Lease/LeaseGrant", { ID: CANARY_LEASE, TTL: "6000" });
	for (const key of [...CANARIES, ...CANARIES.slice(0, 5)])
		await direct.ok("KV/Put", {
			key,
			value: `canary ${key}`,
			lease: CANARY_LEASE,
		});
	canaries = await outside();
	tenants = await Promise.all(
		NAMES.map(async (name) => {
			const prefix = prefixOf(name);
			const gateway = await plane.gateway(core, { prefix });
			const client = await EtcdClient.connect(gateway, protobuf);
			const tenant = {
				...{ name, prefix, gateway, client, model: new Model(), events: [] },
				watch: client.open("Watch/Watch"),
			};
			await watchEverything(tenant);
			return tenant;
		}),
	);
}, FIRST_BUILD);
afterAll(() => plane.stop());

async function watchEverything({ watch, events }: TenantOf): Promise<void> {
	watch.send({
		create_request: {
			key: "\0",
			range_end: "\0",
			start_revision: "1",
			prev_kv: true,
		},
	});
	expect((await watch.next())?.created).toBe(true);
	const read = async () => {
		for (;;) {
			const response = await watch.next();
			if (!response) return;
			events.push(...((response.events ?? []) as Plain[]));
		}
	};
	void read();
}

/** All of the core. */
const all = async (): Promise<Plain[]> =>
	((await direct.ok("KV/Range", everything)).kvs ?? []) as Plain[];

const isInside = (key: string, prefix: string) =>
	key.startsWith(prefix) && key !== prefix;

/** What no tenant has. */
const outside = async () =>
	(await all()).filter(
		({ key }) => !NAMES.some((name) => isInside(String(key), prefixOf(name))),
	);

/** @throws unless the core's own keys are as they were, and each tenant's as they should be */
async function checkCore(): Promise<void> {
	expect(await outside()).toEqual(canaries);
	for (const { prefix, model } of tenants)
		expect(
			(await all())
				.filter(({ key }) => isInside(String(key), prefix))
				.map(({ key = "", value = "", version = "" }) => [
					String(key).slice(prefix.length),
					value,
					version,
				]),
		).toEqual(
			model
				.range(everything)
				.map(({ key = "", value = "", version = "" }) => [key, value, version]),
		);
}

describe("tenants side by side", () => {
	test(
		"each have their own keys, leases and events, and the core keeps its own",
		async () => {
			const turns = fc.array(anyAct, {
				minLength: 10,
				maxLength: 30,
				size: "max",
			});
			await fc.assert(
				fc.asyncProperty(fc.tuple(turns, turns, turns), async (lists) => {
					await Promise.all(
						tenants.map(async (tenant, index) => {
							for (const act of lists[index] ?? []) await perform(tenant, act);
						}),
					);
					await checkCore();
				}),
				// A second attempt would begin with what the first one has left behind.
				{ numRuns: RUNS, endOnFailure: true },
			);
			for (const { events, model } of tenants) {
				await until(
					"a watch has been told of everything",
					async () => events.length >= model.events.length,
				);
				expect(events.length).toBe(model.events.length);
				// One by one: of all together, a difference takes minutes to print.
				for (const [index, event] of events.entries())
					expect(bare(event)).toEqual(model.events[index]);
			}
		},
		TIMEOUT_MS,
	);

	test(
		"have watches of everything that begin with their own history, whatever they name",
		async () => {
			for (const { client, model, name } of tenants)
				for (const request of [
					{ range_end: "\0" },
					{ key: "\0", range_end: "\0" },
					{ key: "\0", range_end: "\xff\xff\xff\xff" },
				]) {
					const stream = client.open("Watch/Watch");
					stream.send({ create_request: { ...request, start_revision: "1" } });
					const keys: string[] = [];
					while (keys.length < model.events.length) {
						const response = await stream.next();
						if (!response) throw new Error("the watch has ended");
						for (const { kv } of (response.events ?? []) as Plain[])
							keys.push(String((kv as Plain).key));
					}
					stream.cancel();
					const expected = model.events.map(({ kv }) => (kv as Plain).key);
					expect([name, keys]).toEqual([name, expected as string[]]);
				}
		},
		TIMEOUT_MS,
	);
});

describe("a lease", () => {
	const coreLeases = async () => {
		const { leases = [] } = await direct.ok("Lease/LeaseLeases", {});
		return (leases as Plain[]).map(({ ID = "0" }) => String(ID)).sort();
	};

	test("of one tenant, or of the core, is none of another's, by whatever number", async () => {
		const [one, other] = tenants as [TenantOf, TenantOf];
		const before = await coreLeases();
		await one.client.ok("Lease/LeaseGrant", { ID: "777", TTL: "600" });
		await one.client.ok("KV/Put", { key: "leased", lease: "777" });
		one.model.put({ key: "leased", value: "", lease: "777" });
		one.model.leases.add("777");
		const granted = await coreLeases();
		const [its = ""] = granted.filter((id) => !before.includes(id));
		expect(granted).toHaveLength(before.length + 1);

		const list = await other.client.ok("Lease/LeaseLeases", {});
		for (const ID of ["777", its, CANARY_LEASE, `-${its}`]) {
			const put = { key: "x", lease: ID };
			const attempts: [string, Plain][] = [
				["KV/Put", put],
				["KV/Txn", { success: [{ request_put: put }] }],
				["Lease/LeaseRevoke", { ID }],
			];
			for (const [rpc, request] of attempts)
				expect(await other.client.call(rpc, request)).toEqual({
					code: 5,
					message: "etcdserver: requested lease not found",
					responses: [],
				});
			const left = await other.client.ok("Lease/LeaseTimeToLive", {
				ID,
				keys: true,
			});
			expect([left.TTL, left.grantedTTL, left.keys]).toEqual([
				"-1",
				undefined,
				undefined,
			]);
			const alive = await other.client.ok("Lease/LeaseKeepAlive", { ID });
			expect(alive.TTL).toBeUndefined();
			expect(JSON.stringify(list)).not.toContain(`"${ID}"`);
			if (ID !== "777")
				expect(
					(await other.client.call("Lease/LeaseGrant", { ID, TTL: "60" })).code,
				).toBe(ID === CANARY_LEASE ? 0 : 3);
		}
		// 4711 is a number that a tenant may have as well: not the same lease.
		await other.client.ok("Lease/LeaseRevoke", { ID: CANARY_LEASE });
		expect(await coreLeases()).toEqual(granted);
		const kept = await one.client.ok("Lease/LeaseTimeToLive", {
			ID: "777",
			keys: true,
		});
		expect(kept).toMatchObject({ grantedTTL: "600", keys: ["leased"] });
		await checkCore();
	});

	test("that the core's operator attaches to keys of all shows each tenant its own", async () => {
		const [one, other] = tenants as [TenantOf, TenantOf];
		const { kvs: found } = await direct.ok("KV/Range", {
			key: `${one.prefix}leased`,
		});
		const [{ lease = "0" }] = found as [Plain];
		await direct.ok("KV/Put", {
			key: `${other.prefix}leased`,
			value: "w",
			lease,
		});
		other.model.put({ key: "leased", value: "w" });
		const ttl = await one.client.ok("Lease/LeaseTimeToLive", {
			ID: "777",
			keys: true,
		});
		expect(ttl.keys).toEqual(["leased"]);
		const { kvs } = await other.client.ok("KV/Range", { key: "leased" });
		expect((kvs as Plain[])[0]).not.toHaveProperty("lease");
		await other.client.ok("KV/Put", { key: "leased", value: "v" });
		other.model.put({ key: "leased", value: "v" });
		await checkCore();
	});
});

describe("bytes on the wire that are no good message", () => {
	const K = len(1, "k");
	const RANGE = "KV/Range";
	const padded = (number: number, content: string) => [
		...tag(number, 2),
		...varint(content.length, 1),
		...latin1(content),
	];
	const deep = (times: number): number[] =>
		times === 0 ? len(2, len(2, K)) : len(2, len(4, deep(times - 1)));
	const attacks: [string, string, number[]][] = [
		["a padded length", RANGE, padded(1, "/t0/a")],
		["a padded tag", RANGE, [0x8a, 0x00, 1, 65]],
		["a padded value", RANGE, [...K, ...tag(3, 0), ...varint(5, 1)]],
		["a tag of over 32 bits", RANGE, [0x8a, 0x80, 0x80, 0x80, 0x10, 1, 65]],
		[
			"a length of over 32 bits",
			RANGE,
			[...tag(1, 2), ...varint(2n ** 32n + 1n), 65],
		],
		[
			"a varint of 11 bytes",
			RANGE,
			[...K, ...tag(3, 0), ...new Array(10).fill(0xff), 1],
		],
		["two keys", RANGE, [...K, ...len(1, "/t0/a")]],
		["two ends", "KV/DeleteRange", [...K, ...len(2, "z"), ...len(2, "\0")]],
		[
			"two operations in one",
			"KV/Txn",
			len(2, [...len(1, K), ...len(3, [...K, ...len(2, "\0")])]),
		],
		[
			"the same one twice",
			"KV/Txn",
			len(2, [...len(2, K), ...len(2, len(1, "/t0/a"))]),
		],
		[
			"two compared values",
			"KV/Txn",
			len(1, [...len(3, "k"), ...int(4, 1), ...len(7, "v")]),
		],
		["an unknown field", "KV/Put", [...K, ...len(7, "x")]],
		[
			"an unknown field with a great number",
			"KV/Put",
			[...K, ...len(2 ** 29 - 1, "x")],
		],
		["field 0", "KV/Put", [...K, 0, 0]],
		["a group", RANGE, [...tag(1, 3), ...K, ...tag(1, 4)]],
		["a key that is a number", RANGE, int(1, 65)],
		["a fixed32", RANGE, [...K, ...tag(3, 5), 1, 2, 3, 4]],
		["a fixed64", RANGE, [...tag(1, 1), 1, 2, 3, 4, 5, 6, 7, 8]],
		["wire type 7", RANGE, [...K, ...tag(3, 7)]],
		["a length past the end", RANGE, [...tag(1, 2), 99, 65]],
		[
			"a length past its parent's end",
			"KV/Txn",
			[...tag(1, 2), 4, ...tag(3, 2), 5, 65, 66, ...len(2, len(2, K))],
		],
		["half a varint", RANGE, [...K, ...tag(3, 0), 0xff]],
		["garbage at the end", RANGE, [...K, 0xff, 0xff, 0xff]],
		["a bool that is 2", RANGE, [...K, ...int(7, 2)]],
		["a negative enum", RANGE, [...K, ...int(5, -1)]],
		["Txns without end", "KV/Txn", deep(300)],
		["no key", "KV/DeleteRange", len(2, "\0")],
		["an empty key", "KV/Put", [...len(1, ""), ...len(2, "v")]],
		["an empty operation", "KV/Txn", len(2, [])],
		[
			"the core's lease",
			"Lease/LeaseGrant",
			[...int(1, 60), ...int(2, 4611686018427387905n)],
		],
		["garbage where nothing is expected", "Maintenance/Status", len(1, "x")],
		[
			"garbage in what has no effect",
			"KV/Compact",
			[...int(1, 5), ...len(2, "x")],
		],
		[
			"filters that are not packed",
			"Watch/Watch",
			len(1, [...K, ...int(5, 1)]),
		],
		[
			"a watch and a cancellation in one",
			"Watch/Watch",
			[...len(1, K), ...len(2, int(1, 1))],
		],
		["a padded lease", "Lease/LeaseKeepAlive", [...tag(1, 0), ...varint(5, 2)]],
		["random bytes", "KV/Txn", [...Buffer.from("deadbeef0badcafe", "hex")]],
	];

	test("are refused; the core hears nothing of them, and everything else goes on", async () => {
		const [{ client, gateway, model }] = tenants as [TenantOf];
		const { grpc } = client;
		const watch = client.open("Watch/Watch");
		watch.send({ create_request: { key: "beside" } });
		expect((await watch.next())?.created).toBe(true);
		const revision = await coreRevision();
		for (const [what, rpc, bytes] of attacks) {
			const { path } = client.method(rpc);
			const stream = grpc.open(path);
			stream.send(Uint8Array.from(bytes));
			// A stream's end is not waited for: it is the message that ends it.
			if (!/Watch$|KeepAlive$/.test(rpc)) stream.end();
			const { code, message, responses } = await stream.rest();
			expect([what, code, message, responses]).toEqual([
				what,
				3,
				expect.stringMatching(
					/^etcdproxy: |^etcdserver: key (is not provided|not found)$/,
				),
				[],
			]);
			expect((await client.call("KV/Range", { key: "k" })).code).toBe(0);
		}
		expect(await coreRevision()).toBe(revision);
		await checkCore();
		await client.ok("KV/Put", { key: "beside", value: "v" });
		model.put({ key: "beside", value: "v" });
		expect((await watch.next())?.events).toHaveLength(1);
		watch.cancel();
		gateway.child.mustRun();
	});

	test("are refused when gRPC's own frame is wrong, and the connection goes on", async () => {
		const [{ client }] = tenants as [TenantOf];
		const { path } = client.method("KV/Put");
		const revision = await coreRevision();
		for (const [bytes, code] of [
			[[], 13],
			[[0, 0, 0], 13],
			[[0, 0, 0, 0, 9, ...K], 13],
			[[1, 0, 0, 0, 3, ...K], 12],
			[[0xff, 0, 0, 0, 3, ...K], 12],
			[[0, 0, 0, 0, 3, ...K, 0, 0, 0, 0, 3, ...K], 13],
			[[0, 0, 0, 0, 3, ...K, 0], 13],
			[[0, 0xff, 0xff, 0xff, 0xff, ...K], 8],
		] as const) {
			const stream = client.grpc.open(path);
			if (bytes.length > 0) stream.sendRaw(Uint8Array.from(bytes));
			stream.end();
			expect([bytes, (await stream.status).code]).toEqual([bytes, code]);
			expect(client.grpc.closed).toBe(false);
		}
		expect(await coreRevision()).toBe(revision);
		await checkCore();
	});

	test(
		"but nearly one do no harm to anybody else",
		async () => {
			const [first, ...others] = tenants as [TenantOf, TenantOf, TenantOf];
			const before = await all();
			const state = await coreState();
			const rpcs = [
				...["KV/Range", "KV/Put", "KV/DeleteRange", "KV/Txn", "KV/RangeStream"],
				...["Lease/LeaseGrant", "Lease/LeaseRevoke", "Lease/LeaseTimeToLive"],
				...["KV/Compact", "Cluster/MemberList", "Lease/LeaseKeepAlive"],
				...["Watch/Watch", "Watch/Watch"],
			];
			const attempt = fc
				.constantFrom(...rpcs)
				.chain((rpc) =>
					fc.tuple(
						fc.constant(rpc),
						anyMessage(protobuf, first.client.method(rpc).input, false),
						fc.array(
							fc.tuple(
								fc.nat(),
								fc.nat({ max: 255 }),
								fc.constantFrom("set", "insert", "remove", "flip"),
							),
							{ maxLength: 3 },
						),
					),
				);
			const codes = new Map<number, number>();
			await fc.assert(
				fc.asyncProperty(
					fc.array(attempt, { minLength: 8, maxLength: 8 }),
					async (attempts) => {
						const ended = await Promise.all(
							attempts.map(([rpc, message, mutations]) => {
								const { path, input } = first.client.method(rpc);
								const bytes = [...protobuf.encode(input, message)];
								for (const [where, byte, how] of mutations) {
									const at = where % (bytes.length + 1);
									if (how === "set") bytes[at] = byte;
									else if (how === "insert") bytes.splice(at, 0, byte);
									else if (how === "remove") bytes.splice(at, 1);
									else bytes[at] = (bytes[at] ?? 0) ^ (1 << (byte % 8));
								}
								return rpc === "Watch/Watch"
									? watched(first.client, Uint8Array.from(bytes))
									: first.client.grpc.call(path, Uint8Array.from(bytes));
							}),
						);
						for (const { code } of ended)
							codes.set(code, (codes.get(code) ?? 0) + 1);
						expect(ended.map(({ code }) => code)).not.toContain(13);
					},
				),
				{ numRuns: RUNS },
			);
			expect(codes.get(0) ?? 0).toBeGreaterThan(10);
			expect(codes.get(3) ?? 0).toBeGreaterThan(10);
			const isOthers = ({ key }: Plain) => !isInside(String(key), first.prefix);
			expect((await all()).filter(isOthers)).toEqual(before.filter(isOthers));
			expect(await outside()).toEqual(canaries);
			expect({ ...(await coreState()), leases: [] }).toEqual({
				...state,
				leases: [],
			});
			for (const { client, model } of others)
				expect(
					(await client.ok("KV/Range", { ...everything, count_only: true }))
						.count,
				).toBe(String(model.range(everything).length));
			first.gateway.child.mustRun();
			// Its keys and leases are what they are now.
			const { leases = [] } = await first.client.ok("Lease/LeaseLeases", {});
			for (const { ID = "0" } of leases as Plain[])
				await first.client.call("Lease/LeaseRevoke", { ID });
			first.model.leases.clear();
			await first.client.ok("KV/DeleteRange", everything);
			first.model.delete(everything);
			await checkCore();
		},
		TIMEOUT_MS,
	);
});

/** A request, and a watch behind it: until that one is there, or the stream has ended. */
async function watched(
	client: EtcdClient,
	request: Uint8Array,
): Promise<Outcome> {
	const { path, input, output } = client.method("Watch/Watch");
	const stream = client.grpc.open(path);
	stream.send(request);
	const last = { key: "k", watch_id: "1234567" };
	stream.send(protobuf.encode(input, { create_request: last }));
	for (;;) {
		const response = await stream.next();
		if (!response) return stream.status;
		const { watch_id } = protobuf.decode(output, response);
		if (watch_id !== last.watch_id) continue;
		stream.cancel();
		return { code: 0, message: "" };
	}
}

const coreRevision = async () =>
	((await direct.ok("KV/Range", { key: "a" })).header as Plain).revision;

/** All that an RPC other than those on keys could change. */
async function coreState() {
	const [members, users, roles, auth, alarms, leases] = await Promise.all([
		direct.ok("Cluster/MemberList", {}),
		direct.ok("Auth/UserList", {}),
		direct.ok("Auth/RoleList", {}),
		direct.ok("Auth/AuthStatus", {}),
		direct.ok("Maintenance/Alarm", {}),
		direct.ok("Lease/LeaseLeases", {}),
	]);
	return {
		members: members.members,
		users: users.users,
		roles: roles.roles,
		auth: [auth.enabled, auth.authRevision],
		alarms: alarms.alarms,
		leases: ((leases.leases ?? []) as Plain[]).map(({ ID }) => ID).sort(),
	};
}

describe("an RPC that is not for tenants", () => {
	/** Such that they would have an effect. */
	const requests: Record<string, Plain> = {
		MemberAdd: { peerURLs: ["http://127.0.0.1:9"], isLearner: true },
		Alarm: { action: 1, alarm: 1 },
		UserAdd: { name: "mallory", options: { no_password: true } },
		RoleAdd: { name: "root" },
		Lock: { name: "/t0/lock" },
		Campaign: { name: "/t0/election", value: "v" },
		Downgrade: { action: 1, version: "3.6.0" },
	};

	test("is refused with a code and a sentence, and nothing happens in the core", async () => {
		const [{ client, gateway }] = tenants as [TenantOf];
		const before = [await coreRevision(), await coreState()];
		const answered: string[] = [];
		for (const { name, methods: rpcs } of protobuf.description.services)
			for (const { path, input } of rpcs) {
				const method = methods.get(path);
				if (!method) throw new Error(`nothing is said of ${path}`);
				if (!("refused" in method)) continue;
				const request = requests[path.split("/").at(-1) ?? ""] ?? {};
				const bytes = protobuf.encode(input, request);
				const { code, message, responses } = await client.grpc.call(
					path,
					bytes,
				);
				answered.push(name);
				expect([path, code, message, responses]).toEqual([
					path,
					method.code,
					method.refused,
					[],
				]);
				expect(message).toStartWith("etcdproxy: ");
				expect(
					await gateway.metric("etcdproxy_gateway_refusals_total", {
						method: path,
					}),
				).toBe(1);
			}
		expect(answered).toHaveLength(38);
		expect([...new Set(answered)].sort()).toEqual([
			"etcdserverpb.Auth",
			"etcdserverpb.Cluster",
			"etcdserverpb.Maintenance",
			"grpc.health.v1.Health",
			"v3electionpb.Election",
			"v3lockpb.Lock",
		]);
		expect([await coreRevision(), await coreState()]).toEqual(before);
		await checkCore();
	});

	test("is refused when nobody knows it", async () => {
		const [{ client }] = tenants as [TenantOf];
		for (const path of [
			...["/", "/x", "/etcdserverpb.KV/Nope", "/nope.KV/Range", "//"],
			...[
				"/etcdserverpb.KV/range",
				"/etcdserverpb.KV/Range/",
				"//etcdserverpb.KV/Range",
			],
			...[
				"/etcdserverpb.KV/Range?",
				"/etcdserverpb.KV/%52ange",
				"/etcdserverpb.KV",
			],
			...[
				"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
				"/v3/kv/range",
				"/metrics",
			],
		]) {
			const answer = await client.grpc.call(path, Uint8Array.from(len(1, "a")));
			expect([path, answer]).toEqual([
				path,
				{
					code: UNKNOWN_METHOD.code,
					message: UNKNOWN_METHOD.refused,
					responses: [],
				},
			]);
		}
	});
});

describe("the number of watches", () => {
	test("on a connection is not talked down with watches that fail or have been compacted", async () => {
		const limited = await plane.gateway(core, {
			prefix: "/limited/",
			flags: ["--max-watches=3"],
		});
		const client = await EtcdClient.connect(limited, protobuf);
		const { header } = await client.ok("KV/Put", { key: "a" });
		const revision = String((header as Plain).revision);
		await direct.ok("KV/Put", { key: "/" });
		await direct.ok("KV/Compact", { revision });
		canaries = await outside();
		const stream = client.open("Watch/Watch");
		const ask = async (
			request: Plain,
			wanted: (response: Plain) => boolean,
		) => {
			stream.send(request);
			for (;;) {
				const response = await stream.next();
				if (!response) throw new Error("the stream has ended");
				if (wanted(response)) return;
			}
		};
		const watch = () =>
			ask(
				{ create_request: { key: "a" } },
				({ created, canceled }) => created === true && !canceled,
			);
		const isCanceled = ({ canceled }: Plain) => canceled === true;
		await watch();
		await watch();
		for (const watch_id of ["10", "11", "12"]) {
			await ask({ create_request: { key: "b", range_end: "a" } }, isCanceled);
			await ask(
				{ create_request: { key: "a", start_revision: "1", watch_id } },
				({ compact_revision }) => compact_revision !== undefined,
			);
			await ask({ cancel_request: { watch_id } }, isCanceled);
		}
		await watch();
		expect(await limited.metric("etcdproxy_gateway_open_watches")).toBe(3);
		stream.send({ create_request: { key: "a" } });
		expect(await stream.status).toMatchObject({ code: 8 });
		expect(await limited.metric("etcdproxy_gateway_open_watches")).toBe(0);
	});
});
