// Kratos is go-kratos with its etcd registry and its HTTP and gRPC clients, depending on the scheme of the endpoints.
package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-kratos/kratos/contrib/registry/etcd/v2"
	"github.com/go-kratos/kratos/v2"
	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/transport"
	kgrpc "github.com/go-kratos/kratos/v2/transport/grpc"
	khttp "github.com/go-kratos/kratos/v2/transport/http"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"interop/peer"
)

type library struct {
	registry *etcd.Registry
	clients  map[string]*khttp.Client
	conns    map[string]*grpc.ClientConn
}

func main() {
	peer.Run(func(address string) (peer.Library, error) {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, DialTimeout: peer.Timeout})
		if err != nil {
			return nil, err
		}
		return &library{etcd.New(client), map[string]*khttp.Client{}, map[string]*grpc.ClientConn{}}, nil
	})
}

func (l *library) Watch(name string, tell func([]peer.Instance)) error {
	watcher, err := l.registry.Watch(context.Background(), name)
	if err != nil {
		return err
	}
	go func() {
		for {
			services, err := watcher.Next()
			if err != nil {
				return
			}
			var found []peer.Instance
			for _, service := range services {
				found = append(found, instance(service))
			}
			tell(found)
		}
	}()
	return nil
}

func instance(service *registry.ServiceInstance) peer.Instance {
	found := peer.Instance{Version: service.Version, Metadata: map[string]string{}}
	if endpoint, err := url.Parse(service.Endpoints[0]); err == nil {
		found.Addr = endpoint.Host
	}
	for key, value := range service.Metadata {
		if key == "weight" {
			found.Weight, _ = strconv.Atoi(value)
		} else {
			found.Metadata[key] = value
		}
	}
	return found
}

// Call requests `/` or checks the health of the service, depending on the scheme of its first endpoint.
func (l *library) Call(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), peer.Timeout)
	defer cancel()
	if client := l.clients[name]; client != nil {
		return get(ctx, client, name)
	}
	if conn := l.conns[name]; conn != nil {
		return check(ctx, conn)
	}
	services, err := l.registry.GetService(ctx, name)
	if err != nil {
		return "", err
	}
	if len(services) == 0 {
		return "", errors.New("there is no instance")
	}
	if strings.HasPrefix(services[0].Endpoints[0], "grpc://") {
		conn, err := kgrpc.DialInsecure(context.Background(), kgrpc.WithEndpoint("discovery:///"+name),
			kgrpc.WithDiscovery(l.registry), kgrpc.WithTimeout(peer.Timeout))
		if err != nil {
			return "", err
		}
		l.conns[name] = conn
	} else {
		client, err := khttp.NewClient(context.Background(), khttp.WithEndpoint("discovery:///"+name),
			khttp.WithDiscovery(l.registry), khttp.WithBlock(), khttp.WithTimeout(peer.Timeout))
		if err != nil {
			return "", err
		}
		l.clients[name] = client
	}
	return l.Call(name)
}

func get(ctx context.Context, client *khttp.Client, name string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+name+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func check(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	health, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return health.GetStatus().String(), err
}

// Register runs an app, which registers the address of its server.
func (l *library) Register(node peer.Node) (string, func() error, error) {
	metadata := map[string]string{"weight": strconv.Itoa(node.Weight)}
	for key, value := range node.Metadata {
		metadata[key] = value
	}
	var server transport.Server
	if node.Grpc {
		server = kgrpc.NewServer(kgrpc.Address("127.0.0.1:0"))
	} else {
		http := khttp.NewServer(khttp.Address("127.0.0.1:0"))
		http.Route("/").GET("/", func(ctx khttp.Context) error { return ctx.String(200, peer.Hello) })
		server = http
	}
	started, ended := make(chan struct{}), make(chan error, 1)
	app := kratos.New(kratos.Name(node.Name), kratos.Version(node.Version), kratos.Metadata(metadata),
		kratos.Server(server), kratos.Registrar(l.registry), kratos.AfterStart(func(context.Context) error {
			close(started)
			return nil
		}))
	go func() { ended <- app.Run() }()
	select {
	case <-started:
	case err := <-ended:
		return "", nil, err
	}
	endpoint, err := url.Parse(app.Endpoint()[0])
	if err != nil {
		return "", nil, err
	}
	return endpoint.Host, func() error { return errors.Join(app.Stop(), <-ended) }, nil
}
