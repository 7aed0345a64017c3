// Package dial makes etcd clients that hold their connection as kube-apiserver's do.
package dial

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Endpoint is one URL and what it takes to get in; files that are not needed are empty.
type Endpoint struct {
	URL, CACert, Cert, Key string
}

// Dial makes a client with a connection of its own and the settings of
// k8s.io/apiserver/pkg/storage/storagebackend/factory. The connection is made by the first call.
// attempts is how often a unary call is tried while the endpoint is unavailable; 0 is clientv3's default, 100.
func Dial(endpoint Endpoint, attempts uint, options ...grpc.DialOption) (*clientv3.Client, error) {
	config := clientv3.Config{
		Endpoints:            []string{endpoint.URL},
		DialTimeout:          20 * time.Second,
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		MaxUnaryRetries:      attempts,
		DialOptions:          options,
	}
	files := endpoint.CACert + endpoint.Cert + endpoint.Key
	if strings.HasPrefix(endpoint.URL, "https://") {
		info := transport.TLSInfo{CertFile: endpoint.Cert, KeyFile: endpoint.Key, TrustedCAFile: endpoint.CACert}
		tls, err := info.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", endpoint.URL, err)
		}
		config.TLS = tls
	} else if files != "" {
		return nil, fmt.Errorf("%s: certificates are given, but it is no https URL", endpoint.URL)
	}
	return clientv3.New(config)
}

// Timeout is a context for one call.
func Timeout(duration time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), duration)
}
