/**
 * Moves keys and lease ids of protobuf messages into and out of a tenant's part of the core etcd, on the wire:
 * https://protobuf.dev/programming-guides/encoding. A table tells each field's rule; bytes without one of their own are
 * copied as they are. One walk over a message checks everything and notes what is to be replaced as a list of edits; then
 * the runs in between are copied. Strict, because a message that two parsers read differently is a hole: what is here
 * taken for a value may be a key for etcd. Pure.
 */

import { Code, Status } from "../grpc.ts";
import { Edits, LEASE_LENGTH, sizeOf, writeBytes } from "./edits.ts";
import { type Keyspace, LEASE_MAX, NO_SUCH_LEASE, PIECE } from "./keyspace.ts";
import {
	type Field,
	LENGTH_DELIMITED,
	type Message,
	Rule,
	tagOf,
} from "./schema.ts";

/** Messages within messages. etcd sets no limit of its own; a Txn within a Txn is two. */
const MAX_DEPTH = 2 * 16 + 2;
/** Where the walk over a response begins: it has a header, or keys, where its request has nothing. */
const RESPONSE_DEPTH = -1;
/** Length of gRPC's prefix of a message: a flag, and 4 bytes of length. */
const PREFIX = 5;

function resolved(field: Field): Message {
	const { of } = field;
	const message = typeof of === "function" ? of() : of;
	if (!message) throw new TypeError(`${field.name} is not a message`);
	field.message = message;
	return message;
}

/** As etcd says it: https://github.com/etcd-io/etcd/blob/v3.7.3/api/v3rpc/rpctypes/error.go */
const NO_KEY = "etcdserver: key is not provided";

/** Whose fault it is. */
const codeOf = ({ from }: Message) =>
	from === "tenant" ? Code.INVALID_ARGUMENT : Code.INTERNAL;

function fail(
	message: Message,
	field: Field | undefined,
	problem: string,
): never {
	const name = field ? `${message.name}.${field.name}` : message.name;
	throw new Status(codeOf(message), `etcdproxy: ${name}: ${problem}`);
}

/** One message being rewritten. */
class Rewrite {
	readonly #keyspace: Keyspace;
	readonly #input: Uint8Array;
	readonly #drawn: number;
	readonly edits: Edits;

	/** @param drawn the id of a lease that is made without one */
	constructor(
		from: Message["from"],
		keyspace: Keyspace,
		input: Uint8Array,
		drawn = 0,
	) {
		this.edits = new Edits(keyspace, from === "tenant");
		this.#keyspace = keyspace;
		this.#input = input;
		this.#drawn = drawn;
	}

	/**
	 * Checks the message, and notes its edits.
	 * @returns by how many bytes it grows
	 * @throws Status
	 */
	walk(message: Message, start: number, end: number, depth: number): number {
		if (depth > MAX_DEPTH) fail(message, undefined, "is nested too deeply");
		const input = this.#input;
		const { byTag } = message;
		let growth = 0;
		let seen = 0;
		let at = start;
		while (at < end) {
			const from = at;
			let tag = input[at++] as number;
			if (tag >= 0x80) {
				tag = this.#number(message, undefined, from, end);
				at = from + sizeOf(tag);
			}
			const field = tag < byTag.length ? byTag[tag] : undefined;
			if (field === undefined) {
				at = this.#pastUnknown(message, tag, at, end);
				growth += this.edits.drop(from, at);
				continue;
			}
			const { rule } = field;
			if ((seen & field.bit) !== 0)
				fail(
					message,
					field,
					field.oneof
						? `is not the only one of ${field.oneof}`
						: "is there twice",
				);
			seen |= field.bit;
			if (rule < Rule.bytes) {
				const past = this.#pastVarint(message, field, at, end);
				if (rule !== Rule.varint)
					growth += this.#varint(message, field, from, at, past);
				at = past;
				continue;
			}
			const length = this.#number(message, field, at, end);
			const content = at + sizeOf(length);
			const past = content + length;
			if (past > end) fail(message, field, "is longer than what it is in");
			if (rule === Rule.message || rule === Rule.unlessEmpty)
				growth += this.#nested(field, from, at, content, past, depth);
			else if (rule !== Rule.bytes)
				growth += this.#delimited(message, field, from, at, content, past);
			at = past;
		}
		if ((seen & message.needed) !== message.needed)
			growth += this.#absent(message, seen, end);
		return growth;
	}

	#nested(
		field: Field,
		from: number,
		at: number,
		content: number,
		past: number,
		depth: number,
	): number {
		const { edits } = this;
		const place = edits.reserve(at, content);
		const message = field.message ?? resolved(field);
		const growth = this.walk(message, content, past, depth + 1);
		const length = past - content + growth;
		if (length === 0 && field.rule === Rule.unlessEmpty) {
			edits.cancel(place);
			return edits.drop(from, past);
		}
		if (edits.any(place)) edits.settle(place, length);
		else edits.cancel(place);
		return growth + sizeOf(length) - (content - at);
	}

	/** A varint with a rule of its own: its field begins at `from`, itself at `at`. */
	#varint(
		message: Message,
		field: Field,
		from: number,
		at: number,
		past: number,
	): number {
		const { rule } = field;
		const zero = past === at + 1 && this.#input[at] === 0;
		// The same as absent: no lease, no id.
		if (zero && rule !== Rule.newLease) return 0;
		switch (rule) {
			case Rule.bool:
				if (past > at + 1 || (this.#input[at] as number) > 1)
					fail(message, field, "a bool is neither 0 nor 1");
				return 0;
			case Rule.enumeration:
				this.#checkEnumeration(message, field, at, past);
				return 0;
			case Rule.clusterId:
				return this.edits.piece(at, past, PIECE.clusterId);
			case Rule.memberId:
				return this.edits.piece(at, past, PIECE.memberId);
			case Rule.keptLease:
			case Rule.ownLease: {
				const id = this.#ownLease(at, past);
				if (id > 0) return this.edits.varint(at, past, id);
				if (rule === Rule.ownLease)
					fail(message, field, "the lease is another's");
				return this.edits.drop(from, past);
			}
		}
		const id = past - at > 3 ? NO_SUCH_LEASE : numberIn(this.#input, at, past);
		if (rule === Rule.newLease) {
			if (id > LEASE_MAX)
				fail(
					message,
					field,
					`lease ids are 1 to ${LEASE_MAX} here; leave it out, and one is picked`,
				);
			return this.edits.lease(at, past, id || this.#drawn);
		}
		// Lower than any lease: it stays so.
		const negative = past - at === 10;
		if (negative && rule === Rule.comparedLease) return 0;
		return this.edits.lease(at, past, id);
	}

	/** Bytes with a rule of their own: the field begins at `from`, its length at `at`. */
	#delimited(
		message: Message,
		field: Field,
		from: number,
		at: number,
		content: number,
		past: number,
	): number {
		const { prefix } = this.#keyspace;
		const length = past - content;
		switch (field.rule) {
			case Rule.key:
				if (length === 0) throw new Status(codeOf(message), NO_KEY);
				return this.edits.prefix(at, content, length);
			case Rule.watchedKey:
				if (length === 0) return this.edits.piece(at, content, PIECE.firstKey);
				return this.edits.prefix(at, content, length);
			case Rule.rangeEnd:
				// Left out: for etcd up to 3.6, an empty one that is there has no end, not even the prefix's.
				if (length === 0) return this.edits.drop(from, past);
				if (length === 1 && this.#input[content] === 0)
					return this.edits.piece(at, past, PIECE.end);
				return this.edits.prefix(at, content, length);
			case Rule.enumerations:
				for (let next = content; next < past; ) {
					const value = next;
					next = this.#pastVarint(message, field, value, past);
					this.#checkEnumeration(message, field, value, next);
				}
				return 0;
		}
		const inside = this.#isInside(content, past);
		if (!inside && field.rule === Rule.ownKeys)
			return this.edits.drop(from, past);
		if (!inside) fail(message, field, "the key is another's");
		const added = prefix.length;
		return this.edits.varint(at, content + added, length - added);
	}

	/** At the end of a message: what has to be there, and is not. */
	#absent(message: Message, seen: number, end: number): number {
		if (message.empty !== undefined)
			throw new Status(codeOf(message), message.empty);
		let growth = 0;
		for (const field of message.fields) {
			if ((seen & field.bit & message.needed) !== 0) continue;
			switch (field.rule) {
				case Rule.key:
					throw new Status(codeOf(message), NO_KEY);
				case Rule.ownKey:
					fail(message, field, "is not there");
					break;
				case Rule.watchedKey:
					growth += this.edits.varint(end, end, tagOf(field));
					growth += this.edits.piece(end, end, PIECE.firstKey);
					break;
				case Rule.newLease:
					growth += this.edits.varint(end, end, tagOf(field));
					growth += this.edits.lease(end, end, this.#drawn);
			}
		}
		return growth;
	}

	/** Where the value of a field begins, or -1. */
	find(message: Message, tag: number, start: number, end: number): number {
		for (let at = start; at < end; ) {
			const found = this.#number(message, undefined, at, end);
			at += sizeOf(found);
			if (found === tag) return at;
			at = this.#pastUnknown(message, found, at, end);
		}
		return -1;
	}

	// Reading.

	/** Past the varint at `at`, which must be minimal and of at most 64 bits. */
	#pastVarint(
		message: Message,
		field: Field | undefined,
		at: number,
		end: number,
	): number {
		const input = this.#input;
		const limit = Math.min(end, at + 10);
		for (let past = at; past < limit; ) {
			const byte = input[past++] as number;
			if (byte >= 0x80) continue;
			if (byte === 0 && past > at + 1)
				fail(message, field, "a varint is padded with zeros");
			if (byte > 1 && past === at + 10)
				fail(message, field, "a varint has more than 64 bits");
			return past;
		}
		return fail(
			message,
			field,
			limit < at + 10 ? "ends within a varint" : "a varint has over 10 bytes",
		);
	}

	/** The tag or the length at `at`. */
	#number(
		message: Message,
		field: Field | undefined,
		at: number,
		end: number,
	): number {
		if (at < end) {
			const byte = this.#input[at] as number;
			if (byte < 0x80) return byte;
		}
		const past = this.#pastVarint(message, field, at, end);
		const value = numberIn(this.#input, at, past);
		if (value > 0xffffffff)
			fail(message, field, "a tag or a length has more than 32 bits");
		return value;
	}

	#checkEnumeration(
		message: Message,
		field: Field,
		at: number,
		past: number,
	): void {
		if (numberIn(this.#input, at, past) > 0x7fffffff)
			fail(message, field, "an enum is negative or has more than 31 bits");
	}

	/** Past the value of a field that the table does not have. */
	#pastUnknown(message: Message, tag: number, at: number, end: number): number {
		const number = Math.floor(tag / 8);
		const wireType = tag % 8;
		if (number === 0) fail(message, undefined, "a field has number 0");
		if (message.from === "tenant") {
			const field = message.fields.find((field) => field.number === number);
			if (field) {
				const expected = tagOf(field) % 8;
				fail(message, field, `wire type ${wireType} instead of ${expected}`);
			}
			fail(message, field, `field ${number} is not known to this gateway`);
		}
		let past = end + 1;
		if (wireType === 0) past = this.#pastVarint(message, undefined, at, end);
		else if (wireType === 1) past = at + 8;
		else if (wireType === 5) past = at + 4;
		else if (wireType === LENGTH_DELIMITED) {
			const length = this.#number(message, undefined, at, end);
			past = at + sizeOf(length) + length;
		} else fail(message, undefined, `field ${number}: wire type ${wireType}`);
		if (past > end) fail(message, undefined, `field ${number} is too long`);
		return past;
	}

	#isInside(content: number, past: number): boolean {
		const { prefix } = this.#keyspace;
		if (past - content <= prefix.length) return false;
		for (let at = 0; at < prefix.length; at++)
			if (this.#input[content + at] !== prefix[at]) return false;
		return true;
	}

	/** The tenant's id of a lease of the core, or 0 when it is another's. */
	#ownLease(at: number, past: number): number {
		const input = this.#input;
		const { leaseTag } = this.#keyspace;
		if (past !== at + LEASE_LENGTH) return 0;
		const tagAt = past - leaseTag.length;
		for (let next = 0; next < leaseTag.length; next++)
			if (input[tagAt + next] !== leaseTag[next]) return 0;
		return numberIn(input, at, tagAt);
	}
}

/** gRPC's prefix: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md */
function writePrefix(output: Uint8Array, at: number, length: number): void {
	output[at] = 0;
	output[at + 1] = length >>> 24;
	output[at + 2] = length >>> 16;
	output[at + 3] = length >>> 8;
	output[at + 4] = length;
}

/**
 * A tenant's message, input[start, end), as it is for the core: in a new array, behind gRPC's prefix.
 * @param drawn the id of a lease that is made without one, 1 .. LEASE_MAX
 * @throws Status INVALID_ARGUMENT
 */
export function rewriteRequest(
	message: Message,
	keyspace: Keyspace,
	input: Uint8Array,
	start: number,
	end: number,
	drawn: number,
): Uint8Array {
	const rewrite = new Rewrite("tenant", keyspace, input, drawn);
	const length = end - start + rewrite.walk(message, start, end, 0);
	const output = new Uint8Array(PREFIX + length);
	writePrefix(output, 0, length);
	rewrite.edits.write(input, start, end, output, PREFIX);
	return output;
}

/**
 * The core's message, input[start, end), as it is for a tenant, behind gRPC's prefix: where it was, in
 * input[start - 5, end), or when that is too small in a new array.
 * @param appended fields to put at its end
 * @throws Status INTERNAL; the input is then as it was
 */
export function rewriteResponse(
	message: Message,
	keyspace: Keyspace,
	input: Uint8Array,
	start: number,
	end: number,
	appended: Uint8Array,
): Uint8Array {
	const rewrite = new Rewrite("core", keyspace, input);
	const growth =
		rewrite.walk(message, start, end, RESPONSE_DEPTH) + appended.length;
	const length = end - start + growth;
	const inPlace = !rewrite.edits.grown && appended.length === 0;
	const output = inPlace ? input : new Uint8Array(PREFIX + length);
	const begin = inPlace ? start - PREFIX : 0;
	const past = rewrite.edits.write(input, start, end, output, begin + PREFIX);
	writeBytes(output, past, appended);
	writePrefix(output, begin, length);
	return output.subarray(begin, begin + PREFIX + length);
}

/**
 * Complete fields of the core's message, input[start, end), as they are for a tenant: where they were, or when they get
 * longer in a new array. Of a message in parts, the parts of what this gives are the message.
 * @throws Status INTERNAL; the input is then as it was
 */
export function rewriteFields(
	message: Message,
	keyspace: Keyspace,
	input: Uint8Array,
	start: number,
	end: number,
): Uint8Array {
	const rewrite = new Rewrite("core", keyspace, input);
	const growth = rewrite.walk(message, start, end, RESPONSE_DEPTH);
	const length = end - start + growth;
	const { grown } = rewrite.edits;
	const output = grown ? new Uint8Array(length) : input;
	const begin = grown ? 0 : start;
	rewrite.edits.write(input, start, end, output, begin);
	return output.subarray(begin, begin + length);
}

/**
 * Where in input[start, end), which begins with a field, the last complete one ends. Nothing is checked: rewriteFields()
 * does.
 */
export function completeFields(
	input: Uint8Array,
	start: number,
	end: number,
): number {
	let past = start;
	while (past < end) {
		const wireType = (input[past] as number) & 7;
		const value = pastBytes(input, past, end);
		let next = value;
		if (wireType === 1) next += 8;
		else if (wireType === 5) next += 4;
		else next = pastBytes(input, value, end);
		if (wireType === LENGTH_DELIMITED) next += numberIn(input, value, next);
		if (next > end) break;
		past = next;
	}
	return past;
}

/** The number in the varint that ends at `past`; exact up to 53 bits. */
function numberIn(input: Uint8Array, at: number, past: number): number {
	let value = 0;
	for (let next = past - 1; next >= at; next--)
		value = value * 0x80 + ((input[next] as number) & 0x7f);
	return value;
}

/** Past the varint at `at`, however it is; or past `end`. */
function pastBytes(input: Uint8Array, at: number, end: number): number {
	let next = at;
	while (next < end && (input[next] as number) >= 0x80) next++;
	return next + 1;
}

/**
 * Whether the field `number` of the core's message, input[start, end), a varint, is there and not 0 or false.
 * @throws Status INTERNAL
 */
export function isSet(
	message: Message,
	number: number,
	input: Uint8Array,
	start: number,
	end: number,
): boolean {
	const nobody = new Uint8Array(0);
	const space = { prefix: nobody, leaseTag: nobody, pieces: [] };
	const read = new Rewrite("core", space, input);
	const at = read.find(message, number * 8, start, end);
	return at >= 0 && at < end && input[at] !== 0;
}
