// Etcdscript drives etcd's Go client by commands on stdin, one JSON object a line, for tests of what an endpoint means:
//
//	etcdscript --endpoint URL [--cacert FILE] [--cert FILE] [--key FILE] [--attempts N]
//
// Each command gets one line on stdout, {"id", "ok": RESULT} or {"id", "error": {"code", "message", "name"}}, where
// code is gRPC's and name that of the error in package rpctypes, if it is one. Common to all commands:
//
//	op       what to do, see below
//	id       anything, comes back
//	timeout  milliseconds, 10,000 by default
//	async    true: the next command does not wait for this one
//
// All else are the fields of the request's message in rpc.proto. Results are the response's message. See json.go for
// bytes and numbers.
//
//	put           PutRequest
//	get           RangeRequest
//	rangeStream   RangeRequest; {"chunks": [RangeResponse, ...]}
//	delete        DeleteRangeRequest
//	txn           TxnRequest
//	compact       CompactionRequest
//	watch         WatchCreateRequest, with tag: a name for it; stream: watches of one name share a gRPC stream, by
//	              default the tag; created_notify; require_leader. Answered when the watch is created, or has failed
//	progress      stream: WatchProgressRequest
//	cancel        tag: ends a watch
//	grant         LeaseGrantRequest (only TTL, the client chooses no ID)
//	revoke, keepAliveOnce, timeToLive, leases   LeaseRevokeRequest, LeaseKeepAliveRequest ...
//	status, memberList
//	snapshot      {"header", "version", "size", "sha256"} of the snapshot with the hash that follows it
//	call          any method, without the client's own logic: method: its path; request: its message, or requests: a
//	              list of them, for a stream; or raw: a request's bytes as they are; metadata: headers. A stream gives
//	              {"responses": [...]}: all, after the end of the requests; or with count so many, before that end
//
// get, rangeStream, delete and watch also take prefix or from_key: true, the client's own ways to name a range_end.
// The client leaves out sort_order when it asks for what etcd does anyway (keys, ascending).
//
// A watch writes lines of its own: {"watch": TAG, "response": WatchResponse, "progress": true for a progress
// notification, "error"}, and last {"watch": TAG, "closed": true}. The end of stdin ends everything.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etcdproxy-controller/cluster/etcd/dial"
)

const defaultTimeout = 10 * time.Second

// session is one run of a script.
type session struct {
	client   *clientv3.Client
	endpoint string
	mutex    sync.Mutex
	streams  map[string]*stream
	watches  map[string]*watch

	writing sync.Mutex
	output  *json.Encoder
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "etcdscript:", err)
		os.Exit(1)
	}
}

func run() error {
	var endpoint dial.Endpoint
	flag.StringVar(&endpoint.URL, "endpoint", "", "URL")
	flag.StringVar(&endpoint.CACert, "cacert", "", "the server's certificate authority")
	flag.StringVar(&endpoint.Cert, "cert", "", "client certificate")
	flag.StringVar(&endpoint.Key, "key", "", "its key")
	attempts := flag.Uint("attempts", 0, "how often the client tries a unary call that may be repeated while the endpoint is unavailable; 0: its default")
	flag.Parse()
	if endpoint.URL == "" || flag.NArg() > 0 {
		flag.Usage()
		return errors.New("needs an --endpoint, and nothing but flags")
	}
	client, err := dial.Dial(endpoint, *attempts)
	if err != nil {
		return err
	}
	defer client.Close()
	session := &session{
		client:   client,
		endpoint: endpoint.URL,
		streams:  map[string]*stream{},
		watches:  map[string]*watch{},
		output:   json.NewEncoder(os.Stdout),
	}
	session.output.SetEscapeHTML(false)
	var background sync.WaitGroup
	defer background.Wait()
	for input := bufio.NewReader(os.Stdin); ; {
		line, err := input.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			session.handle(line, &background)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// handle runs one command and writes its result.
func (s *session) handle(line []byte, background *sync.WaitGroup) {
	command, err := parseCommand(line)
	execute := func() {
		var result any
		if err == nil {
			ctx, cancel := dial.Timeout(command.timeout)
			result, err = s.execute(ctx, command)
			cancel()
		}
		if err != nil {
			s.write(map[string]any{"id": command.id, "error": failureOf(err)})
		} else {
			s.write(map[string]any{"id": command.id, "ok": result})
		}
	}
	if command.async {
		background.Go(execute)
	} else {
		execute()
	}
}

func (s *session) write(line any) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.output.Encode(line); err != nil {
		fmt.Fprintln(os.Stderr, "etcdscript:", err)
		os.Exit(1)
	}
}

// command is one line of the script; arguments are what is not common to all.
type command struct {
	id        any
	op        string
	timeout   time.Duration
	async     bool
	arguments map[string]any
}

func parseCommand(line []byte) (command, error) {
	parsed := command{timeout: defaultTimeout}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	if err := decoder.Decode(&parsed.arguments); err != nil {
		return parsed, invalidCommand{err}
	}
	parsed.id = parsed.arguments["id"]
	delete(parsed.arguments, "id")
	var milliseconds json.Number
	err := errors.Join(
		take(parsed.arguments, "op", &parsed.op),
		take(parsed.arguments, "async", &parsed.async),
		take(parsed.arguments, "timeout", &milliseconds),
	)
	if err == nil && milliseconds != "" {
		var number int64
		number, err = milliseconds.Int64()
		if err != nil {
			err = invalidCommand{err}
		}
		parsed.timeout = time.Duration(number) * time.Millisecond
	}
	return parsed, err
}

// take removes an argument and stores it, if it is there.
func take[T any](arguments map[string]any, name string, into *T) error {
	given, there := arguments[name]
	if !there {
		return nil
	}
	delete(arguments, name)
	value, ok := given.(T)
	if !ok {
		return invalidCommand{fmt.Errorf("%s: %v is no %T", name, given, value)}
	}
	*into = value
	return nil
}
