// Go-zero-view follows a service with go-zero's subscriber. Its commands are those of endpoints-view.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	clientv3 "go.etcd.io/etcd/client/v3"
)

type viewer struct {
	endpoint   string
	client     *clientv3.Client
	name       string
	subscriber *discov.Subscriber
	changed    chan struct{}
}

func main() {
	logx.Disable()
	endpoint := strings.TrimPrefix(os.Args[1], "http://")
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	v := &viewer{endpoint: endpoint, client: client, changed: make(chan struct{}, 1)}
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
	subscriber, err := discov.NewSubscriber([]string{v.endpoint}, name)
	if err != nil {
		return nil, err
	}
	v.name, v.subscriber = name, subscriber
	nodes := len(subscriber.Values())
	seconds := time.Since(begun).Seconds()
	subscriber.AddListener(func() {
		select {
		case v.changed <- struct{}{}:
		default:
		}
	})
	return map[string]any{"seconds": seconds, "nodes": nodes}, nil
}

func (v *viewer) see(count int) (any, error) {
	var micros []float64
	for port := 1; port <= count; port++ {
		addr := fmt.Sprintf("10.9.9.9:%d", port)
		wanted := len(v.subscriber.Values()) + 1
		begun := time.Now()
		if _, err := v.client.Put(context.Background(), fmt.Sprintf("%s/%d", v.name, port), addr); err != nil {
			return nil, err
		}
		for len(v.subscriber.Values()) < wanted {
			<-v.changed
		}
		micros = append(micros, float64(time.Since(begun).Nanoseconds())/1e3)
	}
	// Deleted here, since nothing else deletes these keys.
	for port := 1; port <= count; port++ {
		if _, err := v.client.Delete(context.Background(), fmt.Sprintf("%s/%d", v.name, port)); err != nil {
			return nil, err
		}
	}
	sort.Float64s(micros)
	return map[string]any{"median_micros": micros[len(micros)/2], "p99_micros": micros[len(micros)*99/100]}, nil
}

// serve runs a service that looks up one node among the subscriber's values.
func (v *viewer) serve() (any, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		is := slices.Contains(v.subscriber.Values(), "10.9.9.9:"+strings.TrimPrefix(r.URL.Path, "/"))
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
