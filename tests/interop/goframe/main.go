// Goframe is GoFrame with its etcd registry, and its HTTP client.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/gogf/gf/contrib/registry/etcd/v2"
	"github.com/gogf/gf/v2/net/gclient"
	"github.com/gogf/gf/v2/net/ghttp"
	"github.com/gogf/gf/v2/net/gsvc"
	"github.com/gogf/gf/v2/os/glog"
	"github.com/gogf/gf/v2/os/gsession"

	"interop/peer"
)

type library struct {
	registry gsvc.Registry
	client   *gclient.Client
	log      *glog.Logger
}

func main() {
	peer.Run(func(address string) (peer.Library, error) {
		// GoFrame's stdout is the descriptor from its load time.
		log := glog.NewWithWriter(os.Stderr)
		log.SetStdoutPrint(false)
		registry := etcd.New(address, etcd.Option{Logger: log, DialTimeout: peer.Timeout})
		client := gclient.New()
		client.SetDiscovery(registry)
		client.SetTimeout(peer.Timeout)
		return &library{registry, client, log}, nil
	})
}

// Watch looks up the service by its name alone, as the HTTP client does.
func (l *library) Watch(name string, tell func([]peer.Instance)) error {
	ctx := context.Background()
	watcher, err := l.registry.Watch(ctx, gsvc.NewServiceWithName(name).GetPrefix())
	if err != nil {
		return err
	}
	services, err := l.registry.Search(ctx, gsvc.SearchInput{Name: name})
	if err != nil {
		return err
	}
	tell(instances(services))
	go func() {
		for {
			services, err := watcher.Proceed()
			if err != nil {
				return
			}
			tell(instances(services))
		}
	}()
	return nil
}

func instances(services []gsvc.Service) []peer.Instance {
	var found []peer.Instance
	for _, service := range services {
		metadata := map[string]string{}
		for key, value := range service.GetMetadata() {
			metadata[key] = fmt.Sprint(value)
		}
		for _, endpoint := range service.GetEndpoints() {
			found = append(found, peer.Instance{Addr: endpoint.String(), Version: service.GetVersion(), Metadata: metadata})
		}
	}
	return found
}

func (l *library) Call(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), peer.Timeout)
	defer cancel()
	response, err := l.client.Get(ctx, "http://"+name+"/")
	if err != nil {
		return "", err
	}
	defer response.Close()
	if response.StatusCode != 200 {
		return "", fmt.Errorf("status %d", response.StatusCode)
	}
	return response.ReadAllString(), nil
}

// Register runs a server, which registers itself under its name.
func (l *library) Register(node peer.Node) (string, func() error, error) {
	server := ghttp.GetServer(node.Name)
	server.SetName(node.Name)
	// GoFrame never registers the literal address 127.0.0.1.
	server.SetAddr("localhost:0")
	server.SetLogger(l.log)
	server.SetDumpRouterMap(false)
	server.SetSessionStorage(gsession.NewStorageMemory())
	server.SetRegistrar(described{l.registry, node})
	server.BindHandler("/", func(request *ghttp.Request) { request.Response.Write(peer.Hello) })
	if err := server.Start(); err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("localhost:%d", server.GetListenedPort()), server.Shutdown, nil
}

// described adds the metadata of the service, including the weight, which the server itself does not publish.
type described struct {
	gsvc.Registrar
	node peer.Node
}

func (d described) Register(ctx context.Context, service gsvc.Service) (gsvc.Service, error) {
	metadata := service.GetMetadata()
	metadata.Set(gsvc.MDWeight, d.node.Weight)
	for key, value := range d.node.Metadata {
		metadata.Set(key, value)
	}
	return d.Registrar.Register(ctx, service)
}
