import { beforeAll, describe, expect, test } from "bun:test";
import { Rule, type Type } from "../etcd/schema.ts";
import {
	Code,
	LEASE_MAX,
	type Method,
	methods,
	rangeRequest,
	type ServedMethod,
	tenant,
	toCore,
	toTenant,
	UNKNOWN_METHOD,
	watchChange,
} from "../etcd.ts";
import {
	coreBytes,
	DRAWN,
	refusal,
	sample,
	served,
	surrounded,
	tenantBytes,
	types,
	unframed,
} from "./codec.ts";
import {
	CLUSTER_ID,
	coreLease,
	LAST_LEASE,
	MEMBER_ID,
	PREFIX,
	PREFIX_END,
	URL,
} from "./etcdmodel.ts";
import { FIRST_BUILD } from "./harness.ts";
import {
	etcdProtobuf,
	int,
	len,
	type Plain,
	type Protobuf,
	tag,
} from "./protobuf.ts";

let protobuf: Protobuf;
beforeAll(async () => {
	protobuf = await etcdProtobuf();
}, FIRST_BUILD);

const atCore = (rpc: string, request: Plain): Plain => {
	const type = types(protobuf, rpc).input;
	return protobuf.decode(type, coreBytes(rpc, protobuf.encode(type, request)));
};

const atTenant = (rpc: string, response: Plain): Plain => {
	const type = types(protobuf, rpc).output;
	const bytes = protobuf.encode(type, response);
	return protobuf.decode(type, tenantBytes(rpc, bytes));
};

const NO_KEY = "3: etcdserver: key is not provided";
const NOBODYS = coreLease(LAST_LEASE + 1n);
const k = `${PREFIX}k`;

describe("keys of requests", () => {
	test("are moved behind the prefix, and ends of ranges with them", () => {
		for (const rpc of ["KV/Range", "KV/RangeStream", "KV/DeleteRange"])
			for (const [range_end, expected] of [
				[undefined, undefined],
				["", undefined],
				["\0", PREFIX_END],
				["\0\0", `${PREFIX}\0\0`],
				["z", `${PREFIX}z`],
				["\xff", `${PREFIX}\xff`],
				[PREFIX_END, PREFIX + PREFIX_END],
			])
				expect(
					atCore(rpc, {
						key: "k",
						...(range_end !== undefined && { range_end }),
					}),
				).toEqual({ key: k, ...(expected && { range_end: expected }) });
	});

	test("are moved whatever they are", () => {
		for (const key of [
			"\0",
			"\xff\xff",
			PREFIX,
			"/other/x",
			"k".repeat(40_000),
		])
			for (const rpc of ["KV/Range", "KV/Put", "KV/DeleteRange"])
				expect(atCore(rpc, { key })).toEqual({ key: PREFIX + key });
	});

	test("must be there, as etcd says", () => {
		for (const rpc of ["Range", "RangeStream", "Put", "DeleteRange"]) {
			expect(refusal(() => coreBytes(`KV/${rpc}`, []))).toBe(NO_KEY);
			expect(refusal(() => coreBytes(`KV/${rpc}`, len(1, "")))).toBe(NO_KEY);
		}
		const txn = (content: number[]) =>
			refusal(() => coreBytes("KV/Txn", content));
		expect(txn(len(1, []))).toBe(NO_KEY);
		expect(txn(len(1, len(3, "")))).toBe(NO_KEY);
		for (const member of [1, 2, 3])
			for (const branch of [2, 3]) {
				expect(txn(len(branch, len(member, [])))).toBe(NO_KEY);
				expect(txn(len(branch, len(member, len(1, ""))))).toBe(NO_KEY);
			}
		expect(txn(len(2, len(4, len(3, len(2, [])))))).toBe(NO_KEY);
	});

	test("are moved in all of a Txn", () => {
		const txn = (at: string, end: string): Plain => ({
			compare: [
				{ key: `${at}a`, target: 2, mod_revision: "7" },
				{ key: `${at}b`, range_end: end, result: 3, value: "v" },
				{ key: `${at}c`, version: "0" },
			],
			success: [
				{ request_put: { key: `${at}a`, value: "v" } },
				{ request_delete_range: { key: `${at}b`, range_end: end } },
			],
			failure: [
				{ request_range: { key: `${at}a`, range_end: end, limit: "1" } },
				{
					request_txn: {
						compare: [{ key: `${at}d` }],
						success: [
							{
								request_txn: { failure: [{ request_put: { key: `${at}e` } }] },
							},
						],
					},
				},
			],
		});
		expect(atCore("KV/Txn", txn("", "\0"))).toEqual(txn(PREFIX, PREFIX_END));
		expect(atCore("KV/Txn", txn("", "z"))).toEqual(txn(PREFIX, `${PREFIX}z`));
	});

	test("are all of the tenant's for a watch without one", () => {
		const first = `${PREFIX}\0`;
		const watch = (create_request: Plain) =>
			atCore("Watch/Watch", { create_request });
		expect(watch({})).toEqual({ create_request: { key: first } });
		expect(watch({ range_end: "\0", start_revision: "5" })).toEqual({
			create_request: {
				key: first,
				range_end: PREFIX_END,
				start_revision: "5",
			},
		});
		expect(watch({ key: "k", range_end: "l" })).toEqual({
			create_request: { key: k, range_end: `${PREFIX}l` },
		});
		const empty = coreBytes("Watch/Watch", len(1, len(1, "")));
		expect([...empty]).toEqual(len(1, len(1, first)));
	});

	// For etcd 3.6 and earlier an empty end that is there means no end: their parser tells [] from nil, and so does mvcc.
	test("have no range_end that is there and empty", () => {
		for (const rpc of ["KV/Range", "KV/RangeStream", "KV/DeleteRange"])
			expect([...coreBytes(rpc, [...len(1, "k"), ...len(2, "")])]).toEqual(
				len(1, k),
			);
		expect([
			...coreBytes("Watch/Watch", len(1, [...len(2, ""), ...len(1, "k")])),
		]).toEqual(len(1, len(1, k)));
		expect([
			...coreBytes("KV/Txn", len(1, [...len(64, ""), ...len(3, "k")])),
		]).toEqual(len(1, len(3, k)));
	});
});

describe("other fields of requests", () => {
	test("are copied as they are", () => {
		const range = {
			key: k,
			limit: "500",
			revision: "9223372036854775807",
			sort_order: 2,
			sort_target: 4,
			serializable: true,
			keys_only: true,
			count_only: true,
			min_mod_revision: "-1",
			max_mod_revision: "128",
			min_create_revision: "16384",
			max_create_revision: "-9223372036854775808",
		};
		expect(atCore("KV/Range", { ...range, key: "k" })).toEqual(range);
		const put = {
			key: k,
			value: "\0\xff".repeat(30_000),
			prev_kv: true,
			ignore_value: true,
			ignore_lease: true,
		};
		expect(atCore("KV/Put", { ...put, key: "k" })).toEqual(put);
		expect(atCore("KV/DeleteRange", { key: "k", prev_kv: true })).toEqual({
			key: k,
			prev_kv: true,
		});
		const create = {
			key: k,
			start_revision: "77",
			progress_notify: true,
			filters: [0, 1, 0],
			prev_kv: true,
			watch_id: "-3",
			fragment: true,
		};
		expect(
			atCore("Watch/Watch", { create_request: { ...create, key: "k" } }),
		).toEqual({ create_request: create });
		for (const request of [
			{ cancel_request: { watch_id: "12" } },
			{ progress_request: {} },
		])
			expect(atCore("Watch/Watch", request)).toEqual(request);
		expect(atCore("LeaseTimeToLive", { ID: "0", keys: true })).toEqual({
			keys: true,
		});
	});

	test("may be in any order, and may be defaults", () => {
		expect([
			...coreBytes("KV/Range", [
				...int(7, 0),
				...int(13, -1),
				...len(2, "z"),
				...int(5, 0),
				...len(1, "k"),
				...int(3, 0),
			]),
		]).toEqual([
			...int(7, 0),
			...int(13, -1),
			...len(2, `${PREFIX}z`),
			...int(5, 0),
			...len(1, k),
			...int(3, 0),
		]);
	});

	test("are none at all in some messages", () => {
		for (const rpc of [
			"LeaseLeases",
			"Maintenance/Status",
			"LeaseRevoke",
			"LeaseKeepAlive",
			"KV/Txn",
		])
			expect([...coreBytes(rpc, [])]).toEqual([]);
		expect(refusal(() => coreBytes("Watch/Watch", []))).toBe(
			"3: etcdproxy: WatchRequest: neither creates nor cancels a watch, nor asks for progress",
		);
		for (const branch of [2, 3])
			expect(refusal(() => coreBytes("KV/Txn", len(branch, [])))).toBe(
				"3: etcdserver: key not found",
			);
	});
});

describe("leases of requests", () => {
	const leases: [string, string | undefined][] = [
		["0", undefined],
		["1", coreLease(1)],
		["127", coreLease(127)],
		["128", coreLease(128)],
		["16384", coreLease(16384)],
		[String(LAST_LEASE), coreLease(LAST_LEASE)],
		[String(LAST_LEASE + 1n), NOBODYS],
		[String(LAST_LEASE + 2n), NOBODYS],
		["-1", NOBODYS],
		["9223372036854775807", NOBODYS],
		["-9223372036854775808", NOBODYS],
		// Another's, or one's own as it is in the core.
		[coreLease(1), NOBODYS],
	];

	test("are the tenant's own, or one that does not exist", () => {
		for (const [id, expected] of leases) {
			const ID = expected && { ID: expected };
			for (const rpc of ["LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive"])
				expect(atCore(rpc, { ID: id })).toEqual({ ...ID });
			const lease = expected && { lease: expected };
			expect(atCore("KV/Put", { key: "k", lease: id })).toEqual({
				key: k,
				...lease,
			});
		}
	});

	test("compare as the tenant's compare", () => {
		const compared = (lease: string) =>
			atCore("KV/Txn", { compare: [{ key: "k", target: 4, lease }] });
		for (const [id, expected = "0"] of leases) {
			const lease = id.startsWith("-") ? id : expected;
			expect(compared(id)).toEqual({
				compare: [{ key: k, target: 4, lease }],
			});
		}
	});

	test("are drawn for a LeaseGrant without one", () => {
		const ID = coreLease(DRAWN);
		expect(atCore("LeaseGrant", { TTL: "60" })).toEqual({ TTL: "60", ID });
		expect(atCore("LeaseGrant", {})).toEqual({ ID });
		for (const bytes of [
			[...int(1, 60), ...int(2, 0)],
			[...int(2, 0), ...int(1, 60)],
		])
			expect(
				protobuf.decode(
					"etcdserverpb.LeaseGrantRequest",
					coreBytes("LeaseGrant", bytes),
				),
			).toEqual({ TTL: "60", ID });
	});

	test("are those that a LeaseGrant names, if it may", () => {
		for (const ID of ["1", "5000", String(LEASE_MAX)])
			expect(atCore("LeaseGrant", { ID })).toEqual({
				ID: coreLease(BigInt(ID)),
			});
		for (const ID of [String(LEASE_MAX + 1), "-1", coreLease(1)])
			expect(refusal(() => atCore("LeaseGrant", { ID }))).toBe(
				"3: etcdproxy: LeaseGrantRequest.ID: lease ids are 1 to 2097150 here; leave it out, and one is picked",
			);
	});

	test("of two tenants have nothing in common", () => {
		const other = tenant("/other/", URL);
		const own = toCore(
			served("LeaseRevoke"),
			other,
			Uint8Array.from(int(1, 5)),
			0,
			2,
			0,
		);
		const { ID } = protobuf.decode(
			"etcdserverpb.LeaseRevokeRequest",
			own.subarray(5),
		);
		expect(BigInt(String(ID)) & (2n ** 21n - 1n)).toBe(5n);
		expect(BigInt(String(ID)) >> 62n).toBe(1n);
		expect(BigInt(String(ID)) >> 21n).not.toBe(BigInt(coreLease(5)) >> 21n);
	});
});

const HEADER = {
	cluster_id: "14841639068965178418",
	member_id: "10276657743932975437",
	revision: "123456",
	raft_term: "7",
};
const OWN_HEADER = { ...HEADER, cluster_id: CLUSTER_ID, member_id: MEMBER_ID };
const kv = (key: string, lease?: string): Plain => ({
	key,
	create_revision: "5",
	mod_revision: "123456",
	version: "3",
	value: "v".repeat(300),
	...(lease && { lease }),
});

describe("responses", () => {
	test("have keys without the prefix, and a header of the tenant's own", () => {
		const range = (header: Plain, at: string): Plain => ({
			header,
			kvs: [kv(`${at}a`), kv(`${at}${PREFIX}`), kv(`${at}\0`)],
			more: true,
			count: "17",
		});
		const [from, to] = [range(HEADER, PREFIX), range(OWN_HEADER, "")];
		expect(atTenant("KV/Range", from)).toEqual(to);
		expect(atTenant("KV/RangeStream", { range_response: from })).toEqual({
			range_response: to,
		});
		expect(atTenant("KV/RangeStream", {})).toEqual({});
		expect(
			atTenant("KV/Put", { header: HEADER, prev_kv: kv(`${PREFIX}a`) }),
		).toEqual({ header: OWN_HEADER, prev_kv: kv("a") });
		expect(
			atTenant("KV/DeleteRange", {
				header: HEADER,
				deleted: "2",
				prev_kvs: [kv(`${PREFIX}a`), kv(`${PREFIX}b`)],
			}),
		).toEqual({
			header: OWN_HEADER,
			deleted: "2",
			prev_kvs: [kv("a"), kv("b")],
		});
	});

	test("of a Txn have all of them so, and no more of a header than there was", () => {
		const txn = (header: Plain, at: string): Plain => ({
			header,
			succeeded: true,
			responses: [
				{ response_put: { header: { revision: "9" } } },
				{ response_put: { header, prev_kv: kv(`${at}a`) } },
				{ response_range: { header, kvs: [kv(`${at}a`)], count: "1" } },
				{ response_delete_range: { deleted: "1", prev_kvs: [kv(`${at}b`)] } },
				{},
				{
					response_txn: {
						header: { revision: "9" },
						responses: [{ response_range: { kvs: [kv(`${at}c`)] } }],
					},
				},
			],
		});
		expect(atTenant("KV/Txn", txn(HEADER, PREFIX))).toEqual(
			txn(OWN_HEADER, ""),
		);
	});

	test("of a watch have them so in every event", () => {
		const response = (header: Plain, at: string): Plain => ({
			header,
			watch_id: "-1",
			created: true,
			canceled: true,
			compact_revision: "8",
			cancel_reason: "etcdserver: mvcc: required revision has been compacted",
			fragment: true,
			events: [
				{ kv: kv(`${at}a`), prev_kv: kv(`${at}a`) },
				{ type: 1, kv: { key: `${at}b`, mod_revision: "7" } },
			],
		});
		expect(atTenant("Watch/Watch", response(HEADER, PREFIX))).toEqual(
			response(OWN_HEADER, ""),
		);
	});

	test("have the tenant's leases; a key's from before the gateway is left out", () => {
		const range = (lease: string) =>
			atTenant("KV/Range", { kvs: [kv(k, lease)] });
		for (const id of ["1", "127", "128", "16384", String(LAST_LEASE)])
			expect(range(coreLease(BigInt(id)))).toEqual({ kvs: [kv("k", id)] });
		const tag = 2n ** 21n;
		for (const lease of [
			"1",
			"-1",
			coreLease(0),
			String(BigInt(coreLease(1)) + tag),
			String(BigInt(coreLease(1)) - tag),
			String(BigInt(coreLease(1)) - 2n ** 62n),
			String(BigInt(coreLease(1)) - 2n ** 63n),
			String(BigInt(coreLease(640)) >> 7n),
			String(BigInt(coreLease(640)) >> 14n),
			"7587880234087023874",
		])
			expect(range(lease)).toEqual({ kvs: [kv("k")] });
	});

	test("about a lease are about the tenant's", () => {
		for (const [rpc, rest] of [
			["LeaseGrant", { TTL: "60", error: "e" }],
			["LeaseKeepAlive", { TTL: "60" }],
			["LeaseTimeToLive", { TTL: "-1", grantedTTL: "60" }],
		] as const) {
			const answer = (header: Plain, ID: string) => ({ header, ID, ...rest });
			expect(atTenant(rpc, answer(HEADER, coreLease(9)))).toEqual(
				answer(OWN_HEADER, "9"),
			);
			expect(atTenant(rpc, rest)).toEqual(rest);
			for (const ID of ["1", "-1", coreLease(0), "7587880234087023874"])
				expect(refusal(() => atTenant(rpc, { ID }))).toBe(
					`13: etcdproxy: ${rpc}Response.ID: the lease is another's`,
				);
		}
		expect(atTenant("LeaseRevoke", { header: HEADER })).toEqual({
			header: OWN_HEADER,
		});
	});

	test("list the tenant's leases and their keys, and not those of others", () => {
		expect(
			atTenant("LeaseLeases", {
				header: HEADER,
				leases: [
					{ ID: "7587880234087023874" },
					{ ID: coreLease(3) },
					{},
					{ ID: "-1" },
					{ ID: coreLease(LAST_LEASE) },
					{ ID: "5" },
				],
			}),
		).toEqual({
			header: OWN_HEADER,
			leases: [{ ID: "3" }, { ID: String(LAST_LEASE) }],
		});
		expect(
			atTenant("LeaseTimeToLive", {
				keys: ["/other/a", k, PREFIX, "", `${PREFIX}l`, PREFIX_END],
			}),
		).toEqual({ keys: ["k", "l"] });
	});

	test("tell of the core its version, and nothing of its size and members", () => {
		expect(
			atTenant("Maintenance/Status", {
				header: HEADER,
				version: "3.7.3",
				dbSize: "20480",
				leader: HEADER.member_id,
				raftIndex: "77",
				raftTerm: "7",
				raftAppliedIndex: "77",
				errors: ["memberID:1 alarm:NOSPACE"],
				dbSizeInUse: "16384",
				isLearner: true,
				storageVersion: "3.7.0",
				dbSizeQuota: "2147483648",
				downgradeInfo: { enabled: true, targetVersion: "3.6.0" },
			}),
		).toEqual({
			header: OWN_HEADER,
			version: "3.7.3",
			// By these etcdctl divides.
			dbSize: "1",
			dbSizeInUse: "1",
			leader: MEMBER_ID,
			raftTerm: "7",
			storageVersion: "3.7.0",
		});
	});

	test.each([
		["another's", "/other/k"],
		["the bare prefix", PREFIX],
		["empty", ""],
		["shorter than the prefix", "/samp"],
		["in its last byte another's", "/sample0k"],
	])("with a key that is %s are not passed on", (_, key) => {
		const error = `13: etcdproxy: KeyValue.key: ${key === "" ? "" : "the key is another's"}`;
		const responses: [string, Plain][] = [
			["KV/Range", { kvs: [kv(k), kv(key)] }],
			["KV/RangeStream", { range_response: { kvs: [kv(key)] } }],
			["KV/Put", { prev_kv: kv(key) }],
			["KV/DeleteRange", { prev_kvs: [kv(key)] }],
			["KV/Txn", { responses: [{ response_range: { kvs: [kv(key)] } }] }],
			["KV/Txn", { responses: [{ response_put: { prev_kv: kv(key) } }] }],
			["Watch/Watch", { events: [{ kv: kv(key) }] }],
			["Watch/Watch", { events: [{ kv: kv(k), prev_kv: kv(key) }] }],
		];
		for (const [rpc, response] of responses)
			expect(refusal(() => atTenant(rpc, response))).toStartWith(error);
	});

	test("lose what a later etcd says beyond the table", () => {
		const news = [
			...int(99, 5),
			...len(100, "news"),
			...[...tag(101, 1), 1, 2, 3, 4, 5, 6, 7, 8],
			...[...tag(2 ** 29 - 1, 5), 1, 2, 3, 4],
		];
		const known = [...len(1, k), ...len(5, "value")];
		const bytes = [
			...news,
			...len(1, [...int(3, 7), ...news]),
			...len(2, [...news, ...known, ...news]),
			...news,
		];
		expect([...tenantBytes("KV/Range", bytes)]).toEqual([
			...len(1, int(3, 7)),
			...len(2, [...len(1, "k"), ...len(5, "value")]),
		]);
	});

	test("that get longer are written elsewhere, and as well", () => {
		const header = { cluster_id: "1", member_id: "1", revision: "1" };
		const response = {
			header,
			responses: Array.from({ length: 40 }, () => ({
				response_range: { header, kvs: [kv(k, coreLease(1))] },
			})),
		};
		const own = { cluster_id: CLUSTER_ID, member_id: MEMBER_ID, revision: "1" };
		expect(atTenant("KV/Txn", response)).toEqual({
			header: own,
			responses: response.responses.map(() => ({
				response_range: { header: own, kvs: [kv("k", "1")] },
			})),
		});
	});

	test("are rewritten where they are", () => {
		const bytes = protobuf.encode("etcdserverpb.RangeResponse", {
			header: HEADER,
			kvs: Array.from({ length: 20_000 }, (_, i) => kv(`${PREFIX}${i}`)),
		});
		const { buffer, start, end } = surrounded(bytes);
		const out = toTenant(served("KV/Range"), sample, buffer, start, end);
		expect(out.buffer).toBe(buffer.buffer);
		expect(out.byteOffset).toBe(start - 5);
		expect(
			protobuf.decode("etcdserverpb.RangeResponse", unframed(out)),
		).toEqual({
			header: OWN_HEADER,
			kvs: Array.from({ length: 20_000 }, (_, i) => kv(String(i))),
		});
	});
});

describe("policy", () => {
	const describedMethods = () =>
		protobuf.description.services.flatMap(({ methods }) => methods);

	test("there is a decision on every RPC of etcd, and on no other", () => {
		expect([...methods.keys()].sort()).toEqual(
			describedMethods()
				.map(({ path }) => path)
				.sort(),
		);
		for (const [path, method] of methods) expect(method.path).toBe(path);
	});

	test("what is served is of etcd's kind", () => {
		for (const described of describedMethods()) {
			const method = methods.get(described.path);
			if (!method || "refused" in method) continue;
			const { clientStreaming, serverStreaming } = described;
			const kind = clientStreaming
				? "bidi"
				: serverStreaming
					? "serverStream"
					: "unary";
			expect([method.path, method.kind]).toEqual([described.path, kind]);
			expect(clientStreaming && !serverStreaming).toBe(false);
		}
	});

	test("the table has every field of every message that is served, as etcd has it", () => {
		const compared = new Set<string>();
		type Message = ServedMethod["request"];
		const compare = (message: Message, type: string) => {
			expect(type.split(".")[1]).toBe(message.name);
			if (compared.has(type)) return;
			compared.add(type);
			const described = protobuf.fields(type);
			expect([
				type,
				message.fields.map(({ name, number, type, repeated, oneof }) => ({
					name,
					number,
					type,
					cardinality: repeated ? "repeated" : "optional",
					oneof,
				})),
			]).toEqual([
				type,
				described.map(({ name, number, type, cardinality, oneof }) => ({
					name,
					number,
					type: type as Type,
					cardinality,
					oneof,
				})),
			]);
			for (const [index, field] of message.fields.entries()) {
				const { of } = field;
				const nested = typeof of === "function" ? of() : of;
				const { typeName } = described[index] ?? {};
				if (nested && typeName) compare(nested, typeName);
				else
					expect([type, field.name, field.type === "message"]).toEqual([
						type,
						field.name,
						field.rule === Rule.dropped && field.type === "message",
					]);
			}
		};
		for (const { path, input, output } of describedMethods()) {
			const method = methods.get(path);
			if (!method || "refused" in method) continue;
			compare(method.request, input);
			compare(method.response, output);
		}
		expect(compared.size).toBe(37);
	});

	test("every field that is bytes or a lease has a rule of its own, but for values", () => {
		const copied = [...methods.values()].flatMap((method) =>
			"refused" in method
				? []
				: [method.request, method.response].flatMap((message) =>
						reachable(message).flatMap(({ name, fields }) =>
							fields
								.filter(
									({ rule, type, name }) =>
										(rule === Rule.bytes && type === "bytes") ||
										(rule === Rule.varint && /^(ID|lease)$/i.test(name)),
								)
								.map((field) => `${name}.${field.name}`),
						),
					),
		);
		expect([...new Set(copied)].sort()).toEqual([
			"Compare.value",
			"KeyValue.value",
			"PutRequest.value",
		]);
	});

	test("what is not the tenant's is refused, with what to do instead", () => {
		const refused = new Map<number, string[]>();
		for (const method of methods.values()) {
			if (!("refused" in method)) continue;
			const name = method.path.split("/").at(-1) ?? "";
			expect(method.refused).toStartWith(`etcdproxy: ${name}: `);
			refused.set(method.code, [...(refused.get(method.code) ?? []), name]);
		}
		expect(refused.get(Code.PERMISSION_DENIED)?.sort()).toEqual(
			[
				"Snapshot Hash HashKV Alarm Defragment MoveLeader Downgrade",
				"MemberAdd MemberRemove MemberUpdate MemberPromote",
				"AuthEnable AuthDisable AuthStatus Authenticate UserAdd UserGet UserList UserDelete UserChangePassword UserGrantRole UserRevokeRole",
				"RoleAdd RoleGet RoleList RoleDelete RoleGrantPermission RoleRevokePermission",
			]
				.flatMap((names) => names.split(" "))
				.sort(),
		);
		expect(refused.get(Code.UNIMPLEMENTED)?.sort()).toEqual(
			"Campaign Proclaim Leader Observe Resign Lock Unlock Check List Watch"
				.split(" ")
				.sort(),
		);
		expect(UNKNOWN_METHOD.code).toBe(Code.UNIMPLEMENTED);
	});

	test("Compact and MemberList cost the core a read of nothing, of the tenant's", () => {
		const instead = [...methods.values()].filter(
			(method: Method) => "instead" in method,
		);
		expect(instead.map(({ path }) => path)).toEqual([
			"/etcdserverpb.KV/Compact",
			"/etcdserverpb.Cluster/MemberList",
		]);
		for (const rpc of ["KV/Compact", "MemberList"]) {
			expect(served(rpc).instead?.path).toBe("/etcdserverpb.KV/Range");
			const bytes = coreBytes(rpc, int(1, 1));
			expect(protobuf.decode("etcdserverpb.RangeRequest", bytes)).toEqual({
				key: `${PREFIX}\0`,
				serializable: true,
				count_only: true,
			});
		}
		expect(refusal(() => coreBytes("MemberList", int(2, 1)))).toBe(
			"3: etcdproxy: MemberListRequest: field 2 is not known to this gateway",
		);
	});

	test("of the answer to that only the header is passed on, and one member", () => {
		const answer = protobuf.encode("etcdserverpb.RangeResponse", {
			header: HEADER,
			kvs: [kv(`${PREFIX}\0`)],
			count: "1",
			more: true,
		});
		const compact = tenantBytes("KV/Compact", answer);
		expect(protobuf.decode("etcdserverpb.CompactionResponse", compact)).toEqual(
			{
				header: OWN_HEADER,
			},
		);
		expect([...compact]).toEqual([
			...protobuf.encode("etcdserverpb.CompactionResponse", {
				header: OWN_HEADER,
			}),
		]);
		const members = tenantBytes("MemberList", answer);
		expect(protobuf.decode("etcdserverpb.MemberListResponse", members)).toEqual(
			{
				header: OWN_HEADER,
				members: [{ ID: MEMBER_ID, name: "etcdproxy", clientURLs: [URL] }],
			},
		);
	});

	test("a watch that is asked for counts one, one that ends or fails counts one less", () => {
		const change = (
			direction: "request" | "response",
			message: Plain,
		): number => {
			const { input, output } = types(protobuf, "Watch/Watch");
			const type = direction === "request" ? input : output;
			const { buffer, start, end } = surrounded(protobuf.encode(type, message));
			return watchChange(direction, buffer, start, end);
		};
		expect(change("request", { create_request: {} })).toBe(1);
		expect(change("request", { create_request: { key: "k" } })).toBe(1);
		expect(change("request", { cancel_request: { watch_id: "1" } })).toBe(0);
		expect(change("request", { progress_request: {} })).toBe(0);
		expect(change("request", {})).toBe(0);
		const event = { kv: kv(k) };
		expect(change("response", { header: HEADER, canceled: true })).toBe(-1);
		expect(
			change("response", { created: true, canceled: true, watch_id: "-1" }),
		).toBe(-1);
		expect(change("response", { header: HEADER, created: true })).toBe(0);
		// It can still be cancelled, which is told again.
		expect(change("response", { canceled: true, compact_revision: "8" })).toBe(
			0,
		);
		// Compacted: etcd says so again when the client cancels it.
		expect(change("response", { canceled: true, compact_revision: "9" })).toBe(
			0,
		);
		expect(change("response", { events: [event], fragment: true })).toBe(0);
		const late = Uint8Array.from([...len(11, len(2, k)), ...int(4, 1)]);
		expect(watchChange("response", late, 0, late.length)).toBe(-1);
		const not = Uint8Array.from(int(4, 0));
		expect(watchChange("response", not, 0, not.length)).toBe(0);
		expect(
			refusal(() => watchChange("response", Uint8Array.from([0x80]), 0, 1)),
		).toBe("13: etcdproxy: WatchResponse: ends within a varint");
	});

	test("a tenant needs a prefix", () => {
		expect(() => tenant("", URL)).toThrow(RangeError);
		const long = tenant(`/${"x".repeat(300)}/`, URL);
		const out = toCore(
			served("KV/Range"),
			long,
			Uint8Array.from(len(1, "k")),
			0,
			3,
			0,
		);
		expect(protobuf.decode("etcdserverpb.RangeRequest", unframed(out))).toEqual(
			{ key: `/${"x".repeat(300)}/k` },
		);
	});

	test("the gateway itself asks for one key", () => {
		expect(
			protobuf.decode(
				"etcdserverpb.RangeRequest",
				rangeRequest("/sample/health"),
			),
		).toEqual({ key: "/sample/health" });
	});
});

/** A message and all within it. */
function reachable(
	message: ServedMethod["request"],
	found = new Set<ServedMethod["request"]>(),
): ServedMethod["request"][] {
	if (!found.has(message)) {
		found.add(message);
		for (const { of } of message.fields)
			if (of) reachable(typeof of === "function" ? of() : of, found);
	}
	return [...found];
}
