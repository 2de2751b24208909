// Go-micro is go-micro with its etcd registry, and its selector before Go's HTTP client.
package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/go-micro/plugins/v4/registry/etcd"
	"go-micro.dev/v4/registry"
	"go-micro.dev/v4/selector"

	"interop/peer"
)

type library struct {
	registry registry.Registry
	selector selector.Selector
	client   http.Client
}

func main() {
	peer.Run(func(address string) (peer.Library, error) {
		registry := etcd.NewRegistry(registry.Addrs(address), registry.Timeout(peer.Timeout))
		return &library{
			registry: registry,
			selector: selector.NewSelector(selector.Registry(registry)),
			client:   http.Client{Timeout: peer.Timeout},
		}, nil
	})
}

// Watch asks the registry again after each event, as its cache does with what the event says.
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

func (l *library) Call(name string) (string, error) {
	next, err := l.selector.Select(name)
	if err != nil {
		return "", err
	}
	node, err := next()
	if err != nil {
		return "", err
	}
	response, err := l.client.Get("http://" + node.Address + "/")
	l.selector.Mark(name, node, err)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", response.StatusCode)
	}
	return string(body), err
}

func (l *library) Register(node peer.Node) (func() error, error) {
	service := &registry.Service{
		Name: node.Name, Version: node.Version,
		Nodes: []*registry.Node{{Id: node.Name + "-of-go-micro", Address: node.Addr, Metadata: node.Metadata}},
	}
	err := l.registry.Register(service, registry.RegisterTTL(10*time.Second))
	return func() error { return l.registry.Deregister(service) }, err
}
