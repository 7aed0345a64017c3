package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etcdproxy-controller/cluster/etcd/dial"
)

const (
	writers = 16
	// Puts of one writer that some watcher has not seen yet; fewer where many watchers make more events than
	// maxEvents of them: time in a queue is not what is measured.
	outstanding = 4
	maxEvents   = 16_000
)

// watchRun is a measurement of watchers. The values that are put tell the writer, its count of puts before this
// one, and when it was.
type watchRun struct {
	*run
	watchers int
	folder   string
	began    time.Time
	// How many watchers have seen which put: as each sees a writer's puts in order, they are seen by all in order.
	seen [writers][outstanding]atomic.Int64
	// A writer takes a place for each put, and gets it back when all watchers have seen it.
	places [writers]chan struct{}
	// Closed with the first error: what comes after it tells nothing.
	broken chan struct{}
	once   sync.Once
}

// measureWatch lets writers put as fast as the slowest watcher follows, and checks every event at every watcher.
func measureWatch(t *target, window window, watchers int) (result, error) {
	began := time.Now()
	run := &watchRun{
		run:      newRun(t, watchers),
		watchers: watchers,
		folder:   fmt.Sprintf("%swatch/%d/", t.prefix, began.UnixNano()),
		began:    began,
		broken:   make(chan struct{}),
	}
	puts := min(outstanding, max(1, maxEvents/(writers*watchers)))
	for writer := range writers {
		run.places[writer] = make(chan struct{}, puts)
		for range puts {
			run.places[writer] <- struct{}{}
		}
	}

	opened := t.watchStreams.Load()
	ctx, cancel := context.WithCancel(context.Background())
	created := make(chan struct{}, watchers)
	var watching, writing sync.WaitGroup
	for caller := range watchers {
		watching.Go(func() {
			if err := run.watch(ctx, caller, created); err != nil {
				run.stop(fmt.Errorf("watch: %w", err))
			}
		})
	}
	for range watchers {
		run.await(created, "a watcher was not created")
	}

	var stopping atomic.Bool
	for writer := range writers {
		writing.Go(func() {
			for sequence := 0; !stopping.Load() && run.put(writer, sequence); sequence++ {
			}
		})
	}
	elapsed, cpu, err := run.observe(window)
	stopping.Store(true)
	writing.Wait()
	// What is still under way has to arrive, too: then every place is free again.
	for writer := range writers {
		for range puts {
			run.await(run.places[writer], "an event did not arrive")
		}
	}
	// The client resumes a watch whose stream is lost, and does not tell.
	if lost := t.watchStreams.Load() - opened - int64(watchers); lost > 0 {
		run.stop(fmt.Errorf("watch: %d streams were lost", lost))
	}
	cancel()
	watching.Wait()
	return run.summary(elapsed, cpu), err
}

// stop ends the measurement with an error.
func (r *watchRun) stop(err error) {
	r.fail(err)
	r.once.Do(func() { close(r.broken) })
}

// await waits for a signal; false after an error, here or elsewhere.
func (r *watchRun) await(signal <-chan struct{}, otherwise string) bool {
	select {
	case <-r.broken:
		return false
	default:
	}
	timer := time.NewTimer(callTimeout)
	defer timer.Stop()
	select {
	case <-signal:
		return true
	case <-r.broken:
	case <-timer.C:
		r.stop(fmt.Errorf("watch: %s within %s", otherwise, callTimeout))
	}
	return false
}

func (r *watchRun) put(writer, sequence int) bool {
	if !r.await(r.places[writer], "an event did not arrive") {
		return false
	}
	var head []byte
	for _, number := range []uint64{uint64(writer), uint64(sequence), uint64(time.Since(r.began))} {
		head = binary.BigEndian.AppendUint64(head, number)
	}
	ctx, cancel := dial.Timeout(callTimeout)
	defer cancel()
	_, err := r.client(writer).Put(ctx, fmt.Sprintf("%s%d", r.folder, writer), string(head)+smallValue[len(head):])
	if err != nil {
		r.stop(err)
	}
	return err == nil
}

// watch follows the folder as kube-apiserver does, on a stream of its own: a Watcher shares none with others.
func (r *watchRun) watch(ctx context.Context, caller int, created chan<- struct{}) (err error) {
	watcher := clientv3.NewWatcher(r.client(caller))
	defer func() { err = errors.Join(err, watcher.Close()) }()
	responses := watcher.Watch(clientv3.WithRequireLeader(ctx), r.folder,
		clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	var next [writers]uint64
	var revision int64
	for response := range responses {
		if err := response.Err(); err != nil {
			return err
		}
		if response.Created {
			created <- struct{}{}
		}
		for _, event := range response.Events {
			value := event.Kv.Value
			if event.Type != clientv3.EventTypePut || len(value) != valueSize || binary.BigEndian.Uint64(value) >= writers {
				return fmt.Errorf("an event that no writer made: %v", event)
			}
			writer := binary.BigEndian.Uint64(value)
			sequence := binary.BigEndian.Uint64(value[8:])
			if event.Kv.ModRevision <= revision || sequence != next[writer] {
				return fmt.Errorf("put %d of writer %d came at revision %d, where put %d after revision %d was due",
					sequence, writer, event.Kv.ModRevision, next[writer], revision)
			}
			revision = event.Kv.ModRevision
			next[writer]++
			r.done(caller, r.began.Add(time.Duration(binary.BigEndian.Uint64(value[16:]))))
			if seen := &r.seen[writer][sequence%outstanding]; seen.Add(1) == int64(r.watchers) {
				seen.Store(0)
				r.places[writer] <- struct{}{}
			}
		}
	}
	if ctx.Err() == nil {
		return errors.New("the stream has ended")
	}
	return nil
}
