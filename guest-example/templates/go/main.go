// A service that registers itself, greets, reports its registration, and calls other services by name.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"service/leasehold"
)

const (
	name = "{{name}}"
	// Time that the key in etcd outlives a dead host.
	ttlSeconds = 10
)

func init() {
	leasehold.Serve(leasehold.Service{Start: start, Stop: stop, Handle: handle})
}

// start is called once, when the listener is open. The host keeps the registration until stop.
func start() error {
	registration, err := leasehold.Register(leasehold.Node{
		Name:     name,
		Version:  "v1",
		Weight:   50,
		Metadata: [][2]string{{"language", "go"}},
	}, ttlSeconds)
	if err != nil {
		return err
	}
	// Standard error is the host's log.
	fmt.Fprintln(os.Stderr, "registered as", registration.Key())
	return nil
}

// stop is called once, when the last request is complete.
func stop() {
	for _, registration := range leasehold.Current() {
		_ = registration.Stop() // After a timeout the host goes on until the key is gone.
	}
	fmt.Fprintln(os.Stderr, "stopped")
}

func handle(path string) (int, string) {
	first, service, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch {
	case path == "/":
		return 200, "hello from " + name + "\n"
	case path == "/status":
		return status()
	case first == "nodes" && service != "":
		return nodes(service)
	case first == "call" && service != "":
		return call(service)
	}
	return 404, "not found\n"
}

// status reports the registration that start made, maybe on another instance.
func status() (int, string) {
	all := leasehold.Describe()
	if len(all) == 0 {
		return 502, "not registered\n"
	}
	one := all[0]
	return inJSON(map[string]any{
		"key":      one.Key,
		"addr":     one.Node.Addr,
		"version":  one.Node.Version,
		"weight":   one.Weight,
		"state":    one.State,
		"metadata": one.Node.Metadata,
	})
}

// nodes lists the nodes of a service, as etcd has them.
func nodes(service string) (int, string) {
	found, err := leasehold.Resolve(service, "")
	if err != nil {
		return 502, err.Error() + "\n"
	}
	list := []map[string]string{}
	for _, node := range found {
		list = append(list, map[string]string{"addr": node.Addr, "version": node.Version})
	}
	return inJSON(list)
}

// call calls a service by name; the host picks one of its nodes.
func call(service string) (int, string) {
	status, body, err := leasehold.Get(service, "/")
	if err != nil {
		return 502, err.Error() + "\n"
	}
	return 200, fmt.Sprintf("%s answered %d: %s", service, status, body)
}

func inJSON(value any) (int, string) {
	text, err := json.Marshal(value)
	if err != nil {
		return 500, err.Error() + "\n"
	}
	return 200, string(text) + "\n"
}

// main does not run: the module is a library.
func main() {}
