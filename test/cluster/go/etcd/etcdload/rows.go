package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"etcdproxy-controller/cluster/etcd/dial"
)

const (
	putKeys   = 10_000
	valueSize = 256
	listKeys  = 500
	listSize  = 1_000
	// 20 MB in values of 10 KB.
	bigListKeys = 2_000
	bigListSize = 10_000

	callTimeout    = 30 * time.Second
	connectTimeout = 10 * time.Second
)

var smallValue = value(valueSize)

// clockTicks is the unit of CPU times in proc(5), USER_HZ: 100 on every architecture that Go runs on.
const clockTicks = 100

// row is one kind of measurement.
type row struct {
	name    string
	kind    string
	callers int
}

// window is when to count.
type window struct {
	warmup, counted time.Duration
}

// prepare connects the target's clients and writes what the rows read.
func (t *target) prepare(rows []row, connections int) error {
	count := func(ctx context.Context, about *grpc.StreamDesc, connection *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
		if method == pb.Watch_Watch_FullMethodName {
			t.watchStreams.Add(1)
		}
		return open(ctx, about, connection, method, options...)
	}
	for range connections {
		// A second attempt would hide the error of the first.
		client, err := dial.Dial(t.endpoint, 1, grpc.WithChainStreamInterceptor(count))
		if err != nil {
			return err
		}
		t.clients = append(t.clients, client)
		ctx, cancel := dial.Timeout(connectTimeout)
		_, err = client.Put(ctx, t.prefix+"get", smallValue)
		cancel()
		if err != nil {
			return fmt.Errorf("first put: %w", err)
		}
	}
	reads := func(kind string) bool {
		return slices.ContainsFunc(rows, func(row row) bool { return row.kind == kind })
	}
	if reads("list") {
		if err := t.fill("list/", listKeys, listSize); err != nil {
			return err
		}
	}
	if reads("getduringlists") {
		return t.fill("biglist/", bigListKeys, bigListSize)
	}
	return nil
}

// fill writes keys in transactions that stay below etcd's limits of 128 operations and 1.5 MB.
func (t *target) fill(folder string, keys, size int) error {
	for start := 0; start < keys; start += 100 {
		var puts []clientv3.Op
		for i := start; i < min(start+100, keys); i++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%s%05d", t.prefix, folder, i), value(size)))
		}
		ctx, cancel := dial.Timeout(callTimeout)
		_, err := t.clients[0].Txn(ctx).Then(puts...).Commit()
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// value is text that does not compress to nothing.
func value(size int) string {
	var text strings.Builder
	for i := 0; text.Len() < size; i++ {
		text.WriteString(strconv.Itoa(i*i + 7))
	}
	return text.String()[:size]
}

// run is one measurement under way.
type run struct {
	target   *target
	counting atomic.Bool
	// Times of counted operations, each caller's by itself, so that callers do not wait for each other.
	times [][]time.Duration

	mutex  sync.Mutex
	errors int
	first  error
}

func newRun(target *target, callers int) *run {
	return &run{target: target, times: make([][]time.Duration, callers)}
}

func (r *run) client(caller int) *clientv3.Client {
	return r.target.clients[caller%len(r.target.clients)]
}

func (r *run) done(caller int, start time.Time) {
	if r.counting.Load() {
		r.times[caller] = append(r.times[caller], time.Since(start))
	}
}

// fail counts outside of the window, too: no error may go unseen.
func (r *run) fail(err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.errors++
	if r.first == nil {
		r.first = err
	}
}

func (r row) measure(t *target, window window) (result, error) {
	switch r.kind {
	case "watch":
		return measureWatch(t, window, r.callers)
	case "getduringlists":
		return measureCalls(t, window, 3, 1, func(caller int, client *clientv3.Client) call {
			if caller == 0 {
				return get(t, client)
			}
			return list(t, client, "biglist/", bigListKeys, bigListSize)
		})
	}
	var next atomic.Int64
	return measureCalls(t, window, r.callers, r.callers, func(caller int, client *clientv3.Client) call {
		switch r.kind {
		case "put":
			return put(t, client, &next)
		case "get":
			return get(t, client)
		case "list":
			return list(t, client, "list/", listKeys, listSize)
		default:
			return update(t, client, caller)
		}
	})
}

// call is one operation of one caller, repeated by it.
type call func(ctx context.Context) error

func put(t *target, client *clientv3.Client, next *atomic.Int64) call {
	return func(ctx context.Context) error {
		_, err := client.Put(ctx, fmt.Sprintf("%sput/%05d", t.prefix, next.Add(1)%putKeys), smallValue)
		return err
	}
}

func get(t *target, client *clientv3.Client) call {
	return func(ctx context.Context) error {
		response, err := client.Get(ctx, t.prefix+"get")
		if err == nil && (len(response.Kvs) != 1 || len(response.Kvs[0].Value) != valueSize) {
			return fmt.Errorf("get: not the key that was written: %v", response.Kvs)
		}
		return err
	}
}

func list(t *target, client *clientv3.Client, folder string, keys, size int) call {
	return func(ctx context.Context) error {
		response, err := client.Get(ctx, t.prefix+folder, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		if len(response.Kvs) != keys {
			return fmt.Errorf("list: %d keys of %d", len(response.Kvs), keys)
		}
		for _, kv := range response.Kvs {
			if len(kv.Value) != size {
				return fmt.Errorf("list: %s has %d bytes of %d", kv.Key, len(kv.Value), size)
			}
		}
		return nil
	}
}

// update writes a key of this caller alone, so that the comparison holds every time.
func update(t *target, client *clientv3.Client, caller int) call {
	key := fmt.Sprintf("%stxn/%05d", t.prefix, caller)
	revision := int64(-1)
	return func(ctx context.Context) error {
		if revision < 0 {
			current, err := client.Get(ctx, key)
			if err != nil {
				return err
			}
			revision = 0
			if len(current.Kvs) > 0 {
				revision = current.Kvs[0].ModRevision
			}
		}
		response, err := client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
			Then(clientv3.OpPut(key, smallValue)).
			Else(clientv3.OpGet(key)).
			Commit()
		if err == nil && !response.Succeeded {
			err = fmt.Errorf("txn: %s is no longer at revision %d", key, revision)
		}
		if err != nil {
			revision = -1
			return err
		}
		revision = response.Header.Revision
		return nil
	}
}

// measureCalls lets callers repeat their calls for the window. Calls are counted of the first ones, errors of all.
func measureCalls(t *target, window window, callers, counted int, bind func(caller int, client *clientv3.Client) call) (result, error) {
	run := newRun(t, callers)
	var stopping atomic.Bool
	var running sync.WaitGroup
	for caller := range callers {
		call := bind(caller, run.client(caller))
		running.Go(func() {
			for !stopping.Load() {
				start := time.Now()
				ctx, cancel := dial.Timeout(callTimeout)
				err := call(ctx)
				cancel()
				if err != nil {
					run.fail(err)
					// A refused connection fails at once: do not spin.
					time.Sleep(10 * time.Millisecond)
				} else if caller < counted {
					run.done(caller, start)
				}
			}
		})
	}
	elapsed, cpu, err := run.observe(window)
	stopping.Store(true)
	running.Wait()
	if counted < callers {
		// It was mostly spent on calls that are not counted.
		cpu = nil
	}
	return run.summary(elapsed, cpu), err
}

// observe counts during the window, and takes the CPU time that the target's processes spend in it.
func (r *run) observe(window window) (elapsed time.Duration, cpu *time.Duration, err error) {
	time.Sleep(window.warmup)
	before, err := cpuTime(r.target.pids)
	if err != nil {
		return 0, nil, err
	}
	start := time.Now()
	r.counting.Store(true)
	time.Sleep(window.counted)
	r.counting.Store(false)
	elapsed = time.Since(start)
	after, err := cpuTime(r.target.pids)
	if err != nil {
		return 0, nil, err
	}
	if len(r.target.pids) > 0 {
		spent := after - before
		cpu = &spent
	}
	return elapsed, cpu, nil
}

// cpuTime is the user and system time of processes so far (proc(5), stat).
func cpuTime(pids []int) (time.Duration, error) {
	var ticks int64
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The second field, the name in parentheses, may itself contain spaces and parentheses.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, field := range fields[11:13] {
			time, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += time
		}
	}
	return time.Duration(ticks) * time.Second / clockTicks, nil
}

func (r *run) summary(elapsed time.Duration, cpu *time.Duration) result {
	sum := result{Errors: r.errors}
	if r.first != nil {
		sum.FirstError = r.first.Error()
	}
	times := slices.Concat(r.times...)
	if len(times) == 0 || elapsed == 0 {
		return sum
	}
	slices.Sort(times)
	milliseconds := func(quantile float64) *float64 {
		value := float64(times[int(quantile*float64(len(times)-1)+0.5)]) / float64(time.Millisecond)
		return &value
	}
	sum.OpsPerSecond = float64(len(times)) / elapsed.Seconds()
	sum.P50 = milliseconds(0.5)
	sum.P99 = milliseconds(0.99)
	if cpu != nil {
		micros := float64(cpu.Microseconds()) / float64(len(times))
		sum.CPUMicrosPerOp = &micros
	}
	return sum
}
