// Etcd-naming is grpc-go with etcd's own resolver and endpoints manager.
package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"interop/peer"
)

type library struct {
	client *clientv3.Client
	conns  map[string]*grpc.ClientConn
}

func main() {
	peer.Run(func(etcd string) (peer.Library, error) {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, DialTimeout: peer.Timeout})
		return &library{client, map[string]*grpc.ClientConn{}}, err
	})
}

// Watch follows the keys that the resolver follows, since the resolver itself shows no metadata.
func (l *library) Watch(name string, tell func([]peer.Instance)) error {
	manager, err := endpoints.NewManager(l.client, name)
	if err != nil {
		return err
	}
	updates, err := manager.NewWatchChannel(context.Background())
	if err != nil {
		return err
	}
	go func() {
		known := map[string]peer.Instance{}
		tell(nil)
		for batch := range updates {
			for _, update := range batch {
				if update.Op == endpoints.Delete {
					delete(known, update.Key)
				} else {
					known[update.Key] = instance(update.Endpoint)
				}
			}
			tell(slices.Collect(maps.Values(known)))
		}
	}()
	return nil
}

func instance(endpoint endpoints.Endpoint) peer.Instance {
	found := peer.Instance{Addr: endpoint.Addr}
	if metadata, ok := endpoint.Metadata.(map[string]any); ok {
		found.Metadata = map[string]string{}
		for key, value := range metadata {
			found.Metadata[key] = fmt.Sprint(value)
		}
	}
	return found
}

// Call checks the health of the service.
func (l *library) Call(name string) (string, error) {
	conn := l.conns[name]
	if conn == nil {
		builder, err := resolver.NewBuilder(l.client)
		if err != nil {
			return "", err
		}
		conn, err = grpc.NewClient("etcd:///"+name, grpc.WithResolvers(builder),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
		if err != nil {
			return "", err
		}
		l.conns[name] = conn
	}
	ctx, cancel := context.WithTimeout(context.Background(), peer.Timeout)
	defer cancel()
	health, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return health.GetStatus().String(), err
}

// Register serves over gRPC, and adds the address to the endpoints under a key of choice, as etcd's documentation does.
func (l *library) Register(node peer.Node) (string, func() error, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	ctx := context.Background()
	lease, err := l.client.Grant(ctx, 10)
	if err != nil {
		return "", nil, err
	}
	renewals, err := l.client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return "", nil, err
	}
	go func() {
		for range renewals {
		}
	}()
	manager, err := endpoints.NewManager(l.client, node.Name)
	if err != nil {
		return "", nil, err
	}
	addr := listener.Addr().String()
	key := node.Name + "/e1"
	endpoint := endpoints.Endpoint{Addr: addr, Metadata: node.Metadata}
	err = manager.AddEndpoint(ctx, key, endpoint, clientv3.WithLease(lease.ID))
	return addr, func() error {
		defer server.GracefulStop()
		return manager.DeleteEndpoint(ctx, key)
	}, err
}
