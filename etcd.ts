/**
 * What a tenant may ask of the core etcd: each RPC of etcd's API v3, served or refused, and its messages moved into and
 * out of the tenant's part of the core. etcd/messages.ts has the messages, etcd/codec.ts moves them. Pure.
 */
import {
	isSet,
	rewriteFields,
	rewriteRequest,
	rewriteResponse,
} from "./etcd/codec.ts";
import {
	type Keyspace,
	keyspace,
	lengthDelimited,
	memberIdOf,
} from "./etcd/keyspace.ts";
import * as etcd from "./etcd/messages.ts";
import type { Message } from "./etcd/schema.ts";
import { Code } from "./grpc.ts";

export { completeFields } from "./etcd/codec.ts";
export { LEASE_MAX } from "./etcd/keyspace.ts";
export { Code, Status } from "./grpc.ts";

export interface Tenant extends Keyspace {
	/** A request, behind gRPC's prefix, whose answer has a header and costs the core next to nothing. */
	readonly headerRequest: Uint8Array;
	/** The field `members` of a MemberListResponse. */
	readonly members: Uint8Array;
}

/** An RPC that is served. */
export interface ServedMethod {
	readonly path: string;
	readonly kind: "unary" | "serverStream" | "bidi";
	readonly request: Message;
	readonly response: Message;
	/** Whether watchChange() can tell something about its messages. */
	readonly watch?: true;
	/** What the core is asked in its place; the answer is read as a `response`. */
	readonly instead?: {
		readonly path: string;
		/** Behind gRPC's prefix. */
		readonly request: (tenant: Tenant) => Uint8Array;
	};
	/** Fields that the response gets. */
	readonly append?: (tenant: Tenant) => Uint8Array;
}

export interface RefusedMethod {
	readonly path: string;
	readonly code: Code;
	/** Why, and what to do instead. */
	readonly refused: string;
}

export type Method = ServedMethod | RefusedMethod;

const unary = (
	rpc: string,
	request: Message,
	response: Message,
): ServedMethod => ({
	path: `/etcdserverpb.${rpc}`,
	kind: "unary",
	request,
	response,
});

/** Of the RangeResponse only field 1 is passed on, the header, which is field 1 of every response. */
const headerOnly: ServedMethod["instead"] = {
	path: "/etcdserverpb.KV/Range",
	request: ({ headerRequest }) => headerRequest,
};

const served: ServedMethod[] = [
	unary("KV/Range", etcd.RangeRequest, etcd.RangeResponse),
	{
		...unary("KV/RangeStream", etcd.RangeRequest, etcd.RangeStreamResponse),
		kind: "serverStream",
	},
	unary("KV/Put", etcd.PutRequest, etcd.PutResponse),
	unary("KV/DeleteRange", etcd.DeleteRangeRequest, etcd.DeleteRangeResponse),
	unary("KV/Txn", etcd.TxnRequest, etcd.TxnResponse),
	{
		...unary("KV/Compact", etcd.CompactionRequest, etcd.CompactionResponse),
		// Without effect: it would be for all tenants, and is the core's operator's to do.
		instead: headerOnly,
	},
	{
		...unary("Watch/Watch", etcd.WatchRequest, etcd.WatchResponse),
		kind: "bidi",
		watch: true,
	},
	unary("Lease/LeaseGrant", etcd.LeaseGrantRequest, etcd.LeaseGrantResponse),
	unary("Lease/LeaseRevoke", etcd.LeaseRevokeRequest, etcd.LeaseRevokeResponse),
	{
		...unary(
			"Lease/LeaseKeepAlive",
			etcd.LeaseKeepAliveRequest,
			etcd.LeaseKeepAliveResponse,
		),
		kind: "bidi",
	},
	unary(
		"Lease/LeaseTimeToLive",
		etcd.LeaseTimeToLiveRequest,
		etcd.LeaseTimeToLiveResponse,
	),
	unary("Lease/LeaseLeases", etcd.LeaseLeasesRequest, etcd.LeaseLeasesResponse),
	{
		...unary(
			"Cluster/MemberList",
			etcd.MemberListRequest,
			etcd.MemberListResponse,
		),
		// The gateway is all of the cluster that there is for a tenant.
		instead: headerOnly,
		append: ({ members }) => members,
	},
	{
		...unary("Maintenance/Status", etcd.StatusRequest, etcd.StatusResponse),
		// dbSize and dbSizeInUse: etcdctl divides by them.
		append: () => Uint8Array.of(0x18, 1, 0x48, 1),
	},
];

const refuse = (
	service: string,
	rpcs: string,
	code: Code,
	why: string,
): RefusedMethod[] =>
	rpcs.split(" ").map((rpc) => ({
		path: `/${service}/${rpc}`,
		code,
		refused: `etcdproxy: ${rpc}: ${why}`,
	}));

const refused: RefusedMethod[] = [
	...refuse(
		"etcdserverpb.Cluster",
		"MemberAdd MemberRemove MemberUpdate MemberPromote",
		Code.PERMISSION_DENIED,
		"members are the core etcd's operator's; MemberList shows this gateway",
	),
	...refuse(
		"etcdserverpb.Maintenance",
		"Snapshot",
		Code.PERMISSION_DENIED,
		"a snapshot has the keys of all tenants; read your own with Range or RangeStream (etcdctl get --prefix /), or ask the core etcd's operator",
	),
	...refuse(
		"etcdserverpb.Maintenance",
		"Hash HashKV",
		Code.PERMISSION_DENIED,
		"a hash is over the keys of all tenants; compare your own with Range",
	),
	...refuse(
		"etcdserverpb.Maintenance",
		"Alarm Defragment MoveLeader Downgrade",
		Code.PERMISSION_DENIED,
		"maintenance is for the core etcd's operator, at the core itself; Status tells its version",
	),
	...refuse(
		"etcdserverpb.Auth",
		"AuthEnable AuthDisable AuthStatus Authenticate UserAdd UserGet UserList UserDelete UserChangePassword UserGrantRole UserRevokeRole RoleAdd RoleGet RoleList RoleDelete RoleGrantPermission RoleRevokePermission",
		Code.PERMISSION_DENIED,
		"there are no users and roles here: the client certificate is what lets you in, so connect without user and password",
	),
	...refuse(
		"v3lockpb.Lock",
		"Lock Unlock",
		Code.UNIMPLEMENTED,
		"is not served; lock with a lease and a transaction, as the package concurrency of etcd's client does",
	),
	...refuse(
		"v3electionpb.Election",
		"Campaign Proclaim Leader Observe Resign",
		Code.UNIMPLEMENTED,
		"is not served; elect with a lease and a transaction, as the package concurrency of etcd's client does",
	),
	...refuse(
		"grpc.health.v1.Health",
		"Check List Watch",
		Code.UNIMPLEMENTED,
		"is not served; read a key (etcdctl endpoint health)",
	),
];

/** Every RPC of etcd 3.7, by its path. */
export const methods: ReadonlyMap<string, Method> = new Map(
	[...served, ...refused].map((method) => [method.path, method]),
);

/** All others. */
export const UNKNOWN_METHOD: RefusedMethod = {
	path: "unknown",
	code: Code.UNIMPLEMENTED,
	refused:
		"etcdproxy: not an RPC of etcd 3.7; served are its services KV, Watch and Lease, MemberList, and Status",
};

/**
 * A tenant.
 * @param prefix of its keys in the core, such as "/sample-apiserver/"; no other tenant's may begin with it
 * @param url what MemberList says where the tenant's etcd is
 * @throws RangeError when the prefix is empty
 */
export function tenant(prefix: string, url: string): Tenant {
	const space = keyspace(prefix);
	const text = new TextEncoder();
	// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L980
	const member = [
		8,
		...memberIdOf(space),
		...lengthDelimited(2, text.encode("etcdproxy")),
		...lengthDelimited(4, text.encode(url)),
	];
	// {key: "\0", serializable: true, count_only: true}
	const first = Uint8Array.from([0x0a, 1, 0, 0x38, 1, 0x48, 1]);
	return {
		...space,
		headerRequest: rewriteRequest(etcd.RangeRequest, space, first, 0, 7, 0),
		members: Uint8Array.from(lengthDelimited(2, member)),
	};
}

/** A RangeRequest for one key of the core, without gRPC's prefix. */
export const rangeRequest = (key: string): Uint8Array =>
	Uint8Array.from(lengthDelimited(1, new TextEncoder().encode(key)));

/** Bytes that toTenant() needs to be free in front of gRPC's prefix. */
export const SLACK = 0;

/**
 * A tenant's message, buffer[start, end), checked, and as it is for the core, behind gRPC's prefix. Its keys are moved
 * behind the tenant's prefix; nothing else is addressed.
 * @param leaseId for a LeaseGrant without an ID: 1 .. LEASE_MAX
 * @throws Status INVALID_ARGUMENT
 */
export function toCore(
	method: ServedMethod,
	tenant: Tenant,
	buffer: Uint8Array,
	start: number,
	end: number,
	leaseId: number,
): Uint8Array {
	const { request, instead } = method;
	const rewritten = rewriteRequest(
		request,
		tenant,
		buffer,
		start,
		end,
		leaseId,
	);
	return instead ? instead.request(tenant) : rewritten;
}

const NOTHING = new Uint8Array(0);

/**
 * The core's message, buffer[start, end) behind gRPC's prefix, as it is for the tenant, behind gRPC's prefix. The buffer
 * is the callee's: the message is rewritten where it is, except that one which gets longer is written to a new array.
 * @throws Status INTERNAL when it is not as it should be, or names a key that is not the tenant's
 */
export function toTenant(
	method: ServedMethod,
	tenant: Tenant,
	buffer: Uint8Array,
	start: number,
	end: number,
): Uint8Array {
	const { response, append } = method;
	const appended = append ? append(tenant) : NOTHING;
	return rewriteResponse(response, tenant, buffer, start, end, appended);
}

/**
 * As toTenant(), for a large message that is still coming in: some of its fields, buffer[start, end), as completeFields()
 * finds them. Without gRPC's prefix, which is the caller's to put before all the parts.
 * @throws Status INTERNAL
 */
export const partToTenant = (
	{ response }: ServedMethod,
	tenant: Tenant,
	buffer: Uint8Array,
	start: number,
	end: number,
): Uint8Array => rewriteFields(response, tenant, buffer, start, end);

const CREATE_REQUEST = 0x0a;
const CANCELED = 4;
const COMPACT_REVISION = 5;

/**
 * By how many the watches of a stream change with a WatchRequest or a WatchResponse, buffer[start, end): 1 is asked for,
 * or -1 has ended or could not be begun. Before toCore() and toTenant(), which check the message. One whose revision has
 * been compacted stays with etcd until it is cancelled, and is said to have ended then once more.
 * @throws Status INTERNAL
 */
export function watchChange(
	direction: "request" | "response",
	buffer: Uint8Array,
	start: number,
	end: number,
): number {
	if (direction === "request")
		return start < end && buffer[start] === CREATE_REQUEST ? 1 : 0;
	const says = (field: number) =>
		isSet(etcd.WatchResponse, field, buffer, start, end);
	return says(CANCELED) && !says(COMPACT_REVISION) ? -1 : 0;
}
