/** Where a tenant's keys and leases are in the core etcd. Pure. */
import { createHash } from "node:crypto";

/** A tenant's lease ids are 1 .. LEASE_MAX. The one after it is never granted: it stands for all that is not there. */
export const LEASE_MAX = 2 ** 21 - 2;
export const NO_SUCH_LEASE = LEASE_MAX + 1;

/** Where a tenant's keys and leases are in the core. */
export interface Keyspace {
	/** What stands before each of its keys. */
	readonly prefix: Uint8Array;
	/** The upper 42 bits of its lease ids, as the last six of a varint's nine bytes. */
	readonly leaseTag: Uint8Array;
	/** What replaces fields whole, by PIECE. */
	readonly pieces: readonly Uint8Array[];
}

/** A prefix's end, with its length before it; the first key, likewise; ids, as varints. */
export const PIECE = {
	end: 0,
	firstKey: 1,
	clusterId: 2,
	memberId: 3,
} as const;

/**
 * A tenant's keyspace. All of it follows from the prefix, so that every replica agrees on it.
 *
 * Keys: k is at prefix + k. With k not empty and a range's end e mapped to prefix + e, or for e = "\0" (no end) to the
 * prefix with its last byte plus one, all that a range addresses begins with the prefix: byte strings s with
 * prefix < s < prefix end are those, and prefix < prefix + k <= s < prefix + e < prefix end. The key that is the bare
 * prefix is nobody's.
 *
 * Leases: id n is at 2^62 + tag * 2^21 + n, the tag being 41 bits of the prefix's SHA-256. Two of 1000 tenants share a
 * tag with a chance of 1 in 4 million. Ids that etcd itself picks are 15 bits of a member, 40 bits of milliseconds and 8
 * of a counter (go.etcd.io/etcd/pkg/v3/idutil): one of them looks like a given tenant's with a chance of 1 in 2^42.
 *
 * @throws RangeError
 */
export function keyspace(prefix: string): Keyspace {
	const bytes = new TextEncoder().encode(prefix);
	const last = bytes.at(-1);
	if (last === undefined) throw new RangeError("a tenant's prefix is empty");
	const end = Uint8Array.from([...bytes.subarray(0, -1), last + 1]);
	const hash = createHash("sha256").update(bytes).digest();
	/** Seven bits of the hash and the bit that says that more follow. */
	const group = (at: number) => hash.readUInt8(at) | 0x80;
	const top = (at: number) => (hash.readUInt8(at) & 0x3f) | 0x40;
	return {
		prefix: bytes,
		leaseTag: Uint8Array.from([0, 1, 2, 3, 4].map(group).concat(top(5))),
		pieces: [
			Uint8Array.from([...varint(end.length), ...end]),
			Uint8Array.from([...varint(bytes.length + 1), ...bytes, 0]),
			// Shorter than the core's own, which are random 64 bits: messages do not grow by them.
			Uint8Array.from([6, 7, 8, 9].map(group).concat(top(10))),
			Uint8Array.from([11, 12, 13, 14].map(group).concat(top(15))),
		],
	};
}

export const memberIdOf = ({ pieces }: Keyspace): Uint8Array =>
	pieces[PIECE.memberId] as Uint8Array;

function varint(value: number): number[] {
	return value < 0x80
		? [value]
		: [(value & 0x7f) | 0x80, ...varint(Math.floor(value / 0x80))];
}

/** The bytes of a field that nothing else is said of: bytes and strings, or a message, with its tag. */
export function lengthDelimited(
	number: number,
	content: Iterable<number>,
): number[] {
	const bytes = [...content];
	return [...varint(number * 8 + 2), ...varint(bytes.length), ...bytes];
}
