// Package peer is the common part of the peers: a foreign service library, driven line by line.
//
// One JSON command per line on stdin; one JSON object per line on stdout. The response to a `watch` comes at once; after that
// each changed list of instances is a further line. Every other command has one response.
//
//	{"do":"watch","name":"user"}             {"done":true} {"of":"user","saw":[{"addr":"...","version":"...","weight":1,"metadata":{}}]} ...
//	{"do":"call","name":"user"}              {"answer":"..."}
//	{"do":"register","node":{"name":...}}    {"answer":"127.0.0.1:..."}
//	{"do":"deregister"}                      {"done":true}
//
// The response to a failed command is {"error":"..."}. The peer ends at the end of stdin.
package peer

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// Timeout is the limit for one command of a library.
const Timeout = 10 * time.Second

// Hello is a server's response to `GET /`.
const Hello = "hello\n"

// Instance is an instance as the library's own resolver shows it; unknown fields are empty.
type Instance struct {
	Addr     string            `json:"addr"`
	Version  string            `json:"version"`
	Weight   int               `json:"weight"`
	Metadata map[string]string `json:"metadata"`
}

// Node is an instance to serve and to register; it has no address before that.
type Node struct {
	Name string `json:"name"`
	// Grpc selects health checks over gRPC instead of `GET /`.
	Grpc bool `json:"grpc"`
	Instance
}

// Library is a service library, on one etcd.
type Library interface {
	// Watch follows a service until the process ends, and reports all of its instances after each change.
	Watch(name string, tell func([]Instance)) error
	// Call requests `/` or the health of one instance with the library's own client, and returns the response.
	Call(name string) (string, error)
	// Register starts a server of the library at a free port of 127.0.0.1, which publishes itself as such servers do.
	// It returns the address of the server, and a function that ends it.
	Register(node Node) (addr string, deregister func() error, err error)
}

// ErrNoTransport is the error of a library without a client for HTTP or gRPC.
var ErrNoTransport = errors.New("no transport that Leasehold serves")

// Run drives a library that is opened on the etcd at `-etcd HOST:PORT`.
func Run(open func(etcd string) (Library, error)) {
	etcd := flag.String("etcd", "", "where etcd listens, HOST:PORT")
	flag.Parse()
	// Libraries may write to stdout, so the responses go to a duplicate of the original descriptor.
	answers := &writer{encoder: json.NewEncoder(os.Stdout)}
	os.Stdout = os.Stderr
	library, err := open(*etcd)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	session := session{library: library, answers: answers}
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		answers.write(session.do(commands.Bytes()))
	}
}

// Free returns a free local address, for servers that cannot report the port that they chose.
func Free() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// Poll reads the instances ten times a second, for libraries that poll instead of watching.
func Poll(ask func() ([]Instance, error), tell func([]Instance)) {
	for ; ; time.Sleep(100 * time.Millisecond) {
		if instances, err := ask(); err == nil {
			tell(instances)
		} else {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

type command struct {
	Do   string `json:"do"`
	Name string `json:"name"`
	Node Node   `json:"node"`
}

type answer struct {
	Done   bool   `json:"done,omitempty"`
	Answer string `json:"answer,omitempty"`
	Error  string `json:"error,omitempty"`
}

type session struct {
	library    Library
	answers    *writer
	deregister func() error
}

func (s *session) do(line []byte) any {
	var command command
	if err := json.Unmarshal(line, &command); err != nil {
		return answer{Error: err.Error()}
	}
	text, err := s.act(command)
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Done: text == "", Answer: text}
}

func (s *session) act(command command) (string, error) {
	switch command.Do {
	case "watch":
		return "", s.library.Watch(command.Name, s.answers.saw(command.Name))
	case "call":
		return s.library.Call(command.Name)
	case "register":
		addr, deregister, err := s.library.Register(command.Node)
		s.deregister = deregister
		return addr, err
	case "deregister":
		if s.deregister == nil {
			return "", errors.New("nothing is registered")
		}
		return "", s.deregister()
	}
	return "", fmt.Errorf("there is no %q", command.Do)
}

// writer writes whole lines, from any goroutine.
type writer struct {
	sync.Mutex
	encoder *json.Encoder
}

func (w *writer) write(line any) {
	w.Lock()
	defer w.Unlock()
	if err := w.encoder.Encode(line); err != nil {
		os.Exit(1) // The driver has ended.
	}
}

// saw writes each list that differs from the previous one, in the order of the addresses.
func (w *writer) saw(name string) func([]Instance) {
	var lock sync.Mutex
	var before []Instance
	first := true
	return func(now []Instance) {
		lock.Lock()
		defer lock.Unlock()
		now = slices.Clone(now)
		slices.SortFunc(now, func(a, b Instance) int { return strings.Compare(a.Addr, b.Addr) })
		if !first && reflect.DeepEqual(now, before) {
			return
		}
		first, before = false, now
		if now == nil {
			now = []Instance{}
		}
		w.write(map[string]any{"of": name, "saw": now})
	}
}
