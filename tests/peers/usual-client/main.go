// Command usual-client registers services in etcd the way the usual Go
// registration library does: one lease, one keepalive goroutine and one put per
// registration, and another put at every renewal. It is the peer that `make
// bench` measures Leasehold against; README.md has the commands it reads from
// stdin and why the comparison is fair.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	inProgress  = 256              // calls of `register` or `stop` in progress at a time
	dialTimeout = 5 * time.Second  // the client also waits this long, and 1 s, for a lease's first renewal
	callTimeout = 3 * time.Second  // one registration, one put, one stop
	retryPause  = time.Second      // between two attempts to register again
	giveUp      = 60 * time.Second // a first registration is retried for this long
)

func main() {
	endpoints := flag.String("endpoints", "http://127.0.0.1:2379", "etcd endpoints, separated by commas")
	ttl := flag.Int64("ttl", 10, "TTL of every lease, in seconds")
	flag.Parse()

	client, err := clientv3.New(clientv3.Config{
		Endpoints:   strings.Split(*endpoints, ","),
		DialTimeout: dialTimeout,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "usual-client:", err)
		os.Exit(1)
	}
	defer client.Close()

	p := &peer{client: client, ttl: *ttl}
	p.weight.Store(100)
	go p.sampleLoad()

	answers := json.NewEncoder(os.Stdout)
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		fields := strings.Fields(commands.Text())
		if len(fields) == 0 {
			continue
		}
		if fields[0] == "quit" {
			return
		}
		answer, err := p.command(fields[0], fields[1:])
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		if err := answers.Encode(answer); err != nil {
			return // stdout is closed
		}
	}
}

func (p *peer) command(name string, args []string) (any, error) {
	numbers := make([]int, len(args))
	for i, arg := range args {
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%s: %q is not a positive number", name, arg)
		}
		numbers[i] = n
	}
	switch {
	case name == "register" && len(args) == 2:
		return p.registerMany(numbers[0], numbers[1])
	case name == "one" && len(args) == 0:
		return p.registerOne()
	case name == "hold" && len(args) == 1:
		return p.hold(time.Duration(numbers[0]) * time.Second)
	case name == "memory" && len(args) == 0:
		rss, err := residentBytes()
		return map[string]any{"rss_bytes": rss}, err
	case name == "stop" && len(args) == 0:
		return p.stopAll(), nil
	}
	return nil, fmt.Errorf("unknown command: %s with %d arguments", name, len(args))
}

// peer holds every registration. Its fields without a lock or an atomic type
// belong to the command loop.
type peer struct {
	client *clientv3.Client
	ttl    int64

	weight       atomic.Int64 // of this machine, sampled once a second
	reregistered atomic.Int64 // registrations made again after their lease was lost

	registrations []*registration
	services      int // registrations of `register` since the last stop
	singles       int // registrations of `one`, ever
	addresses     int // addresses given out, ever
}

func (p *peer) registerMany(n, perName int) (any, error) {
	fresh := make([]*registration, n)
	for i := range fresh {
		fresh[i] = p.newRegistration(fmt.Sprintf("svc-%d", p.services/perName))
		p.services++
	}

	before := p.reregistered.Load()
	var registered atomic.Int64
	begin := time.Now()
	atMost(inProgress, fresh, func(r *registration) {
		if r.start() == nil {
			registered.Add(1)
		}
	})
	seconds := time.Since(begin).Seconds()
	p.registrations = append(p.registrations, fresh...)

	lost, err := p.lost(fresh)
	return map[string]any{
		"seconds":      seconds,
		"registered":   registered.Load(),
		"lost":         lost,
		"reregistered": p.reregistered.Load() - before,
	}, err
}

func (p *peer) registerOne() (any, error) {
	r := p.newRegistration(fmt.Sprintf("one-%d", p.singles))
	p.singles++
	begin := time.Now()
	err := r.start()
	micros := float64(time.Since(begin).Nanoseconds()) / 1e3
	p.registrations = append(p.registrations, r)
	return map[string]any{"micros": micros}, err
}

func (p *peer) hold(d time.Duration) (any, error) {
	before, cpu, begin := p.reregistered.Load(), cpuSeconds(), time.Now()
	time.Sleep(d)
	cpu, seconds := cpuSeconds()-cpu, time.Since(begin).Seconds()
	rss, err := residentBytes()
	return map[string]any{
		"cpu_seconds":  cpu,
		"rss_bytes":    rss,
		"seconds":      seconds,
		"reregistered": p.reregistered.Load() - before,
	}, err
}

func (p *peer) stopAll() any {
	var stopped atomic.Int64
	begin := time.Now()
	atMost(inProgress, p.registrations, func(r *registration) {
		if r.stop() == nil {
			stopped.Add(1)
		}
	})
	p.registrations, p.services = nil, 0
	return map[string]any{"seconds": time.Since(begin).Seconds(), "stopped": stopped.Load()}
}

// lost counts the registrations whose key is missing or not bound to a live lease.
func (p *peer) lost(registrations []*registration) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*callTimeout)
	defer cancel()
	// Not keys only: etcd 3.7 then leaves the lease out.
	keys, err := p.client.Get(ctx, "/svc-", clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	leases, err := p.client.Leases(ctx)
	if err != nil {
		return 0, err
	}
	live := make(map[int64]bool, len(leases.Leases))
	for _, lease := range leases.Leases {
		live[int64(lease.ID)] = true
	}
	there := make(map[string]bool, len(keys.Kvs))
	for _, kv := range keys.Kvs {
		there[string(kv.Key)] = live[kv.Lease]
	}
	missing := 0
	for _, r := range registrations {
		if !there[r.key] {
			missing++
		}
	}
	return missing, nil
}

// registration is one node in etcd. After start, keepAlive owns lease and
// renewals until done is closed.
type registration struct {
	peer       *peer
	key        string
	name, addr string

	lease    clientv3.LeaseID
	renewals <-chan *clientv3.LeaseKeepAliveResponse

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // keepAlive has returned; nil when it was never started
}

func (p *peer) newRegistration(name string) *registration {
	i := p.addresses
	p.addresses++
	addr := fmt.Sprintf("10.%d.%d.%d:%d", i>>16&255, i>>8&255, i&255, 10000+i%50000)
	ctx, cancel := context.WithCancel(context.Background())
	return &registration{
		peer: p,
		key:  "/" + name + "/" + addr,
		name: name,
		addr: addr,
		ctx:  ctx, cancel: cancel,
	}
}

// start returns when the key is in etcd and its keepalive runs.
func (r *registration) start() error {
	deadline := time.Now().Add(giveUp)
	for {
		err := r.register()
		if err == nil {
			r.done = make(chan struct{})
			go r.keepAlive()
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(retryPause)
	}
}

// register does what every such library does: grant, put, keepalive.
func (r *registration) register() error {
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	grant, err := r.peer.client.Grant(ctx, r.peer.ttl)
	if err != nil {
		return err
	}
	r.lease = grant.ID
	if err := r.put(ctx); err != nil {
		return err
	}
	r.renewals, err = r.peer.client.KeepAlive(r.ctx, r.lease)
	return err
}

func (r *registration) put(ctx context.Context) error {
	_, err := r.peer.client.Put(ctx, r.key, r.value(), clientv3.WithLease(r.lease))
	return err
}

func (r *registration) value() string {
	value, _ := json.Marshal(struct { // four strings cannot fail
		Name    string `json:"name"`
		Addr    string `json:"addr"`
		Version string `json:"version"`
		Weight  string `json:"weight"`
	}{r.name, r.addr, "", strconv.FormatInt(r.peer.weight.Load(), 10)})
	return string(value)
}

// keepAlive publishes the weight at every renewal and registers again,
// without a limit, when the lease is lost.
func (r *registration) keepAlive() {
	defer close(r.done)
	for {
		select {
		case <-r.ctx.Done():
			return
		case _, alive := <-r.renewals:
			if alive {
				ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
				_ = r.put(ctx) // the next renewal puts again
				cancel()
			} else if !r.registerAgain() {
				return
			}
		}
	}
}

// registerAgain recovers this registration alone, as the libraries do. It
// returns false when the registration was stopped meanwhile.
func (r *registration) registerAgain() bool {
	for r.ctx.Err() == nil {
		if r.register() == nil {
			r.peer.reregistered.Add(1)
			return true
		}
		select {
		case <-r.ctx.Done():
		case <-time.After(retryPause):
		}
	}
	return false
}

// stop ends the keepalive, deletes the key and revokes the lease.
func (r *registration) stop() error {
	r.cancel()
	if r.done == nil {
		return errors.New("never registered")
	}
	<-r.done
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_, deleteErr := r.peer.client.Delete(ctx, r.key)
	_, revokeErr := r.peer.client.Revoke(ctx, r.lease)
	if errors.Is(revokeErr, rpctypes.ErrLeaseNotFound) {
		revokeErr = nil // the lease is gone already, which is the goal
	}
	return errors.Join(deleteErr, revokeErr)
}

// sampleLoad keeps the weight current: the mean of idle CPU and free memory in
// percent, from 1 to 100.
func (p *peer) sampleLoad() {
	var idleBefore, totalBefore float64
	for ; ; time.Sleep(time.Second) {
		idle, total := cpuTimes()
		if total > totalBefore {
			freeCPU := 100 * (idle - idleBefore) / (total - totalBefore)
			weight := int64(freeCPU*0.5 + freeMemoryPercent()*0.5 + 0.5)
			p.weight.Store(min(max(weight, 1), 100))
		}
		idleBefore, totalBefore = idle, total
	}
}

// cpuTimes reads the first line of /proc/stat: "cpu user nice system idle ...".
func cpuTimes() (idle, total float64) {
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, field := range strings.Fields(line) {
		ticks, _ := strconv.ParseFloat(field, 64)
		total += ticks
		if i == 4 {
			idle = ticks
		}
	}
	return idle, total
}

func freeMemoryPercent() float64 {
	meminfo, _ := os.ReadFile("/proc/meminfo")
	var total, available float64
	for line := range strings.Lines(string(meminfo)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			total, _ = strconv.ParseFloat(fields[1], 64)
		case "MemAvailable:":
			available, _ = strconv.ParseFloat(fields[1], 64)
		}
	}
	if total == 0 {
		return 0
	}
	return 100 * available / total
}

// cpuSeconds is the user and system time that this process has used.
func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // only a wrong argument can fail
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func residentBytes() (int64, error) {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0, fmt.Errorf("unexpected /proc/self/statm: %q", statm)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// atMost calls f for every registration, at most n calls at a time.
func atMost(n int, registrations []*registration, f func(*registration)) {
	queue := make(chan *registration)
	var workers sync.WaitGroup
	for range min(n, len(registrations)) {
		workers.Go(func() {
			for r := range queue {
				f(r)
			}
		})
	}
	for _, r := range registrations {
		queue <- r
	}
	close(queue)
	workers.Wait()
}
