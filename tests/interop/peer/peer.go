// Package peer is what the peers have in common: a service library of somebody else, driven line by line.
//
// One command a line on stdin, as JSON; one JSON object a line on stdout. A `watch` is answered at once and from then on
// tells each list of instances that differs from the one before; every other command has one answer.
//
//	{"do":"watch","name":"user"}             {"done":true} {"of":"user","saw":[{"addr":"...","version":"...","weight":1,"metadata":{}}]} ...
//	{"do":"call","name":"user"}              {"answer":"..."}
//	{"do":"register","node":{"name":...}}    {"answer":"127.0.0.1:..."}
//	{"do":"deregister"}                      {"done":true}
//
// What failed is answered with {"error":"..."}. The end of stdin is the end of the peer.
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

// Timeout bounds what a library does for one command.
const Timeout = 10 * time.Second

// Hello is what a server answers to `GET /`.
const Hello = "hello\n"

// Instance is an instance as the library's own resolver shows it; what it does not show is empty.
type Instance struct {
	Addr     string            `json:"addr"`
	Version  string            `json:"version"`
	Weight   int               `json:"weight"`
	Metadata map[string]string `json:"metadata"`
}

// Node is an instance to serve and to register; it has no address before that.
type Node struct {
	Name string `json:"name"`
	// Grpc is whether it is to answer questions for its health over gRPC, instead of `GET /`.
	Grpc bool `json:"grpc"`
	Instance
}

// Library is a service library, on one etcd.
type Library interface {
	// Watch follows a service until the process ends, and tells all of its instances after each change.
	Watch(name string, tell func([]Instance)) error
	// Call asks one instance for `/`, or for its health, over the library's own client, and gives the answer.
	Call(name string) (string, error)
	// Register starts a server of the library at a free port of 127.0.0.1, which publishes itself as such servers do;
	// gives its address, and the way to end it.
	Register(node Node) (addr string, deregister func() error, err error)
}

// ErrNoTransport is what a library answers to a call for which it has no client that speaks HTTP or gRPC.
var ErrNoTransport = errors.New("no transport that Leasehold serves")

// Run drives a library that is opened on the etcd at `-etcd HOST:PORT`.
func Run(open func(etcd string) (Library, error)) {
	etcd := flag.String("etcd", "", "where etcd listens, HOST:PORT")
	flag.Parse()
	// Libraries write to stdout as they like; the answers go to the descriptor that stdout was.
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

// Free is an address of this machine that was free a moment ago, for servers that cannot tell which one they took.
func Free() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// Poll asks for the instances ten times a second, for libraries that do not watch but ask.
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

// writer writes one line at a time, whoever writes.
type writer struct {
	sync.Mutex
	encoder *json.Encoder
}

func (w *writer) write(line any) {
	w.Lock()
	defer w.Unlock()
	if err := w.encoder.Encode(line); err != nil {
		os.Exit(1) // The driver is gone.
	}
}

// saw writes each list that differs from the one before, in the order of the addresses.
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
