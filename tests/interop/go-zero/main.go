// Go-zero is go-zero with its discovery through etcd, and zrpc's client.
package main

import (
	"context"

	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/core/proc"
	"github.com/zeromicro/go-zero/zrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"interop/peer"
)

type library struct {
	etcd    []string
	clients map[string]zrpc.Client
}

func main() {
	logx.Disable()
	peer.Run(func(etcd string) (peer.Library, error) {
		return &library{[]string{etcd}, map[string]zrpc.Client{}}, nil
	})
}

func (l *library) Watch(name string, tell func([]peer.Instance)) error {
	subscriber, err := discov.NewSubscriber(l.etcd, name)
	if err != nil {
		return err
	}
	update := func() {
		var found []peer.Instance
		for _, addr := range subscriber.Values() {
			found = append(found, peer.Instance{Addr: addr})
		}
		tell(found)
	}
	subscriber.AddListener(update)
	update()
	return nil
}

// Call checks the health of the service.
func (l *library) Call(name string) (string, error) {
	client := l.clients[name]
	if client == nil {
		var err error
		client, err = zrpc.NewClient(zrpc.RpcClientConf{
			Etcd:    discov.EtcdConf{Hosts: l.etcd, Key: name},
			Timeout: peer.Timeout.Milliseconds(),
		})
		if err != nil {
			return "", err
		}
		l.clients[name] = client
	}
	ctx, cancel := context.WithTimeout(context.Background(), peer.Timeout)
	defer cancel()
	health, err := grpc_health_v1.NewHealthClient(client.Conn()).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return health.GetStatus().String(), err
}

// Register runs a zrpc server with its health service. The server ends only with the process; the returned function starts
// the same shutdown.
func (l *library) Register(node peer.Node) (string, func() error, error) {
	addr, err := peer.Free()
	if err != nil {
		return "", nil, err
	}
	server, err := zrpc.NewServer(zrpc.RpcServerConf{
		ListenOn: addr, Etcd: discov.EtcdConf{Hosts: l.etcd, Key: node.Name}, Health: true,
	}, func(*grpc.Server) {})
	if err != nil {
		return "", nil, err
	}
	go server.Start()
	return addr, func() error {
		proc.WrapUp()
		proc.Shutdown()
		return nil
	}, nil
}
