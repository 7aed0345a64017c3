// Tlspair makes TLS handshakes with Go's crypto/tls, as etcd and the API servers do, for tests of who trusts whom. Each
// line of stdin is one handshake, a JSON object:
//
//	server   {"certificate", "key", "roots"}, PEM: what the server presents, and what it verifies clients with
//	client   likewise; the client connects to "localhost"
//	address  instead of server: host:port of one that runs already, and sends something to whom it accepts
//	shy      true: the client shows its certificate only where the server names an issuer in its chain, which is what Go
//	         does by default; etcd's client shows it in any case
//
// Each gets one line on stdout, {"server", "client"}: "ok", or the error as that side has it. A server that runs
// already is left out.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

const timeout = 20 * time.Second

// identity is one side: its chain, and whom it trusts.
type identity struct {
	Certificate, Key, Roots string
}

type pairing struct {
	Server, Client *identity
	Address        string
	Shy            bool
}

type outcome struct {
	Server string `json:"server,omitempty"`
	Client string `json:"client"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "tlspair:", err)
		os.Exit(1)
	}
}

func run() error {
	input, output := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var asked pairing
		if err := input.Decode(&asked); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		result, err := handshake(asked)
		if err != nil {
			return err
		}
		if err := output.Encode(result); err != nil {
			return err
		}
	}
}

// handshake returns an error only for what is no outcome of a handshake.
func handshake(asked pairing) (outcome, error) {
	if asked.Client == nil || (asked.Server == nil) == (asked.Address == "") {
		return outcome{}, errors.New("needs a client, and a server or an address")
	}
	client, roots, err := asked.Client.load()
	if err != nil {
		return outcome{}, err
	}
	dial := &tls.Config{
		RootCAs:    roots,
		ServerName: "localhost",
		NextProtos: []string{"h2"},
	}
	if asked.Shy {
		dial.Certificates = []tls.Certificate{client}
	} else {
		dial.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &client, nil }
	}
	if asked.Address != "" {
		return outcome{Client: describe(connect(asked.Address, dial))}, nil
	}
	server, roots, err := asked.Server.load()
	if err != nil {
		return outcome{}, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return outcome{}, err
	}
	defer listener.Close()
	accepted := make(chan error, 1)
	go func() {
		accepted <- accept(listener, &tls.Config{
			Certificates: []tls.Certificate{server},
			ClientCAs:    roots,
			ClientAuth:   tls.RequireAndVerifyClientCert,
			NextProtos:   []string{"h2"},
		})
	}()
	connected := connect(listener.Addr().String(), dial)
	return outcome{Server: describe(<-accepted), Client: describe(connected)}, nil
}

func (i *identity) load() (tls.Certificate, *x509.CertPool, error) {
	pair, err := tls.X509KeyPair([]byte(i.Certificate), []byte(i.Key))
	if err != nil {
		return pair, nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(i.Roots)) {
		return pair, nil, errors.New("no certificate in the roots")
	}
	return pair, roots, nil
}

func accept(listener net.Listener, config *tls.Config) error {
	connection, err := listener.Accept()
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err = tls.Server(connection, config).Write([]byte{0})
	return err
}

// connect awaits the server's first byte, for in TLS 1.3 the client's handshake ends before the server has judged it.
func connect(address string, config *tls.Config) error {
	connection, err := net.DialTimeout("tcp", address, timeout)
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err = io.ReadFull(tls.Client(connection, config), make([]byte, 1))
	return err
}

func describe(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}
