// Rpcx is rpcx with its etcd registry. Its client has a protocol of its own; its server has an HTTP gateway beside it.
package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/julienschmidt/httprouter"
	etcdclient "github.com/rpcxio/rpcx-etcd/client"
	"github.com/rpcxio/rpcx-etcd/serverplugin"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/server"

	"interop/peer"
)

// base is the prefix of rpcx' keys.
const base = "/rpcx"

type library struct {
	etcd []string
}

func main() {
	peer.Run(func(etcd string) (peer.Library, error) { return &library{[]string{etcd}}, nil })
}

func (l *library) Watch(name string, tell func([]peer.Instance)) error {
	// A client that should survive the end of the last server must allow a missing key.
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

// Register runs a server, whose gateway maps `GET /` to the server's only method.
func (l *library) Register(node peer.Node) (string, func() error, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr := listener.Addr().String()
	plugin := &serverplugin.EtcdV3RegisterPlugin{
		ServiceAddress: "tcp@" + addr, EtcdServers: l.etcd, BasePath: base, UpdateInterval: 5 * time.Second,
	}
	if err := plugin.Start(); err != nil {
		return "", nil, err
	}
	metadata := url.Values{"weight": {strconv.Itoa(node.Weight)}}
	for key, value := range node.Metadata {
		metadata.Set(key, value)
	}
	server := server.NewServer()
	server.Plugins.Add(plugin)
	server.Plugins.Add(front(node.Name))
	if err := server.RegisterName(node.Name, new(greeter), metadata.Encode()); err != nil {
		return "", nil, err
	}
	go server.ServeListener("tcp", listener)
	return addr, func() error { return errors.Join(server.UnregisterAll(), server.Close()) }, nil
}

type greeter struct{}

func (*greeter) Hello(_ context.Context, _, reply *[]byte) error {
	*reply = []byte(peer.Hello)
	return nil
}

// front is the service name of requests without rpcx headers, as other clients send them.
type front string

func (name front) PostHTTPRequest(_ context.Context, request *http.Request, _ httprouter.Params) error {
	request.Header.Set(server.XServicePath, string(name))
	request.Header.Set(server.XServiceMethod, "Hello")
	request.Header.Set(server.XSerializeType, strconv.Itoa(int(protocol.SerializeNone)))
	return nil
}
