/** A message's edits: what is to be replaced in it, noted from front to back, and then carried out in one go. Pure. */
import { Code, Status } from "../grpc.ts";
import type { Keyspace } from "./keyspace.ts";

/** What is put in place of the bytes from `at` to `resume`. */
const Kind = {
	nothing: 0,
	/** `value` as a varint. */
	varint: 1,
	/** `value` as a varint, and the tenant's prefix. */
	prefixed: 2,
	/** The tenant's lease number `value`, as it is in the core. */
	lease: 3,
	/** The keyspace's piece number `value`. */
	piece: 4,
} as const;
type Kind = (typeof Kind)[keyof typeof Kind];

/** at, resume, kind, value. */
const NUMBERS = 4;
/**
 * Serves most messages, one after the other: nobody is called while one is rewritten. Giant lists of keys get a longer
 * one of their own. For requests it has to do: it is over 4000 operations, of which etcd takes 128 unless told otherwise.
 */
const kept = new Int32Array(1 << 16);

/** Length of a lease of the core, a varint. */
export const LEASE_LENGTH = 9;
/** Up to here, a loop is faster than a call. */
const SHORT = 24;

/** As etcd says it: https://github.com/etcd-io/etcd/blob/v3.7.3/api/v3rpc/rpctypes/error.go */
const TOO_MANY = "etcdserver: too many operations in txn request";

export class Edits {
	readonly #keyspace: Keyspace;
	readonly #bounded: boolean;
	#numbers = kept;
	#end = 0;
	/** Whether an edit is longer than what it replaces. */
	grown = false;

	/** @param bounded whether there is an end to it */
	constructor(keyspace: Keyspace, bounded: boolean) {
		this.#keyspace = keyspace;
		this.#bounded = bounded;
	}

	// Each returns by how many bytes it makes the message longer.

	drop(at: number, resume: number): number {
		return this.#replace(Kind.nothing, at, resume, 0, 0);
	}

	varint(at: number, resume: number, value: number): number {
		return this.#replace(Kind.varint, at, resume, value, sizeOf(value));
	}

	/** The prefix in front of a key, whose length, at `at`, ends where it begins, at `resume`. */
	prefix(at: number, resume: number, length: number): number {
		const added = this.#keyspace.prefix.length;
		const longer = length + added;
		const size = sizeOf(longer) + added;
		return this.#replace(Kind.prefixed, at, resume, longer, size);
	}

	lease(at: number, resume: number, id: number): number {
		return this.#replace(Kind.lease, at, resume, id, LEASE_LENGTH);
	}

	/** @param number one of PIECE */
	piece(at: number, resume: number, number: number): number {
		const { length } = this.#keyspace.pieces[number] as Uint8Array;
		return this.#replace(Kind.piece, at, resume, number, length);
	}

	/** A place for the length of a message, which is known only after the edits in it. */
	reserve(at: number, resume: number): number {
		this.#push(Kind.varint, at, resume, 0);
		return this.#end;
	}

	/** Whether there have been edits since. */
	any(place: number): boolean {
		return this.#end > place;
	}

	/** Takes back a place and all after it. */
	cancel(place: number): void {
		this.#end = place - NUMBERS;
	}

	/** Where the length of a message grows, something in it has grown, too. */
	settle(place: number, value: number): void {
		this.#numbers[place - 1] = value;
	}

	#replace(
		kind: Kind,
		at: number,
		resume: number,
		value: number,
		length: number,
	): number {
		this.#push(kind, at, resume, value);
		const growth = length - (resume - at);
		if (growth > 0) this.grown = true;
		return growth;
	}

	#push(kind: Kind, at: number, resume: number, value: number): void {
		const end = this.#end;
		if (end === this.#numbers.length) {
			if (this.#bounded) throw new Status(Code.INVALID_ARGUMENT, TOO_MANY);
			const more = new Int32Array(2 * end);
			more.set(this.#numbers);
			this.#numbers = more;
		}
		const numbers = this.#numbers;
		numbers[end] = at;
		numbers[end + 1] = resume;
		numbers[end + 2] = kind;
		numbers[end + 3] = value;
		this.#end = end + NUMBERS;
	}

	/**
	 * Writes input[start, end) with its edits to `output` at `to`, and returns where it ends there. The output may be the
	 * input, with `to` not after `start`, if nothing has grown: then nothing is written where something has yet to be read.
	 */
	write(
		input: Uint8Array,
		start: number,
		end: number,
		output: Uint8Array,
		to: number,
	): number {
		const numbers = this.#numbers;
		const { prefix, leaseTag, pieces } = this.#keyspace;
		let from = start;
		let next = to;
		for (let edit = 0; edit < this.#end; edit += NUMBERS) {
			next = copy(input, from, numbers[edit] as number, output, next);
			from = numbers[edit + 1] as number;
			const value = numbers[edit + 3] as number;
			switch (numbers[edit + 2]) {
				case Kind.varint:
					next = writeVarint(output, next, value);
					break;
				case Kind.prefixed:
					next = writeVarint(output, next, value);
					next = writeBytes(output, next, prefix);
					break;
				case Kind.lease:
					output[next++] = (value & 0x7f) | 0x80;
					output[next++] = ((value >> 7) & 0x7f) | 0x80;
					output[next++] = ((value >> 14) & 0x7f) | 0x80;
					next = writeBytes(output, next, leaseTag);
					break;
				case Kind.piece:
					next = writeBytes(output, next, pieces[value] as Uint8Array);
			}
		}
		return copy(input, from, end, output, next);
	}
}

/** Length of a varint below 2^35. */
export function sizeOf(value: number): number {
	if (value < 0x80) return 1;
	if (value < 0x4000) return 2;
	if (value < 0x200000) return 3;
	return value < 0x10000000 ? 4 : 5;
}

/** Copies input[from, past) to output at `to`, also forwards within one array. Returns where it ends there. */
function copy(
	input: Uint8Array,
	from: number,
	past: number,
	output: Uint8Array,
	to: number,
): number {
	const length = past - from;
	if (length < SHORT)
		for (let at = 0; at < length; at++)
			output[to + at] = input[from + at] as number;
	else if (output === input) output.copyWithin(to, from, past);
	else output.set(input.subarray(from, past), to);
	return to + length;
}

function writeVarint(output: Uint8Array, to: number, value: number): number {
	let rest = value;
	let at = to;
	while (rest >= 0x80) {
		output[at++] = (rest & 0x7f) | 0x80;
		rest >>>= 7;
	}
	output[at++] = rest;
	return at;
}

export function writeBytes(
	output: Uint8Array,
	to: number,
	bytes: Uint8Array,
): number {
	return copy(bytes, 0, bytes.length, output, to);
}
