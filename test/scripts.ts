/**
 * Scripts of operations on an etcd, as differential.ts runs them: any that there are. Revisions and leases are named, since
 * nobody knows them beforehand.
 */
import fc from "fast-check";
import { PREFIX, PREFIX_END } from "./etcdmodel.ts";
import type { Metadata } from "./grpcclient.ts";
import type { Plain, Value } from "./protobuf.ts";

/** The etcds', so that little is already much. */
export const MAX_REQUEST_BYTES = 16_384;
const LARGE = "l".repeat(6_000);
export const TOO_LARGE = "t".repeat(MAX_REQUEST_BYTES + 1);

export type Op =
	/** The same on both sides. */
	| { op: "call"; rpc: string; request: Plain; metadata?: Metadata }
	/** A lease, to be named "#slot"; without an ID, it is picked. */
	| { op: "grant"; slot: string; TTL: string; ID?: string }
	| { op: "keepAlive"; leases: string[] }
	/** At the core itself, outside the prefix. */
	| { op: "noise"; keys: string[] }
	/** By each etcd's operator. */
	| { op: "compact"; revision: string }
	| { op: "watch"; stream: number; request: Plain }
	| { op: "cancel"; stream: number; id: string }
	/** Until all watches of a stream have seen everything. */
	| { op: "sync"; stream: number };

export interface Script {
	/** Whether, and when, others write to the core, outside the prefix. */
	noise: "none" | "between operations" | "all the time";
	ops: Op[];
}

/** Keys of the core that are not the tenant's, each as near as can be. */
export const OUTSIDE = [
	PREFIX,
	PREFIX.slice(0, -1),
	PREFIX_END,
	`${PREFIX_END}a`,
	`${PREFIX.slice(0, -1)}.`,
	`${PREFIX.slice(0, -1)}-/a`,
	`${PREFIX.slice(0, -1)}\0`,
	"\0",
	"a",
	"\xff\xff",
	"/other/a",
];

const key = fc.oneof(
	{ weight: 12, arbitrary: fc.constantFrom("a", "b", "c", "ab") },
	{
		weight: 6,
		arbitrary: fc.constantFrom(
			...["\0", "\0\0", "\x01", "a\0", "/", "b/c", "\xfe", "\xff", "\xff\xff"],
			...[PREFIX, `${PREFIX}a`, PREFIX.slice(0, -1), PREFIX_END],
		),
	},
);
/** Now and then there is none. */
const anyKey = fc.oneof(
	{ weight: 40, arbitrary: key },
	{ weight: 1, arbitrary: fc.constant("") },
);
const end = fc.oneof(
	{ weight: 3, arbitrary: fc.constant("\0") },
	{ weight: 1, arbitrary: fc.constant("") },
	{ weight: 3, arbitrary: fc.constantFrom("b", "c", "d", "a\0", "ac") },
	{ weight: 2, arbitrary: key },
);
const value = fc.oneof(
	{ weight: 20, arbitrary: fc.constantFrom("", "v", "w", "\0\xff") },
	{ weight: 2, arbitrary: fc.constant(LARGE) },
	{ weight: 1, arbitrary: fc.constant(TOO_LARGE) },
);
const write = fc.nat({ max: 9 }).map((write) => `@${write}`);
const revision = fc.oneof(
	{ weight: 8, arbitrary: write },
	{ weight: 1, arbitrary: fc.constantFrom("0", "-1", "next", "far", "1") },
);
/** Anything that cannot be a tenant's. */
const outside = fc.constantFrom(
	...["-1", "2097152", "4611686018427387904", "9223372036854775807"],
	"-9223372036854775808",
);
const lease = (slots: string[]) =>
	fc.oneof(
		{ weight: 12, arbitrary: fc.constantFrom(...slots.map((s) => `#${s}`)) },
		{ weight: 1, arbitrary: fc.constantFrom("0", "2097151", "77") },
		{ weight: 1, arbitrary: outside },
	);
const flag = fc.constant(true);

/** Some of the fields, each in one of so many messages. */
function some(
	fields: Record<string, [oneIn: number, value: fc.Arbitrary<Value>]>,
): fc.Arbitrary<Plain> {
	const shape: Record<string, fc.Arbitrary<Value | undefined>> = {};
	for (const [name, [oneIn, value]] of Object.entries(fields))
		shape[name] = fc.oneof(
			{ weight: oneIn - 1, arbitrary: fc.constant(undefined) },
			{ weight: 1, arbitrary: value },
		);
	return fc.record(shape).map((record) => {
		const plain: Plain = {};
		for (const [name, value] of Object.entries(record))
			if (value !== undefined) plain[name] = value;
		return plain;
	});
}

const range = some({
	key: [1, anyKey],
	range_end: [2, end],
	limit: [4, fc.constantFrom("1", "2", "3", "100", "-1")],
	revision: [4, revision],
	sort_order: [3, fc.constantFrom(0, 1, 2, 2, 1, 2, 1, 2, 3)],
	sort_target: [3, fc.constantFrom(0, 1, 2, 3, 4, 1, 2, 3, 4, 5)],
	serializable: [4, flag],
	keys_only: [5, flag],
	count_only: [5, flag],
	min_mod_revision: [8, revision],
	max_mod_revision: [8, revision],
	min_create_revision: [8, revision],
	max_create_revision: [8, revision],
});
/** What RangeStream takes. */
const streamed = some({
	key: [1, anyKey],
	range_end: [1, end],
	limit: [3, fc.constantFrom("1", "2", "3", "100", "-1")],
	revision: [4, revision],
	sort_order: [9, fc.constantFrom(0, 1, 2)],
	serializable: [4, flag],
	keys_only: [5, flag],
	count_only: [5, flag],
	max_mod_revision: [20, revision],
});
const put = (slots: string[]) =>
	fc.oneof(
		{
			weight: 5,
			arbitrary: some({
				key: [1, anyKey],
				value: [1, value],
				lease: [3, lease(slots)],
				prev_kv: [3, flag],
			}),
		},
		{
			weight: 1,
			arbitrary: some({
				key: [1, anyKey],
				value: [3, value],
				lease: [3, lease(slots)],
				prev_kv: [3, flag],
				ignore_value: [2, flag],
				ignore_lease: [2, flag],
			}),
		},
	);
const deletion = some({
	key: [1, anyKey],
	range_end: [2, end],
	prev_kv: [2, flag],
});

const COMPARED = [
	"version",
	"create_revision",
	"mod_revision",
	"value",
	"lease",
];

/** @param picked leases have ids that each side has picked: which is greater means nothing */
const compare = (slots: string[], picked: boolean) =>
	fc.nat({ max: 4 }).chain((target) =>
		fc
			.record({
				target: fc.oneof(
					{ weight: 20, arbitrary: fc.constant(target) },
					{ weight: 1, arbitrary: fc.nat({ max: 5 }) },
				),
				result:
					picked && target === 4
						? fc.constantFrom(0, 3)
						: fc.constantFrom(0, 1, 2, 3, 0, 1, 2, 3, 4),
				key: anyKey,
				operand: [
					fc.constantFrom("0", "1", "2", "-1"),
					revision,
					revision,
					fc.constantFrom("", "v", "w", "\0\xff"),
					lease(slots),
				][target] as fc.Arbitrary<Value>,
				end: fc.option(end, { freq: 3, nil: undefined }),
			})
			.map(({ target: compared, result, key, operand, end }): Plain => {
				// Ids that were picked are in no order, whatever else is compared.
				const order = picked && compared === 4 ? 3 * (result % 2) : result;
				return {
					target: compared,
					result: order,
					key,
					[COMPARED[target] as string]: operand,
					...(end !== undefined && { range_end: end }),
				};
			}),
	);

function txn(slots: string[], picked: boolean, depth = 0): fc.Arbitrary<Plain> {
	const as = (name: string, arbitrary: fc.Arbitrary<Plain>) =>
		arbitrary.map((request): Plain => ({ [name]: request }));
	const one: fc.Arbitrary<Plain> = fc.oneof(
		{ weight: 6, arbitrary: as("request_range", range) },
		{ weight: 6, arbitrary: as("request_put", put(slots)) },
		{ weight: 3, arbitrary: as("request_delete_range", deletion) },
		{
			weight: depth < 3 ? 5 : 0,
			arbitrary:
				depth < 3
					? as("request_txn", txn(slots, picked, depth + 1))
					: fc.constant({}),
		},
	);
	const operation = fc.oneof(
		{ weight: 100, arbitrary: one },
		{ weight: 1, arbitrary: fc.constant<Plain>({}) },
	);
	return some({
		compare: [2, fc.array(compare(slots, picked), { maxLength: 3 })],
		success: [1, fc.array(operation, { maxLength: 3 })],
		failure: [2, fc.array(operation, { maxLength: 3 })],
	}).map((request) =>
		hasPut(request) ? withoutOpenDeletes(request) : request,
	);
}

const hasPut = (value: Value): boolean =>
	typeof value === "object" &&
	("request_put" in value || Object.values(value).some(hasPut));

/** etcd does not see that a deletion without an end overlaps a put; the gateway gives it one: a known difference. */
const withoutOpenDeletes = (request: Plain): Plain =>
	JSON.parse(JSON.stringify(request), (name, value) =>
		name === "request_delete_range" && value.range_end === "\0"
			? { ...value, range_end: "\xff\xff\xff" }
			: value,
	);

const EXPLICIT = ["e1", "e2", "e2097150"];
const PICKED = ["p1", "p2"];
const TTL = fc.constantFrom("60", "100", "1000", "9000000000", "9000000001");

const metadata = fc.constantFrom<Metadata[]>(
	...[{}, {}, {}, { hasleader: "true" }, { "grpc-timeout": "20S" }],
	{ "grpc-timeout": "9000000u", authorization: "none" },
);

const call = (
	rpc: string,
	request: fc.Arbitrary<Plain>,
): fc.Arbitrary<Op & { op: "call" }> =>
	fc.record({
		op: fc.constant("call" as const),
		rpc: fc.constant(rpc),
		request,
		metadata,
	});

/** Operations on keys and leases. */
function operation(slots: string[], picked: boolean): fc.Arbitrary<Op> {
	const grant = picked
		? fc.constantFrom(...slots).map((slot) => ({ slot }))
		: fc.constantFrom(...slots).map((slot) => ({ slot, ID: slot.slice(1) }));
	const ID = lease(slots);
	return fc.oneof<fc.WeightedArbitrary<Op>[]>(
		{ weight: 20, arbitrary: call("KV/Put", put(slots)) },
		{ weight: 14, arbitrary: call("KV/Range", range) },
		{ weight: 5, arbitrary: call("KV/RangeStream", streamed) },
		{ weight: 5, arbitrary: call("KV/DeleteRange", deletion) },
		{ weight: 16, arbitrary: call("KV/Txn", txn(slots, picked)) },
		{
			weight: 5,
			arbitrary: fc
				.tuple(grant, TTL)
				.map(([lease, TTL]): Op => ({ op: "grant", TTL, ...lease })),
		},
		{ weight: 2, arbitrary: call("Lease/LeaseRevoke", some({ ID: [1, ID] })) },
		{
			weight: 2,
			arbitrary: call(
				"Lease/LeaseTimeToLive",
				some({ ID: [1, ID], keys: [2, flag] }),
			),
		},
		{ weight: 1, arbitrary: call("Lease/LeaseLeases", fc.constant({})) },
		{
			weight: 1,
			arbitrary: fc
				.array(ID, { minLength: 1, maxLength: 3 })
				.map((leases): Op => ({ op: "keepAlive", leases })),
		},
		{
			weight: 3,
			arbitrary: fc
				.subarray(OUTSIDE, { minLength: 1, maxLength: 3 })
				.map((keys): Op => ({ op: "noise", keys })),
		},
		{
			weight: 2,
			arbitrary: write.map((revision): Op => ({ op: "compact", revision })),
		},
	);
}

/** Streams of watches; those that begin in the far future are on one of their own. */
const FUTURE = 9;

const watching: fc.Arbitrary<Op> = fc.oneof<fc.WeightedArbitrary<Op>[]>(
	{
		weight: 8,
		arbitrary: fc
			.tuple(
				fc.nat({ max: 1 }),
				some({
					key: [1, anyKey],
					range_end: [2, end],
					start_revision: [
						3,
						fc.oneof(
							{ weight: 5, arbitrary: write },
							{ weight: 1, arbitrary: fc.constantFrom("next", "far", "-1") },
						),
					],
					progress_notify: [3, flag],
					filters: [
						3,
						fc.constantFrom<number[][]>([0], [1], [0, 1], [], [1, 1], [7]),
					],
					prev_kv: [2, flag],
					watch_id: [3, fc.constantFrom("1", "2", "0", "-5", "4000000000")],
					fragment: [3, flag],
				}),
			)
			.map(
				([stream, request]): Op => ({
					op: "watch",
					stream: request.start_revision === "far" ? FUTURE : stream,
					request,
				}),
			),
	},
	{
		weight: 3,
		arbitrary: fc
			.tuple(fc.nat({ max: 1 }), fc.constantFrom("0", "1", "2", "-5", "77"))
			.map(([stream, id]): Op => ({ op: "cancel", stream, id })),
	},
	{
		weight: 1,
		arbitrary: fc.nat({ max: 1 }).map((stream): Op => ({ op: "sync", stream })),
	},
);

/** Something to work on. */
const beginning = (slots: string[], picked: boolean): Op[] => [
	...slots.slice(0, 2).map(
		(slot): Op => ({
			op: "grant",
			slot,
			TTL: "600",
			...(!picked && { ID: slot.slice(1) }),
		}),
	),
	...["a", "c", "b", "ab", "a"].map(
		(key, index): Op => ({
			op: "call",
			rpc: "KV/Put",
			request: {
				key,
				value: "vwv"[index % 3] as string,
				...(index % 2 === 0 && { lease: `#${slots[index % 3 && 1]}` }),
			},
		}),
	),
];

/** Scripts of up to `length` operations. @param watches whether there are some */
export const script = (
	length: number,
	watches: boolean,
): fc.Arbitrary<Script> =>
	fc.boolean().chain((picked) => {
		const slots = picked ? PICKED : EXPLICIT;
		const one = operation(slots, picked);
		const first = beginning(slots, picked);
		const begun = fc.oneof(
			{ withCrossShrink: true },
			{ weight: 1, arbitrary: fc.subarray(first) },
			{ weight: 4, arbitrary: fc.constant(first) },
		);
		const ops = fc.array(
			watches
				? fc.oneof(
						{ weight: 3, arbitrary: one },
						{ weight: 2, arbitrary: watching },
					)
				: one,
			{ minLength: 1, maxLength: length, size: "max" },
		);
		return fc.record({
			noise: fc.constantFrom<Script["noise"][]>(
				"none",
				"between operations",
				"all the time",
			),
			ops: fc.tuple(begun, ops).map(([first, rest]) => [...first, ...rest]),
		});
	});
