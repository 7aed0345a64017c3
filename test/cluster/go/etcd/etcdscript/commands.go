package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	// For call: the services that etcd has besides those of etcdserverpb.
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	_ "google.golang.org/grpc/health/grpc_health_v1"
)

// execute runs a command.
// It returns what is to be written as JSON.
func (s *session) execute(ctx context.Context, command command) (any, error) {
	arguments := command.arguments
	switch command.op {
	case "put":
		request, err := parse(&pb.PutRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		response, err := s.client.Do(ctx, putOp(request))
		return rendered((*pb.PutResponse)(response.Put()), err)
	case "get", "rangeStream":
		options, err := rangeOptions(arguments)
		if err != nil {
			return nil, err
		}
		request, err := parse(&pb.RangeRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		options = append(getOptions(request), options...)
		if command.op == "rangeStream" {
			return s.rangeStream(ctx, string(request.Key), options)
		}
		response, err := s.client.Get(ctx, string(request.Key), options...)
		return rendered((*pb.RangeResponse)(response), err)
	case "delete":
		options, err := rangeOptions(arguments)
		if err != nil {
			return nil, err
		}
		request, err := parse(&pb.DeleteRangeRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		response, err := s.client.Delete(ctx, string(request.Key), append(deleteOptions(request), options...)...)
		return rendered((*pb.DeleteRangeResponse)(response), err)
	case "txn":
		request, err := parse(&pb.TxnRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		op, err := txnOp(request)
		if err != nil {
			return nil, err
		}
		response, err := s.client.Do(ctx, op)
		return rendered((*pb.TxnResponse)(response.Txn()), err)
	case "compact":
		request, err := parse(&pb.CompactionRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		var options []clientv3.CompactOption
		if request.Physical {
			options = append(options, clientv3.WithCompactPhysical())
		}
		response, err := s.client.Compact(ctx, request.Revision, options...)
		return rendered((*pb.CompactionResponse)(response), err)
	case "watch":
		return s.watch(ctx, arguments)
	case "progress":
		return s.progress(ctx, arguments)
	case "cancel":
		return s.cancel(arguments)
	case "grant":
		request, err := parse(&pb.LeaseGrantRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		if request.ID != 0 {
			return nil, invalidCommand{errors.New("grant: the client chooses no ID")}
		}
		response, err := s.client.Grant(ctx, request.TTL)
		if err != nil {
			return nil, err
		}
		return render((&pb.LeaseGrantResponse{
			Header: response.ResponseHeader, ID: int64(response.ID), TTL: response.TTL, Error: response.Error,
		}).ProtoReflect()), nil
	case "revoke":
		request, err := parse(&pb.LeaseRevokeRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		response, err := s.client.Revoke(ctx, clientv3.LeaseID(request.ID))
		return rendered((*pb.LeaseRevokeResponse)(response), err)
	case "keepAliveOnce":
		request, err := parse(&pb.LeaseKeepAliveRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		response, err := s.client.KeepAliveOnce(ctx, clientv3.LeaseID(request.ID))
		if err != nil {
			return nil, err
		}
		return render((&pb.LeaseKeepAliveResponse{
			Header: response.ResponseHeader, ID: int64(response.ID), TTL: response.TTL,
		}).ProtoReflect()), nil
	case "timeToLive":
		request, err := parse(&pb.LeaseTimeToLiveRequest{}, arguments)
		if err != nil {
			return nil, err
		}
		var options []clientv3.LeaseOption
		if request.Keys {
			options = append(options, clientv3.WithAttachedKeys())
		}
		response, err := s.client.TimeToLive(ctx, clientv3.LeaseID(request.ID), options...)
		if err != nil {
			return nil, err
		}
		return render((&pb.LeaseTimeToLiveResponse{
			Header: response.ResponseHeader, ID: int64(response.ID), TTL: response.TTL,
			GrantedTTL: response.GrantedTTL, Keys: response.Keys,
		}).ProtoReflect()), nil
	case "leases":
		if _, err := parse(&pb.LeaseLeasesRequest{}, arguments); err != nil {
			return nil, err
		}
		response, err := s.client.Leases(ctx)
		if err != nil {
			return nil, err
		}
		list := &pb.LeaseLeasesResponse{Header: response.ResponseHeader}
		for _, lease := range response.Leases {
			list.Leases = append(list.Leases, &pb.LeaseStatus{ID: int64(lease.ID)})
		}
		return render(list.ProtoReflect()), nil
	case "status":
		if _, err := parse(&pb.StatusRequest{}, arguments); err != nil {
			return nil, err
		}
		response, err := s.client.Status(ctx, s.endpoint)
		return rendered((*pb.StatusResponse)(response), err)
	case "memberList":
		// The client sets "linearizable" by itself.
		if _, err := parse(&pb.MemberListRequest{}, arguments); err != nil {
			return nil, err
		}
		response, err := s.client.MemberList(ctx)
		return rendered((*pb.MemberListResponse)(response), err)
	case "snapshot":
		if _, err := parse(&pb.SnapshotRequest{}, arguments); err != nil {
			return nil, err
		}
		return s.snapshot(ctx)
	case "call":
		return s.call(ctx, arguments)
	}
	return nil, invalidCommand{fmt.Errorf("op: there is no %q", command.op)}
}

func parse[Request proto.Message](request Request, arguments map[string]any) (Request, error) {
	if err := fill(request.ProtoReflect(), arguments); err != nil {
		return request, invalidCommand{err}
	}
	return request, nil
}

// rendered takes what the client returns; the response is nil when there is an error.
func rendered(response proto.Message, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return render(response.ProtoReflect()), nil
}

// rangeOptions takes the client's own ways to name a range; they go after all others.
func rangeOptions(arguments map[string]any) ([]clientv3.OpOption, error) {
	var prefix, fromKey bool
	if err := errors.Join(take(arguments, "prefix", &prefix), take(arguments, "from_key", &fromKey)); err != nil {
		return nil, err
	}
	switch {
	case prefix && fromKey:
		return nil, invalidCommand{errors.New("prefix and from_key: only one of them")}
	case prefix:
		return []clientv3.OpOption{clientv3.WithPrefix()}, nil
	case fromKey:
		return []clientv3.OpOption{clientv3.WithFromKey()}, nil
	}
	return nil, nil
}

func getOptions(request *pb.RangeRequest) []clientv3.OpOption {
	options := []clientv3.OpOption{
		clientv3.WithLimit(request.Limit),
		clientv3.WithRev(request.Revision),
		clientv3.WithMinModRev(request.MinModRevision),
		clientv3.WithMaxModRev(request.MaxModRevision),
		clientv3.WithMinCreateRev(request.MinCreateRevision),
		clientv3.WithMaxCreateRev(request.MaxCreateRevision),
	}
	if len(request.RangeEnd) > 0 {
		options = append(options, clientv3.WithRange(string(request.RangeEnd)))
	}
	if request.SortOrder != 0 || request.SortTarget != 0 {
		options = append(options, clientv3.WithSort(clientv3.SortTarget(request.SortTarget), clientv3.SortOrder(request.SortOrder)))
	}
	if request.Serializable {
		options = append(options, clientv3.WithSerializable())
	}
	if request.KeysOnly {
		options = append(options, clientv3.WithKeysOnly())
	}
	if request.CountOnly {
		options = append(options, clientv3.WithCountOnly())
	}
	return options
}

func deleteOptions(request *pb.DeleteRangeRequest) []clientv3.OpOption {
	var options []clientv3.OpOption
	if len(request.RangeEnd) > 0 {
		options = append(options, clientv3.WithRange(string(request.RangeEnd)))
	}
	if request.PrevKv {
		options = append(options, clientv3.WithPrevKV())
	}
	return options
}

func putOp(request *pb.PutRequest) clientv3.Op {
	var options []clientv3.OpOption
	if request.Lease != 0 {
		options = append(options, clientv3.WithLease(clientv3.LeaseID(request.Lease)))
	}
	if request.PrevKv {
		options = append(options, clientv3.WithPrevKV())
	}
	if request.IgnoreValue {
		options = append(options, clientv3.WithIgnoreValue())
	}
	if request.IgnoreLease {
		options = append(options, clientv3.WithIgnoreLease())
	}
	return clientv3.OpPut(string(request.Key), string(request.Value), options...)
}

func txnOp(request *pb.TxnRequest) (clientv3.Op, error) {
	var compares []clientv3.Cmp
	for _, compare := range request.Compare {
		compares = append(compares, clientv3.FromCompare(compare))
	}
	success, err := ops(request.Success)
	if err != nil {
		return clientv3.Op{}, err
	}
	failure, err := ops(request.Failure)
	return clientv3.OpTxn(compares, success, failure), err
}

func ops(requests []*pb.RequestOp) ([]clientv3.Op, error) {
	var list []clientv3.Op
	for _, request := range requests {
		switch request := request.Request.(type) {
		case *pb.RequestOp_RequestRange:
			list = append(list, clientv3.OpGet(string(request.RequestRange.Key), getOptions(request.RequestRange)...))
		case *pb.RequestOp_RequestPut:
			list = append(list, putOp(request.RequestPut))
		case *pb.RequestOp_RequestDeleteRange:
			list = append(list, clientv3.OpDelete(string(request.RequestDeleteRange.Key), deleteOptions(request.RequestDeleteRange)...))
		case *pb.RequestOp_RequestTxn:
			op, err := txnOp(request.RequestTxn)
			if err != nil {
				return nil, err
			}
			list = append(list, op)
		default:
			return nil, invalidCommand{errors.New("txn: an operation without a request")}
		}
	}
	return list, nil
}

func (s *session) rangeStream(ctx context.Context, key string, options []clientv3.OpOption) (any, error) {
	stream, err := s.client.GetStream(ctx, key, options...)
	if err != nil {
		return nil, err
	}
	chunks := []any{}
	for chunk := range stream {
		if err := chunk.Err(); err != nil {
			return nil, err
		}
		chunks = append(chunks, render(chunk.RangeResponse.ProtoReflect()))
	}
	return map[string]any{"chunks": chunks}, nil
}

func (s *session) snapshot(ctx context.Context) (any, error) {
	response, err := s.client.SnapshotWithVersion(ctx)
	if err != nil {
		return nil, err
	}
	defer response.Snapshot.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, response.Snapshot)
	return map[string]any{
		"header":  render(response.Header.ProtoReflect()),
		"version": response.Version,
		"size":    size,
		"sha256":  fmt.Sprintf("%x", hash.Sum(nil)),
	}, err
}

// call sends to any method. What this program does not know of is sent as raw bytes, and its responses are not decoded.
func (s *session) call(ctx context.Context, arguments map[string]any) (any, error) {
	var path, raw string
	var request, headers map[string]any
	var requests []any
	var count json.Number
	_, isRaw := arguments["raw"]
	err := errors.Join(
		take(arguments, "method", &path),
		take(arguments, "request", &request),
		take(arguments, "requests", &requests),
		take(arguments, "raw", &raw),
		take(arguments, "metadata", &headers),
		take(arguments, "count", &count),
	)
	if err != nil {
		return nil, err
	}
	for name := range arguments {
		return nil, invalidCommand{fmt.Errorf("call: there is no %q", name)}
	}
	for name, value := range headers {
		ctx = metadata.AppendToOutgoingContext(ctx, name, fmt.Sprint(value))
	}

	newRequest := func() proto.Message { return &emptypb.Empty{} }
	newResponse := newRequest
	about := grpc.StreamDesc{}
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "."))
	if found, err := protoregistry.GlobalFiles.FindDescriptorByName(name); err == nil {
		method, ok := found.(protoreflect.MethodDescriptor)
		if !ok {
			return nil, invalidCommand{fmt.Errorf("call: %s is no method", path)}
		}
		about.ClientStreams, about.ServerStreams = method.IsStreamingClient(), method.IsStreamingServer()
		input, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
		if err != nil {
			return nil, err
		}
		output, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
		if err != nil {
			return nil, err
		}
		newRequest = func() proto.Message { return input.New().Interface() }
		newResponse = func() proto.Message { return output.New().Interface() }
	}

	var messages []proto.Message
	if isRaw {
		bytes, err := toBytes(raw)
		if err != nil {
			return nil, invalidCommand{err}
		}
		// Unknown fields are written as they are, whether they are well-formed or not.
		message := &emptypb.Empty{}
		message.ProtoReflect().SetUnknown(bytes)
		messages = append(messages, message)
	} else {
		if requests == nil {
			requests = []any{request}
		}
		for _, each := range requests {
			fields, ok := each.(map[string]any)
			if !ok {
				return nil, invalidCommand{fmt.Errorf("requests: %v is no object", each)}
			}
			message, err := parse(newRequest(), fields)
			if err != nil {
				return nil, err
			}
			messages = append(messages, message)
		}
	}

	connection := s.client.ActiveConnection()
	if !about.ClientStreams && !about.ServerStreams {
		if len(messages) != 1 {
			return nil, invalidCommand{errors.New("requests: this method takes one")}
		}
		response := newResponse()
		err := connection.Invoke(ctx, path, messages[0], response)
		return rendered(response, err)
	}
	stream, err := connection.NewStream(ctx, &about, path)
	if err != nil {
		return nil, err
	}
	for _, message := range messages {
		// After io.EOF, RecvMsg tells why.
		if err := stream.SendMsg(message); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	if count == "" {
		if err := stream.CloseSend(); err != nil {
			return nil, err
		}
	}
	responses := []any{}
	for {
		if count == json.Number(strconv.Itoa(len(responses))) {
			return map[string]any{"responses": responses}, nil
		}
		response := newResponse()
		err := stream.RecvMsg(response)
		if errors.Is(err, io.EOF) {
			return map[string]any{"responses": responses}, nil
		}
		if err != nil {
			return nil, err
		}
		responses = append(responses, render(response.ProtoReflect()))
	}
}
