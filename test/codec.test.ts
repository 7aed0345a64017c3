import { beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
	completeFields,
	methods,
	partToTenant,
	type ServedMethod,
	Status,
	toTenant,
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
} from "./codec.ts";
import {
	anyMessage,
	foreign,
	PREFIX,
	Refused,
	toCoreModel,
	toTenantModel,
} from "./etcdmodel.ts";
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

let protobuf: Protobuf;
beforeAll(async () => {
	protobuf = await etcdProtobuf();
}, FIRST_BUILD);

const k = `${PREFIX}k`;

describe("a message that is not well-formed", () => {
	const K = len(1, "k");
	const range = (...more: number[]) => coreBytes("KV/Range", [...K, ...more]);
	const padded = (number: number, content: string) => [
		...tag(number, 2),
		...varint(content.length, 1),
		...latin1(content),
	];

	test.each<[string, () => number[], string, string?]>([
		[
			"a padded varint as tag",
			() => [0x8a, 0x00, 1, 65],
			"RangeRequest: a varint is padded with zeros",
		],
		[
			"a padded varint as length",
			() => padded(1, "k"),
			"RangeRequest.key: a varint is padded with zeros",
		],
		[
			"a padded varint as length of what is copied",
			() => [...K, ...padded(2, "v")],
			"PutRequest.value: a varint is padded with zeros",
			"KV/Put",
		],
		[
			"a padded varint as length of a message",
			() => [...tag(1, 2), ...varint(4, 1), 1, ...len(3, "k")],
			"TxnRequest.compare: a varint is padded with zeros",
			"KV/Txn",
		],
		[
			"a padded varint as value",
			() => [...K, ...tag(3, 0), ...varint(500, 1)],
			"RangeRequest.limit: a varint is padded with zeros",
		],
		[
			"a padded zero",
			() => [...K, ...tag(3, 0), 0x80, 0x00],
			"RangeRequest.limit: a varint is padded with zeros",
		],
		[
			"a padded varint as bool",
			() => [...K, ...tag(7, 0), 0x81, 0x00],
			"RangeRequest.serializable: a varint is padded with zeros",
		],
		[
			"a padded varint as enum",
			() => [...K, ...tag(5, 0), 0x81, 0x00],
			"RangeRequest.sort_order: a varint is padded with zeros",
		],
		[
			"a padded varint as lease",
			() => [...K, ...tag(3, 0), 0x81, 0x80, 0x00],
			"PutRequest.lease: a varint is padded with zeros",
			"KV/Put",
		],
		[
			"a varint padded to 10 bytes",
			() => [...K, ...tag(3, 0), ...varint(1, 9)],
			"RangeRequest.limit: a varint is padded with zeros",
		],
		[
			"a varint of 11 bytes",
			() => [...K, ...tag(3, 0), ...varint(-1).fill(0xff), 1],
			"RangeRequest.limit: a varint has over 10 bytes",
		],
		[
			"a varint of 10 bytes with more than 64 bits",
			() => [...K, ...tag(3, 0), ...new Array(9).fill(0xff), 2],
			"RangeRequest.limit: a varint has more than 64 bits",
		],
		[
			"a tag of more than 32 bits, whose low ones are a key's",
			() => [0x8a, 0x80, 0x80, 0x80, 0x10, 1, 65],
			"RangeRequest: a tag or a length has more than 32 bits",
		],
		[
			"a length of more than 32 bits",
			() => [...tag(1, 2), ...varint(2n ** 32n + 1n), 65],
			"RangeRequest.key: a tag or a length has more than 32 bits",
		],
		[
			"a length of 64 bits",
			() => [...tag(1, 2), ...varint(-1), 65],
			"RangeRequest.key: a tag or a length has more than 32 bits",
		],
		["a key twice", () => [...K, ...K], "RangeRequest.key: is there twice"],
		[
			"an end twice",
			() => [...K, ...len(2, "a"), ...len(2, "b")],
			"RangeRequest.range_end: is there twice",
		],
		[
			"a number twice",
			() => [...K, ...int(3, 1), ...int(3, 1)],
			"RangeRequest.limit: is there twice",
		],
		[
			"a value twice",
			() => [...K, ...len(2, "a"), ...len(2, "b")],
			"PutRequest.value: is there twice",
			"KV/Put",
		],
		[
			"the same message of a oneof twice, which other parsers merge",
			() => len(2, [...len(2, K), ...len(2, len(2, "v"))]),
			"RequestOp.request_put: is not the only one of request",
			"KV/Txn",
		],
		[
			"two messages of a oneof",
			() => len(2, [...len(1, K), ...len(2, K)]),
			"RequestOp.request_put: is not the only one of request",
			"KV/Txn",
		],
		[
			"a key hidden in the second message of a oneof",
			() => len(3, [...len(3, K), ...len(4, len(2, len(1, len(9, "x"))))]),
			"RequestOp.request_txn: is not the only one of request",
			"KV/Txn",
		],
		[
			"two requests about watches in one",
			() => [...len(1, K), ...len(2, int(1, 1))],
			"WatchRequest.cancel_request: is not the only one of request_union",
			"Watch/Watch",
		],
		[
			"two values to compare with",
			() => len(1, [...len(3, "k"), ...int(4, 1), ...len(7, "v")]),
			"Compare.value: is not the only one of target_union",
			"KV/Txn",
		],
		[
			"an unknown field",
			() => [...K, ...int(14, 1)],
			"RangeRequest: field 14 is not known to this gateway",
		],
		[
			"an unknown field where others are sparse",
			() => len(1, [...len(3, "k"), ...len(63, "x")]),
			"Compare: field 63 is not known to this gateway",
			"KV/Txn",
		],
		[
			"an unknown field with the greatest number",
			() => [...K, ...len(2 ** 29 - 1, "x")],
			"RangeRequest: field 536870911 is not known to this gateway",
		],
		[
			"a field with too great a number",
			() => [...K, ...len(2 ** 29, "x")],
			"RangeRequest: a tag or a length has more than 32 bits",
		],
		[
			"a field with number 0",
			() => [2, 1, 65],
			"RangeRequest: a field has number 0",
		],
		["a byte 0", () => [...K, 0], "RangeRequest: a field has number 0"],
		[
			"an unknown field of a message that has none",
			() => [...int(1, 1)],
			"StatusRequest: field 1 is not known to this gateway",
			"Maintenance/Status",
		],
		[
			"a key that is a number",
			() => int(1, 65),
			"RangeRequest.key: wire type 0 instead of 2",
		],
		[
			"a number that is bytes",
			() => [...K, ...len(3, "x")],
			"RangeRequest.limit: wire type 2 instead of 0",
		],
		[
			"a message that is a number",
			() => int(2, 5),
			"TxnRequest.success: wire type 0 instead of 2",
			"KV/Txn",
		],
		[
			"a group",
			() => [...tag(1, 3), ...K, ...tag(1, 4)],
			"RangeRequest.key: wire type 3 instead of 2",
		],
		[
			"an unknown group",
			() => [...K, ...tag(20, 3), ...tag(20, 4)],
			"RangeRequest: field 20 is not known to this gateway",
		],
		[
			"the end of a group",
			() => [...K, ...tag(1, 4)],
			"RangeRequest.key: wire type 4 instead of 2",
		],
		[
			"a fixed32",
			() => [...K, ...tag(3, 5), 1, 2, 3, 4],
			"RangeRequest.limit: wire type 5 instead of 0",
		],
		[
			"a fixed64",
			() => [...tag(1, 1), 1, 2, 3, 4, 5, 6, 7, 8],
			"RangeRequest.key: wire type 1 instead of 2",
		],
		[
			"wire type 6",
			() => [...K, ...tag(3, 6)],
			"RangeRequest.limit: wire type 6 instead of 0",
		],
		[
			"wire type 7",
			() => [...K, ...tag(3, 7)],
			"RangeRequest.limit: wire type 7 instead of 0",
		],
		[
			"a length past the end",
			() => [...tag(1, 2), 5, 65],
			"RangeRequest.key: is longer than what it is in",
		],
		[
			"a length past the end of the parent, within the message",
			() => [...tag(1, 2), 4, ...tag(3, 2), 5, 65, 66, ...len(2, len(2, K))],
			"Compare.key: is longer than what it is in",
			"KV/Txn",
		],
		[
			"a varint that goes on after its parent's end",
			() => [...tag(2, 2), 5, ...tag(2, 2), 3, ...tag(4, 0), 0x80, 0x80, 1],
			"PutRequest.prev_kv: ends within a varint",
			"KV/Txn",
		],
		["half a tag", () => [...K, 0x80], "RangeRequest: ends within a varint"],
		[
			"a tag without a length",
			() => tag(1, 2),
			"RangeRequest.key: ends within a varint",
		],
		[
			"a tag without a value",
			() => [...K, ...tag(3, 0)],
			"RangeRequest.limit: ends within a varint",
		],
		[
			"half a length",
			() => [...tag(1, 2), 0x80],
			"RangeRequest.key: ends within a varint",
		],
		[
			"half a value",
			() => [...K, ...tag(3, 0), 0xff, 0xff],
			"RangeRequest.limit: ends within a varint",
		],
		[
			"a bool that is 2",
			() => [...K, ...int(7, 2)],
			"RangeRequest.serializable: a bool is neither 0 nor 1",
		],
		[
			"a bool that is long",
			() => [...K, ...int(7, 2n ** 32n + 1n)],
			"RangeRequest.serializable: a bool is neither 0 nor 1",
		],
		[
			"a negative enum",
			() => [...K, ...int(5, -1)],
			"RangeRequest.sort_order: an enum is negative or has more than 31 bits",
		],
		[
			"an enum of 32 bits",
			() => [...K, ...int(5, 2 ** 31)],
			"RangeRequest.sort_order: an enum is negative or has more than 31 bits",
		],
		[
			"an enum whose low bits are another",
			() => [...K, ...int(6, 2n ** 32n + 1n)],
			"RangeRequest.sort_target: an enum is negative or has more than 31 bits",
		],
		[
			"filters that are not packed",
			() => len(1, [...K, ...int(5, 1)]),
			"WatchCreateRequest.filters: wire type 0 instead of 2",
			"Watch/Watch",
		],
		[
			"filters twice",
			() => len(1, [...len(5, [1]), ...len(5, [0])]),
			"WatchCreateRequest.filters: is there twice",
			"Watch/Watch",
		],
		[
			"filters with a padded varint",
			() => len(1, len(5, [1, 0x80, 0x00])),
			"WatchCreateRequest.filters: a varint is padded with zeros",
			"Watch/Watch",
		],
		[
			"filters that end early",
			() => len(1, [...len(5, [1, 0x80]), 1]),
			"WatchCreateRequest.filters: ends within a varint",
			"Watch/Watch",
		],
		[
			"filters of more than 31 bits",
			() => len(1, len(5, varint(2n ** 32n))),
			"WatchCreateRequest.filters: an enum is negative or has more than 31 bits",
			"Watch/Watch",
		],
		[
			"garbage at the end",
			() => [...K, 0xff, 0xff, 0xff],
			"RangeRequest: ends within a varint",
		],
		[
			"garbage in a message that is answered without effect",
			() => [...int(1, 5), ...len(2, "x")],
			"CompactionRequest.physical: wire type 2 instead of 0",
			"KV/Compact",
		],
	])("is refused from a tenant: %s", (_, bytes, problem, rpc = "KV/Range") => {
		expect(refusal(() => coreBytes(rpc, bytes()))).toBe(
			`3: etcdproxy: ${problem}`,
		);
	});

	test("is what the cases above make of one that is taken", () => {
		expect(refusal(() => range())).toBe("taken");
		expect(refusal(() => range(...int(3, 2n ** 63n), ...int(5, 5)))).toBe(
			"taken",
		);
		const filters = len(1, len(5, [...varint(2 ** 31 - 1), 0]));
		expect(refusal(() => coreBytes("Watch/Watch", filters))).toBe("taken");
		expect(refusal(() => coreBytes("Watch/Watch", len(1, len(5, []))))).toBe(
			"taken",
		);
	});

	test("is refused from a tenant with more operations than any etcd takes", () => {
		const put = len(2, len(2, [...K, ...int(3, 1)]));
		const compare = len(1, [...len(3, "k"), ...len(64, "l")]);
		const times = (times: number, content: number[]) =>
			new Array<number[]>(times).fill(content).flat();
		const txn = (content: number[]) =>
			refusal(() => coreBytes("KV/Txn", content));
		expect(txn(times(4096, put))).toBe("taken");
		expect(txn(times(4096, compare))).toBe("taken");
		expect(txn(times(20_000, put))).toBe(
			"3: etcdserver: too many operations in txn request",
		);
	});

	test("is refused from a tenant that nests without end", () => {
		const nested = (times: number): number[] =>
			times === 0 ? len(2, len(2, K)) : len(2, len(4, nested(times - 1)));
		expect(refusal(() => coreBytes("KV/Txn", nested(16)))).toBe("taken");
		expect(refusal(() => coreBytes("KV/Txn", nested(17)))).toBe(
			"3: etcdproxy: RequestOp: is nested too deeply",
		);
		expect(refusal(() => coreBytes("KV/Txn", nested(300)))).toBe(
			"3: etcdproxy: RequestOp: is nested too deeply",
		);
	});

	test.each<[string, number[], string]>([
		[
			"a padded length",
			padded(2, ""),
			"RangeResponse.kvs: a varint is padded with zeros",
		],
		[
			"a header twice",
			[...len(1, []), ...len(1, [])],
			"RangeResponse.header: is there twice",
		],
		[
			"a key twice",
			len(2, [...len(1, k), ...len(1, k)]),
			"KeyValue.key: is there twice",
		],
		["no key", len(2, len(5, "v")), "KeyValue.key: is not there"],
		[
			"a length past the end",
			[...tag(2, 2), 9, 1],
			"RangeResponse.kvs: is longer than what it is in",
		],
		["an unknown group", tag(9, 3), "RangeResponse: field 9: wire type 3"],
		[
			"an unknown field past the end",
			[...tag(9, 2), 9, 1],
			"RangeResponse: field 9 is too long",
		],
		[
			"an unknown fixed64 past the end",
			[...tag(9, 1), 1, 2, 3, 4],
			"RangeResponse: field 9 is too long",
		],
		[
			"an unknown fixed32 past the end",
			[...tag(9, 5), 1, 2, 3],
			"RangeResponse: field 9 is too long",
		],
		[
			"half an unknown number",
			[...tag(9, 0), 0x80],
			"RangeResponse: ends within a varint",
		],
		["field number 0", [0, 0], "RangeResponse: a field has number 0"],
	])("is an internal error from the core: %s", (_, bytes, problem) => {
		expect(refusal(() => tenantBytes("KV/Range", bytes))).toBe(
			`13: etcdproxy: ${problem}`,
		);
	});

	test("leaves the buffer as it was, when it is from the core", () => {
		const bytes = [
			...len(1, int(1, -1)),
			...len(2, len(1, k)),
			...len(2, len(1, "/other/k")),
		];
		const { buffer, start, end } = surrounded(bytes);
		const before = buffer.slice();
		expect(() =>
			toTenant(served("KV/Range"), sample, buffer, start, end),
		).toThrow(Status);
		expect(buffer).toEqual(before);
	});
});

type Direction = "toCore" | "toTenant";

const everyMethod = [...methods.values()].filter(
	(method): method is ServedMethod => !("refused" in method),
);

/** The messages that the codec reads: what the core is asked instead of some is answered with a RangeResponse. */
const typeOf = (method: ServedMethod, direction: Direction) =>
	types(protobuf, method.path)[direction === "toCore" ? "input" : "output"];

/** What the model makes of bytes, read and written by protobufjs. */
function modelled(
	method: ServedMethod,
	direction: Direction,
	content: Uint8Array,
): { type: string; message: Plain } | { refused: string } {
	const type = typeOf(method, direction);
	const message = protobuf.decode(type, content);
	try {
		const moved =
			direction === "toCore"
				? toCoreModel(protobuf, type, message, DRAWN)
				: toTenantModel(protobuf, type, message);
		// So that what is a default is not there.
		const bytes = protobuf.encode(type, moved);
		return { type, message: protobuf.decode(type, bytes) };
	} catch (error) {
		if (!(error instanceof Refused)) throw error;
		return { refused: error.message };
	}
}

function readable(method: ServedMethod, response: Uint8Array): boolean {
	try {
		protobuf.decode(typeOf(method, "toTenant"), response);
		return true;
	} catch (error) {
		expect(error).toBeInstanceOf(Error);
		return false;
	}
}

const rewritten = (
	method: ServedMethod,
	direction: Direction,
	content: Uint8Array,
) =>
	direction === "toCore"
		? coreBytes(method.path, content)
		: tenantBytes(method.path, content);

/** Whether the codec takes bytes; if so, its result must be what the model makes of them. */
function agrees(
	method: ServedMethod,
	direction: Direction,
	content: Uint8Array,
): boolean {
	let out: Uint8Array;
	try {
		out = rewritten(method, direction, content);
	} catch (error) {
		if (!(error instanceof Status)) throw error;
		expect(error.code).toBe(direction === "toCore" ? 3 : 13);
		return false;
	}
	if (method.instead && direction === "toCore") return true;
	// protobufjs stumbles over text that is not UTF-8, and looks into what is dropped: from the core, neither matters.
	if (direction === "toTenant" && !readable(method, content)) return true;
	const model = modelled(method, direction, content);
	if ("refused" in model) throw new Error(`taken, though ${model.refused}`);
	const message = protobuf.decode(model.type, out);
	if (!Bun.deepEquals(message, model.message))
		expect(message).toEqual(model.message);
	if (direction === "toCore")
		expect(foreign(protobuf, model.type, message)).toEqual([]);
	return true;
}

describe("whatever message is sent", () => {
	/** Milliseconds, where others keep the machine busy. */
	const SLOW = 60_000;
	const RUNS = 60;

	test(
		"to the core is the model's, or refused as by the model",
		() => {
			for (const method of everyMethod.filter(({ instead }) => !instead))
				fc.assert(
					fc.property(
						anyMessage(protobuf, typeOf(method, "toCore"), false),
						(message) => {
							const type = typeOf(method, "toCore");
							const content = protobuf.encode(type, message);
							const model = modelled(method, "toCore", content);
							if ("refused" in model)
								expect(
									refusal(() => coreBytes(method.path, content)),
								).toContain(model.refused);
							else expect(agrees(method, "toCore", content)).toBe(true);
						},
					),
					{ numRuns: RUNS },
				);
		},
		SLOW,
	);

	test(
		"to the tenant is the model's, or refused as by the model",
		() => {
			for (const method of everyMethod)
				fc.assert(
					fc.property(
						anyMessage(protobuf, typeOf(method, "toTenant"), true),
						(message) => {
							const type = typeOf(method, "toTenant");
							const content = protobuf.encode(type, message);
							const model = modelled(method, "toTenant", content);
							if ("refused" in model)
								expect(
									refusal(() => tenantBytes(method.path, content)),
								).toContain(model.refused);
							else expect(agrees(method, "toTenant", content)).toBe(true);
						},
					),
					{ numRuns: RUNS },
				);
		},
		SLOW,
	);

	test(
		"to the tenant may be rewritten in parts, as it comes in",
		() => {
			for (const method of everyMethod.filter(({ append }) => !append))
				fc.assert(
					fc.property(
						anyMessage(protobuf, typeOf(method, "toTenant"), true),
						fc.infiniteStream(fc.nat({ max: 400 })),
						(message, draws) => {
							const type = typeOf(method, "toTenant");
							const content = protobuf.encode(type, message);
							const whole = () => [...tenantBytes(method.path, content)];
							const parts = () =>
								inParts(method, content, () => draws.next().value);
							if (refusal(whole) === "taken") expect(parts()).toEqual(whole());
							else expect(refusal(parts)).toBe(refusal(whole));
						},
					),
					{ numRuns: RUNS / 4 },
				);
		},
		SLOW,
	);

	test(
		"with its fields in another order means the same",
		() => {
			for (const method of everyMethod)
				fc.assert(
					fc.property(
						anyMessage(protobuf, typeOf(method, "toCore"), false),
						fc.infiniteStream(fc.nat()),
						(message, draws) => {
							const type = typeOf(method, "toCore");
							const content = protobuf.encode(type, message);
							const other = Uint8Array.from(
								shuffled(content, type, () => draws.next().value),
							);
							expect(protobuf.decode(type, other)).toEqual(
								protobuf.decode(type, content),
							);
							const taken = agrees(method, "toCore", content);
							expect(agrees(method, "toCore", other)).toBe(taken);
						},
					),
					{ numRuns: RUNS / 4 },
				);
		},
		SLOW,
	);
});

test("the complete fields of what has come in are found, whatever they are", () => {
	const fields = [
		int(1, 5),
		len(2, "x".repeat(300)),
		[...tag(3, 1), 1, 2, 3, 4, 5, 6, 7, 8],
		[...tag(4, 5), 1, 2, 3, 4],
		int(2 ** 29 - 1, -1),
		len(3, ""),
	];
	const bytes = Uint8Array.from(fields.flat());
	const ends = fields.map((_, i) => fields.slice(0, i + 1).flat().length);
	for (let filled = 0; filled <= bytes.length; filled++)
		expect([filled, completeFields(bytes, 0, filled)]).toEqual([
			filled,
			ends.findLast((end) => end <= filled) ?? 0,
		]);
	// Never past the end, and never for ever.
	for (const endless of [varint(-1), len(1, "x").slice(0, 2)])
		expect(completeFields(Uint8Array.from(endless), 0, endless.length)).toBe(0);
	const huge = [...tag(1, 2), ...varint(-1)];
	expect(completeFields(Uint8Array.from(huge), 0, huge.length)).toBe(0);
});

/** As the gateway does it with a large message. @param draw how many more bytes have come in */
function inParts(
	method: ServedMethod,
	content: Uint8Array,
	draw: () => number,
): number[] {
	const buffer = new Uint8Array(content.length);
	const parts: Uint8Array[] = [];
	let filled = 0;
	let from = 0;
	while (filled < content.length) {
		const more = content.subarray(filled, filled + draw());
		buffer.set(more, filled);
		filled += more.length;
		const end = completeFields(buffer, from, filled);
		parts.push(partToTenant(method, sample, buffer, from, end));
		from = end;
	}
	expect(from).toBe(content.length);
	return parts.flatMap((part) => [...part]);
}

/** A well-formed message with the fields of each message in another order, those of one number in the same. */
function shuffled(
	content: Uint8Array,
	type: string,
	draw: () => number,
): number[] {
	const pieces = new Map<number, number[]>();
	let at = 0;
	const next = () => {
		let value = 0n;
		for (let shift = 0n; ; shift += 7n) {
			const byte = content[at++] ?? 0;
			value += BigInt(byte & 0x7f) << shift;
			if (byte < 0x80) return value;
		}
	};
	while (at < content.length) {
		const begin = at;
		const header = Number(next());
		const number = header >> 3;
		const field = protobuf.fields(type).find((one) => one.number === number);
		const value = next();
		let piece = [...content.subarray(begin, at)];
		if (header % 8 === 2) {
			const bytes = content.subarray(at, at + Number(value));
			at += bytes.length;
			piece =
				field?.type === "message" && field.typeName
					? len(number, shuffled(bytes, field.typeName, draw))
					: len(number, [...bytes]);
		}
		pieces.set(number, [...(pieces.get(number) ?? []), ...piece]);
	}
	return [...pieces.values()]
		.map((piece) => ({ piece, order: draw() }))
		.sort((a, b) => a.order - b.order)
		.flatMap(({ piece }) => piece);
}

/** Numbers from a seed: https://en.wikipedia.org/wiki/Permuted_congruential_generator's smaller cousin, mulberry32. */
function numbers(seed: number) {
	let state = seed >>> 0;
	return (below: number): number => {
		state = (state + 0x6d2b79f5) >>> 0;
		let mixed = Math.imul(state ^ (state >>> 15), state | 1);
		mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
		return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
	};
}

type Draw = ReturnType<typeof numbers>;

/** Where parsers are known to differ. */
const INTERESTING = [
	[0x00],
	[0x01],
	[0x7f],
	[0x80],
	[0xff],
	[0x80, 0x00],
	[0x81, 0x00],
	[0x0a],
	[0x12],
	[0x0a, 0x00],
	[0x12, 0x00],
	[0x12, 0x01, 0x00],
	[0x0b],
	[0x0c],
	[0x1a],
	[0x22],
	[0x82, 0x04],
	[0x8a, 0x80, 0x00],
	varint(-1),
	[0xff, 0xff, 0xff, 0xff, 0x0f],
	latin1(PREFIX),
];

function mutated(seeds: Uint8Array[], draw: Draw): Uint8Array {
	const pick = <T>(list: T[]): T => list[draw(list.length)] as T;
	let bytes = [...pick(seeds)];
	for (let times = 1 + draw(4); times > 0; times--) {
		const at = draw(bytes.length + 1);
		const past = Math.min(bytes.length, at + 1 + draw(8));
		switch (draw(9)) {
			case 0:
				bytes[Math.min(at, bytes.length - 1)] = draw(256);
				break;
			case 1:
				if (at < bytes.length) bytes[at] = (bytes[at] ?? 0) ^ (1 << draw(8));
				break;
			case 2:
				bytes.splice(at, 0, ...pick(INTERESTING));
				break;
			case 3:
				bytes.splice(at, 1, ...pick(INTERESTING));
				break;
			case 4:
				bytes.splice(at, past - at);
				break;
			case 5:
				bytes.splice(draw(bytes.length + 1), 0, ...bytes.slice(at, past));
				break;
			case 6: {
				const other = pick(seeds);
				bytes = [...bytes.slice(0, at), ...other.slice(draw(other.length + 1))];
				break;
			}
			case 7:
				// What still is well-formed: the fields of two messages.
				bytes = [...bytes, ...pick(seeds)];
				break;
			default: {
				// The same, within a message.
				const inner = pick(seeds);
				bytes = [...bytes, ...len(1 + draw(4), [...inner])];
			}
		}
	}
	return Uint8Array.from(bytes);
}

/** Messages of every kind, small, so that mutations hit where it matters. */
function seedsOf(method: ServedMethod, direction: Direction): Uint8Array[] {
	const type = typeOf(method, direction);
	const any = anyMessage(protobuf, type, direction === "toTenant");
	const messages = fc
		.sample(any, { numRuns: 60, seed: 1 })
		.map((message) => protobuf.encode(type, message))
		.filter(({ length }) => length < 300);
	const key = len(1, "k");
	return [new Uint8Array(0), Uint8Array.from(key), ...messages];
}

describe("whatever bytes are sent", () => {
	test("parsers do not disagree about what was taken, and only the tenant's keys are addressed", () => {
		const seconds = Number(process.env.FUZZ_SECONDS ?? 0);
		const seed = Number(process.env.FUZZ_SEED ?? 1);
		const end = Date.now() + seconds * 1000;
		const corpora = everyMethod.flatMap((method) =>
			(["toCore", "toTenant"] as const).map((direction) => ({
				method,
				direction,
				seeds: seedsOf(method, direction),
			})),
		);
		let taken = 0;
		let cases = 0;
		const draw = numbers(seed);
		do
			for (let i = 0; i < 20_000; i++, cases++) {
				const { method, direction, seeds } =
					corpora[i % corpora.length] ?? corpora[0] ?? fail();
				const content = mutated(seeds, draw);
				try {
					if (agrees(method, direction, content)) taken++;
				} catch (error) {
					const hex = Buffer.from(content).toString("hex");
					throw new Error(`${method.path} ${direction} ${hex}`, {
						cause: error,
					});
				}
			}
		while (Date.now() < end);
		if (seconds > 0) console.log(`${cases} mutations, ${taken} taken`);
		// Else nothing would be tested but refusals.
		expect(taken / cases).toBeGreaterThan(0.05);
	}, 3_600_000);
});

function fail(): never {
	throw new Error("no corpus");
}
