/** What can be said of etcd's messages: the vocabulary of the table in messages.ts, and its compilation for codec.ts. Pure. */

export const Rule = {
	varint: 0,
	bool: 1,
	enumeration: 2,
	lease: 3,
	comparedLease: 4,
	newLease: 5,
	keptLease: 6,
	ownLease: 7,
	clusterId: 8,
	memberId: 9,
	bytes: 10,
	message: 11,
	unlessEmpty: 12,
	enumerations: 13,
	key: 14,
	watchedKey: 15,
	rangeEnd: 16,
	ownKey: 17,
	ownKeys: 18,
	dropped: 19,
} as const;
export type Rule = (typeof Rule)[keyof typeof Rule];

export type Type =
	| "bool"
	| "bytes"
	| "enum"
	| "int64"
	| "message"
	| "string"
	| "uint64";

interface FieldRule {
	readonly number: number;
	readonly type: Type;
	readonly repeated: boolean;
	readonly rule: Rule;
	/** Only one field of the same oneof may be there. */
	readonly oneof?: string;
	readonly of?: Message | (() => Message);
}

export interface Field extends FieldRule {
	readonly name: string;
	/** Among the fields seen: one bit for all of a oneof, none for what may be repeated. */
	readonly bit: number;
	/** Of the message that it is, once that is known. */
	message: Message | undefined;
}

/** A message, compiled for the walk. */
export interface Message {
	readonly name: string;
	readonly fields: readonly Field[];
	readonly from: "tenant" | "core";
	/** By tag, that is by number and wire type. */
	readonly byTag: readonly (Field | undefined)[];
	/** Bits of what something must be done about when it is absent. */
	readonly needed: number;
	/** What is wrong when it is empty. */
	readonly empty: string | undefined;
}

const field =
	(type: Type, rule: Rule, repeated = false) =>
	(number: number): FieldRule => ({ number, type, repeated, rule });

/** Copied as they are. */
export const bool = field("bool", Rule.bool);
export const bytes = field("bytes", Rule.bytes);
export const enumeration = field("enum", Rule.enumeration);
export const enumerations = field("enum", Rule.enumerations, true);
export const int64 = field("int64", Rule.varint);
export const string = field("string", Rule.bytes);
export const uint64 = field("uint64", Rule.varint);

/** Of a request: a key, which must be there. */
export const key = field("bytes", Rule.key);
/** Of a request: a key; when it is absent, the first one. */
export const watchedKey = field("bytes", Rule.watchedKey);
/** Of a request: the end of a range, "\0" for none; when it is absent, the range is a single key. */
export const rangeEnd = field("bytes", Rule.rangeEnd);
/** Of a request: a lease, or 0 for none. What cannot be one of the tenant's becomes one that does not exist. */
export const lease = field("int64", Rule.lease);
/** Of a request: what a lease is compared to: as a lease, but order is kept. */
export const comparedLease = field("int64", Rule.comparedLease);
/** Of a request: the lease to make; when it is absent or 0, the one that the caller has drawn. */
export const newLease = field("int64", Rule.newLease);

/** Of a response: a key, which must be there and be the tenant's. */
export const ownKey = field("bytes", Rule.ownKey);
/** Of a response: keys; those that are not the tenant's are left out. */
export const ownKeys = field("bytes", Rule.ownKeys, true);
/** Of a response: a lease; left out when it is not the tenant's. */
export const keptLease = field("int64", Rule.keptLease);
/** Of a response: a lease, which must be the tenant's. */
export const ownLease = field("int64", Rule.ownLease);
/** Of a response: ids that are made up for the tenant. */
export const clusterId = field("uint64", Rule.clusterId);
export const memberId = field("uint64", Rule.memberId);
/** Of a response: not the tenant's business. */
export const dropped = (number: number, type: Type, repeated = false) => ({
	number,
	type,
	repeated,
	rule: Rule.dropped,
});

const nested =
	(rule: Rule, repeated: boolean) =>
	(number: number, of: Message | (() => Message)): FieldRule => ({
		number,
		type: "message",
		repeated,
		rule,
		of,
	});
export const message = nested(Rule.message, false);
export const messages = nested(Rule.message, true);
/** Of a response: messages; those that nothing is left of are left out. */
export const messagesUnlessEmpty = nested(Rule.unlessEmpty, true);

/** Fields of which at most one may be there. */
export function oneof<Name extends string>(
	name: string,
	fields: Record<Name, FieldRule>,
): Record<Name, FieldRule> {
	const members = Object.entries<FieldRule>(fields).map(([key, rule]) => [
		key,
		{ ...rule, oneof: name },
	]);
	return Object.fromEntries(members);
}

/** A message from a tenant. Fields that are not named are refused. @param empty what is wrong when there is none */
export const request = (
	name: string,
	fields: Record<string, FieldRule>,
	empty?: string,
): Message => compile(name, fields, "tenant", empty);

/** A message from the core. Fields that are not named are dropped: news of a newer etcd are for its operator. */
export const response = (
	name: string,
	fields: Record<string, FieldRule>,
): Message => compile(name, fields, "core");

/** What may be absent only if something is done about it. */
const NEEDED: readonly Rule[] = [
	Rule.key,
	Rule.watchedKey,
	Rule.newLease,
	Rule.ownKey,
];

export const LENGTH_DELIMITED = 2;

function compile(
	name: string,
	rules: Record<string, FieldRule>,
	from: Message["from"],
	empty?: string,
): Message {
	const singular = Object.entries(rules).filter(([, rule]) => !repeats(rule));
	const bits = [...new Set(singular.map(([name, { oneof }]) => oneof ?? name))];
	const fields = Object.entries(rules).map(
		([name, rule]): Field => ({
			...rule,
			name,
			bit: repeats(rule) ? 0 : 1 << bits.indexOf(rule.oneof ?? name),
			message: typeof rule.of === "object" ? rule.of : undefined,
		}),
	);
	const byTag: (Field | undefined)[] = [];
	for (const field of fields)
		if (field.rule !== Rule.dropped) byTag[tagOf(field)] = field;
	const needed = fields
		.filter(({ rule }) => NEEDED.includes(rule))
		.reduce((mask, { bit }) => mask | bit, 0);
	return {
		name,
		fields,
		from,
		// No holes: reading one looks further, in the prototype.
		byTag: Array.from(byTag),
		needed: empty ? 1 : needed,
		empty,
	};
}

/** Packed enumerations are one field on the wire. */
const repeats = ({ repeated, rule }: FieldRule) =>
	repeated && rule !== Rule.enumerations;

/** Number and wire type, as they precede a value. */
export const tagOf = ({ number, rule }: FieldRule) =>
	number * 8 + (rule < Rule.bytes ? 0 : LENGTH_DELIMITED);
