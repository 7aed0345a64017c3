// Etcdload measures endpoints of etcd against each other: direct, and through proxies.
//
//	etcdload --target NAME=URL[,cacert=FILE][,cert=FILE][,key=FILE][,prefix=/tenant/] ... [--pid NAME=PID[,PID]] ...
//	         [--rows put:1,get:64,...] [--rounds N] [--seconds S] [--warmup S] [--connections N]
//
// prefix is put before every key, so that a direct target uses the keys that a tenant's proxy makes.
//
// Each row is measured on all targets in turn, and each round begins with another target, so that what the
// machine does meanwhile hits all of them. The rows:
//
//	put:C           puts of 256 B by C callers, over 10,000 keys
//	get:C           gets of a key of 256 B by C callers
//	list:C          one Range of 500 keys with 1 KB each, by C callers
//	txn:C           kube-apiserver's update by C callers: if ModRevision = r then Put else Get
//	watch:W         W watchers of one prefix, each on a stream of its own; an operation is an event that
//	                arrived, its time is that from before the put. A lost or disordered event is an error
//	getduringlists  gets by one caller while two others fetch lists of 20 MB; only the gets are counted
//
// Progress goes to stderr, one JSON object to stdout:
//
//	{"rows": {ROW: {TARGET: {
//	  "rounds": [{"opsPerSecond", "p50ms", "p99ms", "errors", "firstError", "cpuMicrosPerOp"}, ...],
//	  "median": {"opsPerSecond", "p50ms", "p99ms", "cpuMicrosPerOp"}, "errors": SUM}}}, ...the settings}
//
// Without a single operation the times are null. cpuMicrosPerOp is user and system time of the target's --pid
// processes, null without them. The exit code tells only whether everything was measured: errors are figures.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etcdproxy-controller/cluster/etcd/dial"
)

// target is one endpoint to be measured.
type target struct {
	name     string
	endpoint dial.Endpoint
	prefix   string
	pids     []int
	clients  []*clientv3.Client
	// Watch streams that the clients have opened so far.
	watchStreams atomic.Int64
}

// result is one measurement of one target.
type result struct {
	OpsPerSecond   float64  `json:"opsPerSecond"`
	P50            *float64 `json:"p50ms"`
	P99            *float64 `json:"p99ms"`
	CPUMicrosPerOp *float64 `json:"cpuMicrosPerOp"`
	Errors         int      `json:"errors"`
	FirstError     string   `json:"firstError,omitempty"`
}

type median struct {
	OpsPerSecond   float64  `json:"opsPerSecond"`
	P50            *float64 `json:"p50ms"`
	P99            *float64 `json:"p99ms"`
	CPUMicrosPerOp *float64 `json:"cpuMicrosPerOp"`
}

type cell struct {
	Rounds []result `json:"rounds"`
	Median median   `json:"median"`
	Errors int      `json:"errors"`
}

func main() {
	if err := measureAll(); err != nil {
		fmt.Fprintln(os.Stderr, "etcdload:", err)
		os.Exit(1)
	}
}

func measureAll() error {
	var targets []*target
	pids := map[string][]int{}
	flag.Func("target", "NAME=URL[,cacert=FILE][,cert=FILE][,key=FILE][,prefix=KEYS], repeated", func(text string) error {
		parsed, err := parseTarget(text)
		targets = append(targets, parsed)
		return err
	})
	flag.Func("pid", "NAME=PID[,PID]: processes of a target whose CPU time is measured, repeated", func(text string) error {
		name, list, _ := strings.Cut(text, "=")
		for _, each := range strings.Split(list, ",") {
			pid, err := strconv.Atoi(each)
			if err != nil {
				return err
			}
			pids[name] = append(pids[name], pid)
		}
		return nil
	})
	rowList := flag.String("rows", "put:1,put:16,put:64,get:1,get:64,list:1,list:16,txn:16,watch:100,getduringlists", "what to measure")
	rounds := flag.Int("rounds", 5, "how often")
	seconds := flag.Float64("seconds", 3, "counted, for each measurement")
	warmup := flag.Float64("warmup", 0.5, "seconds that are not counted, before each measurement")
	connections := flag.Int("connections", 4, "clients for each target, each with one connection; callers are spread over them")
	flag.Parse()
	if len(targets) == 0 || flag.NArg() > 0 || *rounds < 1 || *seconds <= 0 || *warmup < 0 || *connections < 1 {
		flag.Usage()
		return fmt.Errorf("needs a --target, numbers above 0, and nothing but flags")
	}
	rows, err := parseRows(*rowList)
	if err != nil {
		return err
	}
	for _, each := range targets {
		each.pids = pids[each.name]
		delete(pids, each.name)
	}
	for name := range pids {
		return fmt.Errorf("--pid %s: there is no such --target", name)
	}
	for _, each := range targets {
		if err := each.prepare(rows, *connections); err != nil {
			return fmt.Errorf("%s: %w", each.name, err)
		}
	}

	window := window{
		warmup:  time.Duration(*warmup * float64(time.Second)),
		counted: time.Duration(*seconds * float64(time.Second)),
	}
	cells := map[string]map[string]*cell{}
	for _, row := range rows {
		cells[row.name] = map[string]*cell{}
		for _, each := range targets {
			cells[row.name][each.name] = &cell{}
		}
		for round := range *rounds {
			for i := range targets {
				target := targets[(round+i)%len(targets)]
				result, err := row.measure(target, window)
				if err != nil {
					return fmt.Errorf("%s of %s: %w", row.name, target.name, err)
				}
				cell := cells[row.name][target.name]
				cell.Rounds = append(cell.Rounds, result)
				cell.Errors += result.Errors
				fmt.Fprintf(os.Stderr, "%s round %d %s: %s\n", row.name, round+1, target.name, result)
			}
		}
		for _, each := range targets {
			cell := cells[row.name][each.name]
			cell.Median = medianOf(cell.Rounds)
		}
	}
	output := json.NewEncoder(os.Stdout)
	output.SetIndent("", "\t")
	return output.Encode(map[string]any{
		"rows": cells, "rounds": *rounds, "seconds": *seconds, "warmup": *warmup, "connections": *connections,
	})
}

func parseTarget(text string) (*target, error) {
	parts := strings.Split(text, ",")
	name, url, _ := strings.Cut(parts[0], "=")
	if name == "" || !strings.Contains(url, "://") {
		return nil, fmt.Errorf("%q is not NAME=URL", parts[0])
	}
	parsed := &target{name: name, endpoint: dial.Endpoint{URL: url}}
	for _, part := range parts[1:] {
		option, value, _ := strings.Cut(part, "=")
		switch option {
		case "cacert":
			parsed.endpoint.CACert = value
		case "cert":
			parsed.endpoint.Cert = value
		case "key":
			parsed.endpoint.Key = value
		case "prefix":
			parsed.prefix = value
		default:
			return nil, fmt.Errorf("%q is none of cacert=, cert=, key=, prefix=", part)
		}
	}
	return parsed, nil
}

func parseRows(list string) ([]row, error) {
	var rows []row
	for _, name := range strings.Split(list, ",") {
		kind, number, _ := strings.Cut(name, ":")
		parsed := row{name: name, kind: kind}
		if kind != "getduringlists" {
			callers, err := strconv.Atoi(number)
			if err != nil || callers < 1 || !slices.Contains([]string{"put", "get", "list", "txn", "watch"}, kind) {
				return nil, fmt.Errorf("row %q is none of put:C, get:C, list:C, txn:C, watch:W, getduringlists", name)
			}
			parsed.callers = callers
		}
		rows = append(rows, parsed)
	}
	return rows, nil
}

func (r result) String() string {
	text := fmt.Sprintf("%.0f/s", r.OpsPerSecond)
	if r.P50 != nil {
		text += fmt.Sprintf(", p50 %.2f ms, p99 %.2f ms", *r.P50, *r.P99)
	}
	if r.CPUMicrosPerOp != nil {
		text += fmt.Sprintf(", CPU %.1f us", *r.CPUMicrosPerOp)
	}
	if r.Errors > 0 {
		text += fmt.Sprintf(", %d errors, the first: %s", r.Errors, r.FirstError)
	}
	return text
}

// medianOf takes the median of each figure by itself; rounds without it are left out.
func medianOf(rounds []result) median {
	of := func(figure func(result) *float64) *float64 {
		var values []float64
		for _, round := range rounds {
			if value := figure(round); value != nil {
				values = append(values, *value)
			}
		}
		if len(values) == 0 {
			return nil
		}
		slices.Sort(values)
		middle := (values[(len(values)-1)/2] + values[len(values)/2]) / 2
		return &middle
	}
	return median{
		OpsPerSecond:   *of(func(r result) *float64 { return &r.OpsPerSecond }),
		P50:            of(func(r result) *float64 { return r.P50 }),
		P99:            of(func(r result) *float64 { return r.P99 }),
		CPUMicrosPerOp: of(func(r result) *float64 { return r.CPUMicrosPerOp }),
	}
}
