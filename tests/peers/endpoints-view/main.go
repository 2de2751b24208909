// Endpoints-view follows a service with the endpoints manager of etcd's own client, as grpc-go's resolver for etcd does.
//
// One command per line on stdin, one JSON object per line on stdout:
// memory: rss_bytes; view NAME: seconds until all nodes are in the view, and their number; see N: median_micros and p99_micros
// from the put of a node to the view that includes it, N times; serve: addr of an HTTP server, where /PORT?key=KEY reports
// whether the view has a node of that port under that key; quit.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
)

type viewer struct {
	client  *clientv3.Client
	name    string
	manager endpoints.Manager
	updates endpoints.WatchChannel
	nodes   map[string]endpoints.Endpoint
}

func main() {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[1]}, DialTimeout: 5 * time.Second})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	v := &viewer{client: client, nodes: map[string]endpoints.Endpoint{}}
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		words := strings.Fields(commands.Text())
		var answer any
		switch words[0] {
		case "quit":
			return
		case "memory":
			answer = map[string]any{"rss_bytes": rss()}
		case "view":
			answer, err = v.view(words[1])
		case "see":
			count, _ := strconv.Atoi(words[1])
			answer, err = v.see(count)
		case "serve":
			answer, err = v.serve()
		}
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		line, _ := json.Marshal(answer)
		fmt.Println(string(line))
	}
}

func (v *viewer) view(name string) (any, error) {
	begun := time.Now()
	var err error
	if v.manager, err = endpoints.NewManager(v.client, name); err != nil {
		return nil, err
	}
	if v.updates, err = v.manager.NewWatchChannel(context.Background()); err != nil {
		return nil, err
	}
	v.name = name
	v.apply(<-v.updates)
	return map[string]any{"seconds": time.Since(begun).Seconds(), "nodes": len(v.nodes)}, nil
}

// apply stores the updates as the resolver does.
func (v *viewer) apply(updates []*endpoints.Update) {
	for _, update := range updates {
		if update.Op == endpoints.Add {
			v.nodes[update.Key] = update.Endpoint
		} else {
			delete(v.nodes, update.Key)
		}
	}
}

func (v *viewer) see(count int) (any, error) {
	var micros []float64
	for port := 1; port <= count; port++ {
		addr := fmt.Sprintf("10.9.9.9:%d", port)
		value, _ := json.Marshal(map[string]any{"Op": 0, "Addr": addr, "Metadata": nil})
		wanted := len(v.nodes) + 1
		begun := time.Now()
		if _, err := v.client.Put(context.Background(), v.name+"/"+addr, string(value)); err != nil {
			return nil, err
		}
		for len(v.nodes) < wanted {
			v.apply(<-v.updates)
		}
		micros = append(micros, float64(time.Since(begun).Nanoseconds())/1e3)
	}
	sort.Float64s(micros)
	return map[string]any{"median_micros": micros[len(micros)/2], "p99_micros": micros[len(micros)*99/100]}, nil
}

// serve runs a service that looks up one node among the stored updates, which is less work than the component's full list.
func (v *viewer) serve() (any, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	var lock sync.RWMutex
	go func() {
		for updates := range v.updates {
			lock.Lock()
			v.apply(updates)
			lock.Unlock()
		}
	}()
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lock.RLock()
		node := v.nodes[r.URL.Query().Get("key")]
		lock.RUnlock()
		is := strings.HasSuffix(node.Addr, ":"+strings.TrimPrefix(r.URL.Path, "/"))
		json.NewEncoder(w).Encode(map[string]any{"case": "ok", "text": strconv.FormatBool(is)})
	}))
	return map[string]any{"addr": listener.Addr().String()}, nil
}

func rss() int64 {
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib * 1024
		}
	}
	return 0
}
