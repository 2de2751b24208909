// Rpcx is rpcx with its etcd registry. Its wire is its own, so it only finds and registers.
package main

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	etcdclient "github.com/rpcxio/rpcx-etcd/client"
	"github.com/rpcxio/rpcx-etcd/serverplugin"
	"github.com/smallnest/rpcx/client"

	"interop/peer"
)

// Where rpcx keeps its services.
const base = "/rpcx"

type library struct {
	etcd []string
}

func main() {
	peer.Run(func(etcd string) (peer.Library, error) { return &library{[]string{etcd}}, nil })
}

func (l *library) Watch(name string, tell func([]peer.Instance)) error {
	// A client that is not to end with the last server has to allow that there is none.
	discovery, err := etcdclient.NewEtcdV3Discovery(base, name, l.etcd, true, nil)
	if err != nil {
		return err
	}
	changes := discovery.WatchService()
	go func() {
		tell(instances(discovery.GetServices()))
		for pairs := range changes {
			tell(instances(pairs))
		}
	}()
	return nil
}

func instances(pairs []*client.KVPair) []peer.Instance {
	var found []peer.Instance
	for _, pair := range pairs {
		_, addr, _ := strings.Cut(pair.Key, "@")
		instance := peer.Instance{Addr: addr, Metadata: map[string]string{}}
		query, _ := url.ParseQuery(pair.Value)
		for key := range query {
			if key == "weight" {
				instance.Weight, _ = strconv.Atoi(query.Get(key))
			} else {
				instance.Metadata[key] = query.Get(key)
			}
		}
		found = append(found, instance)
	}
	return found
}

func (l *library) Call(string) (string, error) {
	return "", peer.ErrNoTransport
}

func (l *library) Register(node peer.Node) (func() error, error) {
	plugin := &serverplugin.EtcdV3RegisterPlugin{
		ServiceAddress: "tcp@" + node.Addr, EtcdServers: l.etcd, BasePath: base, UpdateInterval: 5 * time.Second,
	}
	if err := plugin.Start(); err != nil {
		return nil, err
	}
	metadata := url.Values{"weight": {strconv.Itoa(node.Weight)}}
	for key, value := range node.Metadata {
		metadata.Set(key, value)
	}
	err := plugin.Register(node.Name, nil, metadata.Encode())
	return func() error { return plugin.Unregister(node.Name) }, err
}
