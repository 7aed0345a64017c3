/**
 * What the gateway makes of etcd's messages, over objects: slow and plain, by names, and without a look at the wire. The
 * codec is held against it.
 */
import { createHash } from "node:crypto";
import fc from "fast-check";
import type { Plain, Protobuf, Value } from "./protobuf.ts";

export const PREFIX = "/sample/";
export const PREFIX_END = "/sample0";
export const URL = "https://etcd-sample.kube-apiserver-storage.svc:2379";
export const LAST_LEASE = 2n ** 21n - 2n;
const NO_SUCH_LEASE = 2n ** 21n - 1n;

const hash = createHash("sha256").update(PREFIX).digest();
/** The lowest 7 bits of some bytes of the hash, the first lowest; the last byte has 6 and a 1. */
const bits = (from: number, count: number) =>
	[...hash.subarray(from, from + count)].reduce(
		(sum, byte, i) =>
			sum +
			(BigInt(i < count - 1 ? byte & 0x7f : (byte & 0x3f) | 0x40) <<
				BigInt(7 * i)),
		0n,
	);
const LEASES = bits(0, 6) << 21n;
export const CLUSTER_ID = String(bits(6, 5));
export const MEMBER_ID = String(bits(11, 5));

/** A tenant's lease as it is in the core. */
export const coreLease = (id: number | bigint): string =>
	String(LEASES + BigInt(id));

export class Refused extends Error {}

const KEYS = [
	"RangeRequest.key",
	"PutRequest.key",
	"DeleteRangeRequest.key",
	"Compare.key",
];
const RANGE_ENDS = [
	"RangeRequest.range_end",
	"DeleteRangeRequest.range_end",
	"Compare.range_end",
	"WatchCreateRequest.range_end",
];
const LEASE_IDS = [
	"PutRequest.lease",
	"LeaseRevokeRequest.ID",
	"LeaseKeepAliveRequest.ID",
	"LeaseTimeToLiveRequest.ID",
];

const short = (type: string) => type.slice(type.indexOf(".") + 1);

/**
 * A tenant's message as the core is to see it.
 * @throws Refused with a part of the reason
 */
export function toCoreModel(
	protobuf: Protobuf,
	type: string,
	message: Plain,
	drawn: number,
): Plain {
	const moved: Plain = {};
	for (const field of protobuf.fields(type)) {
		const name = `${short(type)}.${field.name}`;
		const value = message[field.name];
		const text = typeof value === "string" ? value : "";
		const { typeName } = field;
		if (KEYS.includes(name)) {
			if (text === "") throw new Refused("key is not provided");
			moved[field.name] = PREFIX + text;
		} else if (name === "WatchCreateRequest.key")
			moved[field.name] = PREFIX + (text || "\0");
		else if (RANGE_ENDS.includes(name)) {
			if (text !== "")
				moved[field.name] = text === "\0" ? PREFIX_END : PREFIX + text;
		} else if (LEASE_IDS.includes(name)) {
			const id = BigInt(text);
			if (id !== 0n)
				moved[field.name] = coreLease(
					id > 0n && id <= LAST_LEASE ? id : NO_SUCH_LEASE,
				);
		} else if (name === "Compare.lease") {
			if (value !== undefined) {
				const id = BigInt(text);
				const at = id > LAST_LEASE ? NO_SUCH_LEASE : id;
				moved[field.name] = at > 0n ? coreLease(at) : String(at);
			}
		} else if (name === "LeaseGrantRequest.ID") {
			const id = BigInt(text) || BigInt(drawn);
			if (id < 0n || id > LAST_LEASE) throw new Refused("lease ids are 1 to");
			moved[field.name] = coreLease(id);
		} else if (value !== undefined && typeName && field.type === "message")
			moved[field.name] = each(value, (one) =>
				toCoreModel(protobuf, typeName, one, drawn),
			);
		else if (value !== undefined) moved[field.name] = value;
	}
	if (type === "etcdserverpb.RequestOp" && Object.keys(moved).length === 0)
		throw new Refused("key not found");
	if (type === "etcdserverpb.WatchRequest" && Object.keys(moved).length === 0)
		throw new Refused("neither creates nor cancels");
	return moved;
}

const each = (value: Value, map: (message: Plain) => Plain): Value =>
	Array.isArray(value)
		? value.map((one) => map(one as Plain))
		: map(value as Plain);

const NOT_FOR_TENANTS = [
	"MemberListResponse.members",
	...[
		"dbSize raftIndex raftAppliedIndex errors dbSizeInUse isLearner dbSizeQuota downgradeInfo",
	].flatMap((names) =>
		names.split(" ").map((name) => `StatusResponse.${name}`),
	),
];

/**
 * The core's message as a tenant is to see it.
 * @throws Refused with a part of the reason
 */
export function toTenantModel(
	protobuf: Protobuf,
	type: string,
	message: Plain,
): Plain {
	const moved: Plain = {};
	for (const field of protobuf.fields(type)) {
		const name = `${short(type)}.${field.name}`;
		const value = message[field.name];
		if (name === "KeyValue.key") {
			const text = String(value ?? "");
			if (!isOwn(text)) throw new Refused("KeyValue.key");
			moved[field.name] = text.slice(PREFIX.length);
		}
		if (value === undefined || NOT_FOR_TENANTS.includes(name)) continue;
		const { typeName } = field;
		if (name === "LeaseTimeToLiveResponse.keys") {
			const keys = (value as string[]).filter(isOwn);
			if (keys.length > 0)
				moved[field.name] = keys.map((key) => key.slice(PREFIX.length));
		} else if (name === "LeaseLeasesResponse.leases") {
			const leases = (value as Plain[])
				.map((lease) => tenantLease(String(lease.ID ?? "0")))
				.filter((id) => id !== undefined && id !== "0")
				.map((id) => ({ ID: id as string }));
			if (leases.length > 0) moved[field.name] = leases;
		} else if (name === "KeyValue.lease") {
			const id = tenantLease(String(value));
			if (id !== undefined) moved[field.name] = id;
		} else if (/^Lease\w+Response\.ID$/.test(name)) {
			const id = tenantLease(String(value));
			if (id === undefined) throw new Refused("lease");
			moved[field.name] = id;
		} else if (name === "ResponseHeader.cluster_id")
			moved[field.name] = CLUSTER_ID;
		else if (
			["ResponseHeader.member_id", "StatusResponse.leader"].includes(name)
		)
			moved[field.name] = MEMBER_ID;
		else if (typeName && field.type === "message")
			moved[field.name] = each(value, (one) =>
				toTenantModel(protobuf, typeName, one),
			);
		else if (name !== "KeyValue.key") moved[field.name] = value;
	}
	if (type === "etcdserverpb.StatusResponse")
		return { ...moved, dbSize: "1", dbSizeInUse: "1" };
	const member = { ID: MEMBER_ID, name: "etcdproxy", clientURLs: [URL] };
	if (type === "etcdserverpb.MemberListResponse")
		return { ...moved, members: [member] };
	return moved;
}

const isOwn = (key: string) =>
	key.startsWith(PREFIX) && key.length > PREFIX.length;

function tenantLease(id: string): string | undefined {
	if (id === "0") return id;
	const own = BigInt(id) - LEASES;
	return own > 0n && own < 2n ** 21n ? String(own) : undefined;
}

/** What of a message to the core is not a tenant's: keys and ends of ranges that are not behind its prefix. */
export function foreign(
	protobuf: Protobuf,
	type: string,
	message: Plain,
): string[] {
	return protobuf.fields(type).flatMap((field) => {
		const value = message[field.name];
		const name = `${short(type)}.${field.name}`;
		if (/\.key$/.test(name))
			return isOwn(String(value ?? "")) ? [] : [`${name} ${value}`];
		if (value === undefined) return [];
		if (/\.range_end$/.test(name))
			return value === PREFIX_END || isOwn(String(value))
				? []
				: [`${name} ${value}`];
		const { typeName } = field;
		if (field.type !== "message" || !typeName) return [];
		return [value]
			.flat()
			.flatMap((one) => foreign(protobuf, typeName, one as Plain));
	});
}

// Anything that can be said in etcd's API.

const anyKey = fc.oneof(
	fc.constantFrom("", "\0", "a", "b", "\0\0", "\0a", "\xff", "\xff\xff", "/"),
	fc.constantFrom(PREFIX, PREFIX_END, `${PREFIX}a`, "/sample", "/other/x"),
	fc.string({ maxLength: 200, unit: "binary-ascii" }),
);
const anyBytes = fc.oneof(
	anyKey,
	fc.nat({ max: 40_000 }).map((length) => "v".repeat(length)),
);
const anyLong = fc.oneof(
	fc.constantFrom("0", "1", "127", "128", "-1", String(LAST_LEASE)),
	fc.constantFrom(String(LAST_LEASE + 1n), String(LAST_LEASE + 2n)),
	fc.constantFrom("9223372036854775807", "-9223372036854775808"),
	fc.constantFrom(coreLease(1), coreLease(77), coreLease(NO_SUCH_LEASE)),
	fc.bigInt({ min: 0n, max: 2n ** 22n }).map(String),
	fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String),
);
const anyUnsignedLong = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(String);
const anyEnum = fc.oneof(fc.nat({ max: 5 }), fc.nat({ max: 2 ** 31 - 1 }));

/** How deep a Txn may be within Txns, here. */
const MAX_DEPTH = 4;

/** Any message of a type. @param prefixed whether keys are mostly those of the tenant in the core */
export function anyMessage(
	protobuf: Protobuf,
	type: string,
	prefixed: boolean,
	depth = 0,
): fc.Arbitrary<Plain> {
	const key = prefixed
		? fc.oneof(
				{
					weight: 30,
					arbitrary: anyKey.map((key) => `${PREFIX}${key || "x"}`),
				},
				{ weight: 1, arbitrary: anyKey },
			)
		: fc.oneof(
				{ weight: 1, arbitrary: fc.constant("") },
				{ weight: 30, arbitrary: anyKey.map((key) => key || "k") },
			);
	const lease = prefixed
		? fc.oneof(
				{ weight: 20, arbitrary: fc.nat({ max: 5 }).map(coreLease) },
				{ weight: 1, arbitrary: anyLong },
			)
		: anyLong;
	const anyValue = (field: ReturnType<Protobuf["fields"]>[number]) => {
		const { typeName = "" } = field;
		if (field.name === "key" || field.name === "keys") return key;
		if (field.name === "ID" || field.name === "lease") return lease;
		switch (field.type) {
			case "bytes":
				return field.name === "value" ? anyBytes : anyKey;
			case "string":
				return fc.string();
			case "bool":
				return fc.boolean();
			case "enum":
				return anyEnum;
			case "uint64":
				return anyUnsignedLong;
			case "message":
				return anyMessage(protobuf, typeName, prefixed, depth + 1);
			default:
				return anyLong;
		}
	};
	const fields = protobuf
		.fields(type)
		.filter(({ name }) => depth < 2 * MAX_DEPTH || !name.endsWith("_txn"));
	const shape: Record<string, fc.Arbitrary<Value>> = {};
	const required: string[] = [];
	for (const field of fields.filter(({ oneof }) => !oneof)) {
		const one: fc.Arbitrary<Value> = anyValue(field);
		const most = depth > 3 ? 1 : 3;
		shape[field.name] =
			field.cardinality === "repeated"
				? fc.array(one, { maxLength: most })
				: one;
		if (field.name === "key") required.push(field.name);
	}
	const message = fc.record<Plain>(shape, { requiredKeys: required });
	const members = fields.filter(({ oneof }) => oneof);
	if (members.length === 0) return message;
	const union = fc.oneof(
		{ weight: 1, arbitrary: fc.constant<Plain>({}) },
		...members.map((field) => ({
			weight: 20,
			arbitrary: (anyValue(field) as fc.Arbitrary<Value>).map(
				(value): Plain => ({ [field.name]: value }),
			),
		})),
	);
	return fc.tuple(message, union).map(([message, member]) => ({
		...message,
		...member,
	}));
}
