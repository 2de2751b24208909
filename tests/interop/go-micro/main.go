// Go-micro is go-micro with its etcd registry, its gRPC client and its gRPC server.
package main

import (
	"context"

	"go-micro.dev/v5/client"
	grpcclient "go-micro.dev/v5/client/grpc"
	"go-micro.dev/v5/registry"
	"go-micro.dev/v5/registry/etcd"
	"go-micro.dev/v5/selector"
	"go-micro.dev/v5/server"
	grpcserver "go-micro.dev/v5/server/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"interop/peer"
)

type library struct {
	registry registry.Registry
	client   client.Client
}

func main() {
	peer.Run(func(address string) (peer.Library, error) {
		registry := etcd.NewEtcdRegistry(registry.Addrs(address), registry.Timeout(peer.Timeout))
		chosen := selector.NewSelector(selector.Registry(registry))
		client := grpcclient.NewClient(client.Registry(registry), client.Selector(chosen), client.RequestTimeout(peer.Timeout))
		return &library{registry, client}, nil
	})
}

// Watch reads the registry again after each event, as its cache does.
func (l *library) Watch(name string, tell func([]peer.Instance)) error {
	watcher, err := l.registry.Watch(registry.WatchService(name))
	if err != nil {
		return err
	}
	go func() {
		for {
			services, err := l.registry.GetService(name)
			if err == nil || err == registry.ErrNotFound {
				tell(instances(services))
			}
			if _, err := watcher.Next(); err != nil {
				return
			}
		}
	}()
	return nil
}

func instances(services []*registry.Service) []peer.Instance {
	var found []peer.Instance
	for _, service := range services {
		for _, node := range service.Nodes {
			found = append(found, peer.Instance{Addr: node.Address, Version: service.Version, Metadata: node.Metadata})
		}
	}
	return found
}

// Call checks the health of the service.
func (l *library) Call(name string) (string, error) {
	request := l.client.NewRequest(name, "/grpc.health.v1.Health/Check", &grpc_health_v1.HealthCheckRequest{})
	var health grpc_health_v1.HealthCheckResponse
	err := l.client.Call(context.Background(), request, &health)
	return health.GetStatus().String(), err
}

// Register runs a server, which registers its own address.
func (l *library) Register(node peer.Node) (string, func() error, error) {
	server := grpcserver.NewServer(server.Name(node.Name), server.Version(node.Version), server.Address("127.0.0.1:0"),
		server.Registry(l.registry), server.Metadata(node.Metadata), server.RegisterTTL(server.DefaultRegisterTTL))
	if err := server.Handle(server.NewHandler(new(Health))); err != nil {
		return "", nil, err
	}
	if err := server.Start(); err != nil {
		return "", nil, err
	}
	return server.Options().Address, server.Stop, nil
}

// Health serves the package grpc.health.v1; go-micro takes its name from the type.
type Health struct{}

// Check responds to a health check of the service.
func (*Health) Check(_ context.Context, _ *grpc_health_v1.HealthCheckRequest, answer *grpc_health_v1.HealthCheckResponse) error {
	answer.Status = grpc_health_v1.HealthCheckResponse_SERVING
	return nil
}
