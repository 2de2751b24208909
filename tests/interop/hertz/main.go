// Hertz is hertz with its etcd registry, and its HTTP client.
package main

import (
	"context"
	"fmt"
	"io"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/client"
	"github.com/cloudwego/hertz/pkg/app/client/discovery"
	"github.com/cloudwego/hertz/pkg/app/middlewares/client/sd"
	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/app/server/registry"
	"github.com/cloudwego/hertz/pkg/common/config"
	"github.com/cloudwego/hertz/pkg/common/hlog"
	"github.com/cloudwego/hertz/pkg/common/utils"
	"github.com/hertz-contrib/registry/etcd"

	"interop/peer"
)

type library struct {
	registry registry.Registry
	resolver discovery.Resolver
	client   *client.Client
}

func main() {
	hlog.SetOutput(io.Discard)
	peer.Run(func(address string) (peer.Library, error) {
		registry, err := etcd.NewEtcdRegistry([]string{address})
		if err != nil {
			return nil, err
		}
		resolver, err := etcd.NewEtcdResolver([]string{address})
		if err != nil {
			return nil, err
		}
		client, err := client.NewClient(client.WithDialTimeout(peer.Timeout))
		if err != nil {
			return nil, err
		}
		client.Use(sd.Discovery(resolver))
		return &library{registry, resolver, client}, nil
	})
}

// Watch polls the resolver, as the balancer of hertz does.
func (l *library) Watch(name string, tell func([]peer.Instance)) error {
	go peer.Poll(func() ([]peer.Instance, error) {
		result, err := l.resolver.Resolve(context.Background(), name)
		var found []peer.Instance
		for _, instance := range result.Instances {
			found = append(found, shown(instance))
		}
		return found, err
	}, tell)
	return nil
}

func shown(instance discovery.Instance) peer.Instance {
	zone, has := instance.Tag("zone")
	found := peer.Instance{Addr: instance.Address().String(), Weight: instance.Weight()}
	if has {
		found.Metadata = map[string]string{"zone": zone}
	}
	return found
}

func (l *library) Call(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), peer.Timeout)
	defer cancel()
	status, body, err := l.client.Get(ctx, nil, "http://"+name+"/", config.WithSD(true))
	if err == nil && status != 200 {
		err = fmt.Errorf("status %d", status)
	}
	return string(body), err
}

// Register runs a server, which registers itself a second after it starts to listen.
func (l *library) Register(node peer.Node) (string, func() error, error) {
	addr, err := peer.Free()
	if err != nil {
		return "", nil, err
	}
	info := &registry.Info{
		ServiceName: node.Name, Addr: utils.NewNetAddr("tcp", addr), Weight: node.Weight, Tags: node.Metadata,
	}
	server := server.New(server.WithHostPorts(addr), server.WithRegistry(l.registry, info))
	server.GET("/", func(_ context.Context, request *app.RequestContext) { request.String(200, peer.Hello) })
	end, ended := make(chan struct{}), make(chan struct{})
	server.SetCustomSignalWaiter(func(failed chan error) error {
		select {
		case err := <-failed:
			return err
		case <-end:
			return nil
		}
	})
	go func() {
		server.Spin()
		close(ended)
	}()
	return addr, func() error {
		close(end)
		<-ended
		return nil
	}, nil
}
