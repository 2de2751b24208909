// Goframe is GoFrame with its etcd registry, and its HTTP client.
package main

import (
	"context"
	"fmt"

	"github.com/gogf/gf/contrib/registry/etcd/v2"
	"github.com/gogf/gf/v2/net/gclient"
	"github.com/gogf/gf/v2/net/gsvc"
	"github.com/gogf/gf/v2/os/glog"

	"interop/peer"
)

type library struct {
	registry gsvc.Registry
	client   *gclient.Client
}

func main() {
	peer.Run(func(address string) (peer.Library, error) {
		silent := glog.New()
		silent.SetStdoutPrint(false)
		registry := etcd.New(address, etcd.Option{Logger: silent, DialTimeout: peer.Timeout})
		client := gclient.New()
		client.SetDiscovery(registry)
		client.SetTimeout(peer.Timeout)
		return &library{registry, client}, nil
	})
}

// Watch looks for the service by its name alone, as the HTTP client does.
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

func (l *library) Register(node peer.Node) (func() error, error) {
	metadata := gsvc.Metadata{}
	for key, value := range node.Metadata {
		metadata[key] = value
	}
	service, err := l.registry.Register(context.Background(), &gsvc.LocalService{
		Name: node.Name, Version: node.Version, Endpoints: gsvc.NewEndpoints(node.Addr), Metadata: metadata,
	})
	return func() error { return l.registry.Deregister(context.Background(), service) }, err
}
