// Package leasehold is the host's interface in the manner of Go: errors, and requests with their responses.
//
// It uses a part of the bindings; the others are in service/bindings/imports.
package leasehold

import (
	"errors"
	"fmt"

	wit "go.bytecodealliance.org/pkg/wit/types"

	"service/bindings/exports/export_leasehold_registry_lifecycle"
	"service/bindings/exports/export_wasi_http_incoming_handler"
	_ "service/bindings/exports/wit_exports" // What the host calls.
	"service/bindings/imports/leasehold_registry_discovery"
	"service/bindings/imports/leasehold_registry_registrar"
	"service/bindings/imports/leasehold_registry_registry_types"
	"service/bindings/imports/wasi_http_outgoing_handler"
	"service/bindings/imports/wasi_http_types"
	"service/bindings/imports/wasi_io_streams"
)

// Longest single write that wasi:io accepts, in bytes.
const maxWrite = 4096

// Node is one instance of a service, as its clients find it.
type Node struct {
	Name     string
	Addr     string // Empty at Register: the address at which the host serves this component.
	Version  string
	Weight   uint32 // 1 to 100; 0 for a weight that the host computes from the load of the machine.
	Metadata [][2]string
}

// Registration is a node that the host keeps in etcd until it is stopped.
type Registration struct {
	handle *leasehold_registry_registrar.Registration
}

// Status is a snapshot of a registration.
type Status struct {
	State          string
	Weight         uint32
	TTLRemainingMs uint64
	Renewals       uint64
	Recoveries     uint64
}

// Description is a registration at one moment, without a handle that the host keeps.
type Description struct {
	Key  string
	Node Node
	Status
	PublishesMetadata bool // False: no layout of the host has a place for metadata.
}

// Service holds the functions that the host calls.
type Service struct {
	Start  func() error                                // Once, when the listener is open.
	Stop   func()                                      // Once, when the last request is complete.
	Handle func(path string) (status int, body string) // For each request.
}

// Serve tells the host of the service. It belongs into an init function, since main does not run.
func Serve(service Service) {
	export_leasehold_registry_lifecycle.OnStart = service.Start
	export_leasehold_registry_lifecycle.OnStop = service.Stop
	export_wasi_http_incoming_handler.OnRequest = func(
		request *wasi_http_types.IncomingRequest, out *wasi_http_types.ResponseOutparam,
	) {
		status, body := service.Handle(request.PathWithQuery().SomeOr("/"))
		request.Drop()
		respond(out, status, body)
	}
}

// Register publishes a node. The key in etcd outlives a dead host by the TTL.
func Register(node Node, ttlSeconds uint32) (Registration, error) {
	given := leasehold_registry_registry_types.ServerNode{Name: node.Name, Addr: node.Addr, Version: node.Version}
	given.Weight = wit.None[uint32]()
	if node.Weight != 0 {
		given.Weight = wit.Some(node.Weight)
	}
	for _, pair := range node.Metadata {
		given.Metadata = append(given.Metadata, wit.Tuple2[string, string]{F0: pair[0], F1: pair[1]})
	}
	registered := leasehold_registry_registrar.Register(given, ttlSeconds)
	if registered.IsErr() {
		return Registration{}, failure("register "+node.Name, registered.Err())
	}
	return Registration{registered.Ok()}, nil
}

// Current returns the registrations of this component that have not ended.
func Current() []Registration {
	var all []Registration
	for _, handle := range leasehold_registry_registrar.Current() {
		all = append(all, Registration{handle})
	}
	return all
}

// Describe returns the same registrations as data. It never waits.
func Describe() []Description {
	var all []Description
	for _, one := range leasehold_registry_registrar.Describe() {
		all = append(all, Description{one.Key, nodeOf(one.Node), statusOf(one.Status), one.PublishesMetadata})
	}
	return all
}

// Key is the key in etcd.
func (r Registration) Key() string { return r.handle.Key() }

// Node is the published node.
func (r Registration) Node() Node { return nodeOf(r.handle.Node()) }

// Status never waits.
func (r Registration) Status() Status { return statusOf(r.handle.Status()) }

// SetWeight publishes this weight, 1 to 100.
func (r Registration) SetWeight(weight uint32) error {
	if set := r.handle.SetWeight(weight); set.IsErr() {
		return failure("set weight", set.Err())
	}
	return nil
}

// Stop deletes the node. After an error the host goes on until the key is gone.
func (r Registration) Stop() error {
	if stopped := r.handle.Stop(); stopped.IsErr() {
		return failure("stop", stopped.Err())
	}
	return nil
}

// Resolve returns the nodes of a service, of one version unless it is empty.
func Resolve(name, version string) ([]Node, error) {
	resolved := leasehold_registry_discovery.Resolve(name, version)
	if resolved.IsErr() {
		return nil, failure("resolve "+name, resolved.Err())
	}
	var nodes []Node
	for _, node := range resolved.Ok() {
		nodes = append(nodes, nodeOf(node))
	}
	return nodes, nil
}

// Pick returns one node of a service, chosen by the host's balancer, and false if there is none.
func Pick(name, version string) (Node, bool, error) {
	picked := leasehold_registry_discovery.Pick(name, version)
	if picked.IsErr() {
		return Node{}, false, failure("pick "+name, picked.Err())
	}
	node := picked.Ok()
	if node.IsNone() {
		return Node{}, false, nil
	}
	return nodeOf(node.Some()), true, nil
}

// Get calls a service by name; the host picks one of its nodes.
func Get(name, path string) (status int, body []byte, err error) {
	request := wasi_http_types.MakeOutgoingRequest(wasi_http_types.MakeFields())
	request.SetScheme(wit.Some(wasi_http_types.MakeSchemeHttp()))
	request.SetAuthority(wit.Some(name + ".leasehold"))
	request.SetPathWithQuery(wit.Some(path))
	sent := wasi_http_outgoing_handler.Handle(request, wit.None[*wasi_http_types.RequestOptions]())
	if sent.IsErr() {
		return 0, nil, fmt.Errorf("get %s: error %d of wasi:http", name, sent.Err().Tag())
	}
	future := sent.Ok()
	defer future.Drop()
	ready := future.Subscribe()
	ready.Block()
	ready.Drop()
	got := future.Get().Some().Ok()
	if got.IsErr() {
		return 0, nil, fmt.Errorf("get %s: error %d of wasi:http", name, got.Err().Tag())
	}
	response := got.Ok()
	defer response.Drop()
	consumed := response.Consume()
	if consumed.IsErr() {
		return 0, nil, errors.New("get " + name + ": the body was taken already")
	}
	content := consumed.Ok()
	defer content.Drop()
	stream := content.Stream().Ok()
	defer stream.Drop()
	for {
		chunk := stream.BlockingRead(16 * 1024)
		if chunk.IsErr() {
			if end := chunk.Err(); end.Tag() == wasi_io_streams.StreamError_LastOperationFailed {
				end.LastOperationFailed().Drop()
				return 0, nil, errors.New("get " + name + ": the body broke off")
			}
			return int(response.Status()), body, nil
		}
		body = append(body, chunk.Ok()...)
	}
}

func nodeOf(found leasehold_registry_registry_types.ServerNode) Node {
	node := Node{Name: found.Name, Addr: found.Addr, Version: found.Version, Weight: found.Weight.SomeOr(0)}
	for _, pair := range found.Metadata {
		node.Metadata = append(node.Metadata, [2]string{pair.F0, pair.F1})
	}
	return node
}

func statusOf(now leasehold_registry_registry_types.Status) Status {
	states := [...]string{"pending", "registered", "suspect", "recovering", "conflict", "draining", "stopped"}
	return Status{states[now.State], now.Weight, now.TtlRemainingMs, now.Renewals, now.Recoveries}
}

func respond(out *wasi_http_types.ResponseOutparam, status int, body string) {
	response := wasi_http_types.MakeOutgoingResponse(wasi_http_types.MakeFields())
	response.SetStatusCode(uint16(status))
	content := response.Body().Ok()
	wasi_http_types.ResponseOutparamSet(
		out, wit.Ok[*wasi_http_types.OutgoingResponse, wasi_http_types.ErrorCode](response))
	stream := content.Write().Ok()
	for len(body) > 0 {
		chunk := body[:min(len(body), maxWrite)]
		if written := stream.BlockingWriteAndFlush([]byte(chunk)); written.IsErr() {
			break // The client has left.
		}
		body = body[len(chunk):]
	}
	stream.Drop()
	wasi_http_types.OutgoingBodyFinish(content, wit.None[*wasi_http_types.Fields]())
}

// failure makes an error of the host's, whose text is for people.
func failure(call string, why leasehold_registry_registry_types.Error) error {
	switch why.Tag() {
	case leasehold_registry_registry_types.Error_InvalidArgument:
		return fmt.Errorf("%s: invalid argument: %s", call, why.InvalidArgument())
	case leasehold_registry_registry_types.Error_AccessDenied:
		return fmt.Errorf("%s: access denied: %s", call, why.AccessDenied())
	case leasehold_registry_registry_types.Error_QuotaExceeded:
		return fmt.Errorf("%s: quota exceeded: %s", call, why.QuotaExceeded())
	case leasehold_registry_registry_types.Error_Conflict:
		return fmt.Errorf("%s: conflict: %s", call, why.Conflict())
	case leasehold_registry_registry_types.Error_Unavailable:
		return fmt.Errorf("%s: unavailable: %s", call, why.Unavailable())
	case leasehold_registry_registry_types.Error_Timeout:
		return fmt.Errorf("%s: timeout", call)
	case leasehold_registry_registry_types.Error_NotRegistered:
		return fmt.Errorf("%s: not registered", call)
	default:
		return fmt.Errorf("%s: %s", call, why.Other())
	}
}
