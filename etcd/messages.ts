/**
 * The messages of etcd's API v3 that tenants may use, and what becomes of each field of them: schema.ts has the words.
 * A later etcd's fields are refused in requests and dropped from responses until they are decided on here. Pure.
 */
import {
	bool,
	bytes,
	clusterId,
	comparedLease,
	dropped,
	enumeration,
	enumerations,
	int64,
	keptLease,
	key,
	lease,
	type Message,
	memberId,
	message,
	messages,
	messagesUnlessEmpty,
	newLease,
	oneof,
	ownKey,
	ownKeys,
	ownLease,
	rangeEnd,
	request,
	response,
	string,
	uint64,
	watchedKey,
} from "./schema.ts";

// Of both directions, and of responses. A newer etcd's fields do not reach tenants until they are decided on here.

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L417
const ResponseHeader = response("ResponseHeader", {
	cluster_id: clusterId(1),
	member_id: memberId(2),
	revision: int64(3),
	raft_term: uint64(4),
});
const header = message(1, ResponseHeader);

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/mvccpb/kv.proto#L6
const KeyValue = response("KeyValue", {
	key: ownKey(1),
	create_revision: int64(2),
	mod_revision: int64(3),
	version: int64(4),
	value: bytes(5),
	// A lease from before the tenant came here by way of the gateway still ends the key, but cannot be named.
	lease: keptLease(6),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/mvccpb/kv.proto#L25
const Event = response("Event", {
	type: enumeration(1),
	kv: message(2, KeyValue),
	prev_kv: message(3, KeyValue),
});

// KV

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L434
export const RangeRequest = request("RangeRequest", {
	key: key(1),
	range_end: rangeEnd(2),
	limit: int64(3),
	revision: int64(4),
	sort_order: enumeration(5),
	sort_target: enumeration(6),
	serializable: bool(7),
	keys_only: bool(8),
	count_only: bool(9),
	min_mod_revision: int64(10),
	max_mod_revision: int64(11),
	min_create_revision: int64(12),
	max_create_revision: int64(13),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L505
export const RangeResponse = response("RangeResponse", {
	header,
	kvs: messages(2, KeyValue),
	more: bool(3),
	count: int64(4),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L1443
export const RangeStreamResponse = response("RangeStreamResponse", {
	range_response: message(1, RangeResponse),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L520
export const PutRequest = request("PutRequest", {
	key: key(1),
	value: bytes(2),
	lease: lease(3),
	prev_kv: bool(4),
	ignore_value: bool(5),
	ignore_lease: bool(6),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L544
export const PutResponse = response("PutResponse", {
	header,
	prev_kv: message(2, KeyValue),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L552
export const DeleteRangeRequest = request("DeleteRangeRequest", {
	key: key(1),
	range_end: rangeEnd(2),
	prev_kv: bool(3),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L569
export const DeleteRangeResponse = response("DeleteRangeResponse", {
	header,
	deleted: int64(2),
	prev_kvs: messages(3, KeyValue),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L579
const RequestOp = request(
	"RequestOp",
	oneof("request", {
		request_range: message(1, RangeRequest),
		request_put: message(2, PutRequest),
		request_delete_range: message(3, DeleteRangeRequest),
		request_txn: message(4, () => TxnRequest),
	}),
	// As etcd says it.
	"etcdserver: key not found",
);

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L590
const ResponseOp = response(
	"ResponseOp",
	oneof("response", {
		response_range: message(1, RangeResponse),
		response_put: message(2, PutResponse),
		response_delete_range: message(3, DeleteRangeResponse),
		response_txn: message(4, () => TxnResponse),
	}),
);

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L602
const Compare = request("Compare", {
	result: enumeration(1),
	target: enumeration(2),
	key: key(3),
	...oneof("target_union", {
		version: int64(4),
		create_revision: int64(5),
		mod_revision: int64(6),
		value: bytes(7),
		lease: comparedLease(8),
	}),
	range_end: rangeEnd(64),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L663
export const TxnRequest: Message = request("TxnRequest", {
	compare: messages(1, Compare),
	success: messages(2, RequestOp),
	failure: messages(3, RequestOp),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L678
export const TxnResponse: Message = response("TxnResponse", {
	header,
	succeeded: bool(2),
	responses: messages(3, ResponseOp),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L691
export const CompactionRequest = request("CompactionRequest", {
	revision: int64(1),
	physical: bool(2),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L702
export const CompactionResponse = response("CompactionResponse", { header });

// Watch

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L771
const WatchCreateRequest = request("WatchCreateRequest", {
	key: watchedKey(1),
	range_end: rangeEnd(2),
	start_revision: int64(3),
	progress_notify: bool(4),
	filters: enumerations(5),
	prev_kv: bool(6),
	watch_id: int64(7),
	fragment: bool(8),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L820
const WatchCancelRequest = request("WatchCancelRequest", {
	watch_id: int64(1),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L828
const WatchProgressRequest = request("WatchProgressRequest", {});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L761
export const WatchRequest = request(
	"WatchRequest",
	oneof("request_union", {
		create_request: message(1, WatchCreateRequest),
		cancel_request: message(2, WatchCancelRequest),
		progress_request: message(3, WatchProgressRequest),
	}),
	// etcd ignores it, but writes a line into its log each time.
	"etcdproxy: WatchRequest: neither creates nor cancels a watch, nor asks for progress",
);

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L832
export const WatchResponse = response("WatchResponse", {
	header,
	watch_id: int64(2),
	created: bool(3),
	canceled: bool(4),
	compact_revision: int64(5),
	cancel_reason: string(6),
	fragment: bool(7),
	events: messages(11, Event),
});

// Lease

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L869
export const LeaseGrantRequest = request("LeaseGrantRequest", {
	TTL: int64(1),
	ID: newLease(2),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L878
export const LeaseGrantResponse = response("LeaseGrantResponse", {
	header,
	ID: ownLease(2),
	TTL: int64(3),
	error: string(4),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L889
export const LeaseRevokeRequest = request("LeaseRevokeRequest", {
	ID: lease(1),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L896
export const LeaseRevokeResponse = response("LeaseRevokeResponse", { header });

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L924
export const LeaseKeepAliveRequest = request("LeaseKeepAliveRequest", {
	ID: lease(1),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L930
export const LeaseKeepAliveResponse = response("LeaseKeepAliveResponse", {
	header,
	ID: ownLease(2),
	TTL: int64(3),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L940
export const LeaseTimeToLiveRequest = request("LeaseTimeToLiveRequest", {
	ID: lease(1),
	keys: bool(2),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L948
export const LeaseTimeToLiveResponse = response("LeaseTimeToLiveResponse", {
	header,
	ID: ownLease(2),
	TTL: int64(3),
	grantedTTL: int64(4),
	// The core's operator can attach keys of others to any lease.
	keys: ownKeys(5),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L962
export const LeaseLeasesRequest = request("LeaseLeasesRequest", {});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L966
const LeaseStatus = response("LeaseStatus", { ID: keptLease(1) });

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L973
export const LeaseLeasesResponse = response("LeaseLeasesResponse", {
	header,
	leases: messagesUnlessEmpty(2, LeaseStatus),
});

// Cluster and Maintenance

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L1045
export const MemberListRequest = request("MemberListRequest", {
	linearizable: bool(1),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L1051
export const MemberListResponse = response("MemberListResponse", {
	header,
	// The one that there is for a tenant is appended.
	members: dropped(2, "message", true),
});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L1177
export const StatusRequest = request("StatusRequest", {});

// https://github.com/etcd-io/etcd/blob/v3.7.3/api/etcdserverpb/rpc.proto#L1181
export const StatusResponse = response("StatusResponse", {
	header,
	version: string(2),
	// The two sizes are appended, as 1.
	dbSize: dropped(3, "int64"),
	leader: memberId(4),
	raftIndex: dropped(5, "uint64"),
	raftTerm: uint64(6),
	raftAppliedIndex: dropped(7, "uint64"),
	errors: dropped(8, "string", true),
	dbSizeInUse: dropped(9, "int64"),
	isLearner: dropped(10, "bool"),
	storageVersion: string(11),
	dbSizeQuota: dropped(12, "int64"),
	downgradeInfo: dropped(13, "message"),
});
