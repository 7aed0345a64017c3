package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// stream is one gRPC stream of watches: a Watcher has one for each set of headers that its contexts have.
type stream struct {
	watcher clientv3.Watcher
	headers context.Context
}

type watch struct {
	cancel context.CancelFunc
	closed chan struct{}
}

// watch creates a watch and writes what it tells, until it is closed.
func (s *session) watch(ctx context.Context, arguments map[string]any) (any, error) {
	var tag, streamName string
	var createdNotify, requireLeader bool
	options, err := rangeOptions(arguments)
	err = errors.Join(err,
		take(arguments, "tag", &tag),
		take(arguments, "stream", &streamName),
		take(arguments, "created_notify", &createdNotify),
		take(arguments, "require_leader", &requireLeader),
	)
	if err != nil {
		return nil, err
	}
	request, err := parse(&pb.WatchCreateRequest{}, arguments)
	if err != nil {
		return nil, err
	}
	if tag == "" || request.WatchId != 0 {
		return nil, invalidCommand{errors.New("watch: needs a tag; the client chooses no watch_id")}
	}
	if streamName == "" {
		streamName = tag
	}
	options = append(watchOptions(request), options...)
	if createdNotify {
		options = append(options, clientv3.WithCreatedNotify())
	}

	s.mutex.Lock()
	if s.watches[tag] != nil {
		s.mutex.Unlock()
		return nil, invalidCommand{fmt.Errorf("watch: tag %q is taken", tag)}
	}
	on := s.streams[streamName]
	if on == nil {
		on = &stream{watcher: clientv3.NewWatcher(s.client), headers: context.Background()}
		if requireLeader {
			on.headers = clientv3.WithRequireLeader(on.headers)
		}
		s.streams[streamName] = on
	}
	life, cancel := context.WithCancel(on.headers)
	created := &watch{cancel: cancel, closed: make(chan struct{})}
	s.watches[tag] = created
	s.mutex.Unlock()

	acknowledged := make(chan struct{})
	go func() {
		responses := on.watcher.Watch(life, string(request.Key), options...)
		close(acknowledged)
		for response := range responses {
			s.write(watchLine(tag, response))
		}
		s.write(map[string]any{"watch": tag, "closed": true})
		s.mutex.Lock()
		delete(s.watches, tag)
		s.mutex.Unlock()
		cancel()
		close(created.closed)
	}()
	select {
	case <-acknowledged:
		return map[string]any{}, nil
	case <-ctx.Done():
		cancel()
		return nil, ctx.Err()
	}
}

func watchOptions(request *pb.WatchCreateRequest) []clientv3.OpOption {
	options := []clientv3.OpOption{clientv3.WithRev(request.StartRevision)}
	if len(request.RangeEnd) > 0 {
		options = append(options, clientv3.WithRange(string(request.RangeEnd)))
	}
	if request.ProgressNotify {
		options = append(options, clientv3.WithProgressNotify())
	}
	if request.PrevKv {
		options = append(options, clientv3.WithPrevKV())
	}
	if request.Fragment {
		options = append(options, clientv3.WithFragment())
	}
	if slices.Contains(request.Filters, pb.WatchCreateRequest_NOPUT) {
		options = append(options, clientv3.WithFilterPut())
	}
	if slices.Contains(request.Filters, pb.WatchCreateRequest_NODELETE) {
		options = append(options, clientv3.WithFilterDelete())
	}
	return options
}

func watchLine(tag string, response clientv3.WatchResponse) map[string]any {
	line := map[string]any{"watch": tag, "response": render((&pb.WatchResponse{
		Header:          response.Header,
		Created:         response.Created,
		Canceled:        response.Canceled,
		CompactRevision: response.CompactRevision,
		CancelReason:    response.CancelReason,
		Events:          response.Events,
	}).ProtoReflect())}
	if response.IsProgressNotify() {
		line["progress"] = true
	}
	if err := response.Err(); err != nil {
		line["error"] = failureOf(err)
	}
	return line
}

func (s *session) progress(ctx context.Context, arguments map[string]any) (any, error) {
	var name string
	if err := take(arguments, "stream", &name); err != nil {
		return nil, err
	}
	s.mutex.Lock()
	on := s.streams[name]
	s.mutex.Unlock()
	if on == nil {
		return nil, invalidCommand{fmt.Errorf("progress: there is no stream %q", name)}
	}
	// The headers choose the stream.
	life, cancel := context.WithCancel(on.headers)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	return map[string]any{}, on.watcher.RequestProgress(life)
}

// cancel returns when the watch is closed here; the client tells the server by itself.
func (s *session) cancel(arguments map[string]any) (any, error) {
	var tag string
	if err := take(arguments, "tag", &tag); err != nil {
		return nil, err
	}
	s.mutex.Lock()
	ended := s.watches[tag]
	s.mutex.Unlock()
	if ended == nil {
		return nil, invalidCommand{fmt.Errorf("cancel: there is no watch %q", tag)}
	}
	ended.cancel()
	<-ended.closed
	return map[string]any{}, nil
}
