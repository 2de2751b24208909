// Grpc-go is a client with gRPC's own Go library: it tests every kind of call, statuses, details, deadlines and health.
//
//	grpc-go DESCRIPTORS GREETER FAILING [CA]
//
// GREETER serves the example, FAILING the component that misbehaves on command. Each check prints a line; the first failed
// check ends the program with exit code 1.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Longer than any response takes, shorter than the timeout of the test that runs this program.
const patience = 30 * time.Second

type client struct {
	types   protoreflect.FileDescriptor
	greeter *grpc.ClientConn
	// The same under the name by which a resolver of etcd's finds a service and its version.
	named   *grpc.ClientConn
	secured bool
	failing *grpc.ClientConn
	// A second connection to the failing service, which does not wait for the streams of the first.
	another *grpc.ClientConn
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 3 {
		return errors.New("usage: grpc-go DESCRIPTORS GREETER FAILING [CA]")
	}
	types, err := load(arguments[0])
	if err != nil {
		return err
	}
	security := insecure.NewCredentials()
	if len(arguments) > 3 {
		if security, err = trusting(arguments[3]); err != nil {
			return err
		}
	}
	c := client{types: types}
	if c.greeter, err = grpc.NewClient(arguments[1], grpc.WithTransportCredentials(security)); err != nil {
		return err
	}
	etcd := manual.NewBuilderWithScheme("etcd")
	etcd.InitialState(resolver.State{Addresses: []resolver.Address{{Addr: arguments[1]}}})
	// With TLS the authority is the name in the certificate.
	if c.named, err = grpc.NewClient("etcd:///user/v1", grpc.WithResolvers(etcd), grpc.WithTransportCredentials(security)); err != nil {
		return err
	}
	c.secured = len(arguments) > 3
	for _, connection := range []**grpc.ClientConn{&c.failing, &c.another} {
		plain := grpc.WithTransportCredentials(insecure.NewCredentials())
		if *connection, err = grpc.NewClient(arguments[2], plain); err != nil {
			return err
		}
	}
	checks := []struct {
		name  string
		check func(context.Context) error
	}{
		{"unary", c.unary},
		{"server streaming", c.serverStreaming},
		{"client streaming", c.clientStreaming},
		{"bidirectional streaming", c.bidirectional},
		{"messages of three megabytes", c.large},
		{"many calls on one connection", c.many},
		{"a status with details", c.details},
		{"an unknown method and an unknown service", c.unknown},
		{"a deadline", c.deadline},
		{"a cancellation", c.cancellation},
		{"health", c.health},
		{"a target with a slash", c.slash},
		{"a trap, a call that takes too long, and a host that is busy", c.failures},
	}
	for _, each := range checks {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := each.check(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", each.name, err)
		}
		fmt.Println(each.name)
	}
	return nil
}

// The messages, from protoc's descriptors of the example's .proto file.
func load(path string) (protoreflect.FileDescriptor, error) {
	bytes, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	set := new(descriptorpb.FileDescriptorSet)
	if err := proto.Unmarshal(bytes, set); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, err
	}
	return files.FindFileByPath("greeter.proto")
}

func trusting(path string) (credentials.TransportCredentials, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return credentials.NewTLS(&tls.Config{RootCAs: pool}), nil
}

func (c *client) message(name string, fields map[string]any) *dynamicpb.Message {
	message := dynamicpb.NewMessage(c.types.Messages().ByName(protoreflect.Name(name)))
	for field, value := range fields {
		message.Set(message.Descriptor().Fields().ByName(protoreflect.Name(field)), protoreflect.ValueOf(value))
	}
	return message
}

func (c *client) request(name string) *dynamicpb.Message {
	return c.message("GreetRequest", map[string]any{"name": name})
}

func (c *client) repeat(times, pause uint32) *dynamicpb.Message {
	return c.message("RepeatRequest", map[string]any{"name": "Ada", "times": times, "pause_ms": pause})
}

func greeting(reply *dynamicpb.Message) string {
	return reply.Get(reply.Descriptor().Fields().ByName("greeting")).String()
}

func (c *client) stream(ctx context.Context, method string) (grpc.ClientStream, error) {
	both := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	return c.greeter.NewStream(ctx, both, "/greeter.v1.Greeter/"+method)
}

func (c *client) greet(ctx context.Context, name string) (string, error) {
	reply := c.message("GreetReply", nil)
	err := c.greeter.Invoke(ctx, "/greeter.v1.Greeter/Greet", c.request(name), reply)
	return greeting(reply), err
}

func (c *client) receive(stream grpc.ClientStream) (string, error) {
	reply := c.message("GreetReply", nil)
	err := stream.RecvMsg(reply)
	return greeting(reply), err
}

func (c *client) receives(stream grpc.ClientStream, expected string) error {
	if text, err := c.receive(stream); err != nil || text != expected {
		return fmt.Errorf("%q, %v instead of %q", text, err, expected)
	}
	return nil
}

func (c *client) ends(stream grpc.ClientStream) error {
	if text, err := c.receive(stream); err != io.EOF {
		return fmt.Errorf("%q, %v instead of the end", text, err)
	}
	return nil
}

func (c *client) unary(ctx context.Context) error {
	if text, err := c.greet(ctx, "Ada"); err != nil || text != "hello Ada" {
		return fmt.Errorf("%q, %v", text, err)
	}
	return nil
}

// Its authority is `user%2Fv1`.
func (c *client) slash(ctx context.Context) error {
	if c.secured {
		return nil
	}
	for range 20 {
		reply := c.message("GreetReply", nil)
		err := c.named.Invoke(ctx, "/greeter.v1.Greeter/Greet", c.request("Ada"), reply)
		if text := greeting(reply); err != nil || text != "hello Ada" {
			return fmt.Errorf("%q, %v", text, err)
		}
	}
	return nil
}

func (c *client) serverStreaming(ctx context.Context) error {
	stream, err := c.stream(ctx, "Repeat")
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(c.repeat(5, 10)), stream.CloseSend()); err != nil {
		return err
	}
	for range 5 {
		if err := c.receives(stream, "hello Ada"); err != nil {
			return err
		}
	}
	return c.ends(stream)
}

func (c *client) clientStreaming(ctx context.Context) error {
	stream, err := c.stream(ctx, "GreetAll")
	if err != nil {
		return err
	}
	for _, name := range []string{"Ada", "Grace", "Edsger"} {
		if err := stream.SendMsg(c.request(name)); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := c.receives(stream, "hello Ada, Grace, Edsger"); err != nil {
		return err
	}
	return c.ends(stream)
}

// Each request is sent when the previous response has arrived, so neither direction waits for the other's end.
func (c *client) bidirectional(ctx context.Context) error {
	stream, err := c.stream(ctx, "Converse")
	if err != nil {
		return err
	}
	for _, name := range []string{"Ada", "Grace", "Edsger"} {
		if err := stream.SendMsg(c.request(name)); err != nil {
			return err
		}
		if err := c.receives(stream, "hello "+name); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return c.ends(stream)
}

func (c *client) large(ctx context.Context) error {
	name := strings.Repeat("x", 3<<20)
	if text, err := c.greet(ctx, name); err != nil || text != "hello "+name {
		return fmt.Errorf("%d bytes, %v", len(text), err)
	}
	return nil
}

func (c *client) many(ctx context.Context) error {
	var all sync.WaitGroup
	failures := make(chan error, 20)
	for range 20 {
		all.Go(func() {
			for range 20 {
				if err := c.unary(ctx); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(failures)
	return <-failures
}

func (c *client) details(ctx context.Context) error {
	_, err := c.greet(ctx, "")
	said := status.Convert(err)
	if said.Code() != codes.InvalidArgument || said.Message() != "a name must not be empty" {
		return fmt.Errorf("%v", err)
	}
	for _, detail := range said.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok && bad.FieldViolations[0].Field == "name" {
			return c.lateStatus(ctx)
		}
	}
	return fmt.Errorf("its details are %v", said.Details())
}

// A status after messages, and so in the trailers.
func (c *client) lateStatus(ctx context.Context) error {
	stream, err := c.stream(ctx, "Converse")
	if err != nil {
		return err
	}
	if err := stream.SendMsg(c.request("Ada")); err != nil {
		return err
	}
	if err := c.receives(stream, "hello Ada"); err != nil {
		return err
	}
	if err := stream.SendMsg(c.request("")); err != nil {
		return err
	}
	_, err = c.receive(stream)
	if err := is(err, codes.InvalidArgument); err != nil {
		return err
	}
	if len(stream.Trailer().Get("grpc-status-details-bin")) != 1 {
		return fmt.Errorf("its trailers are %v", stream.Trailer())
	}
	return nil
}

func is(err error, code codes.Code) error {
	if status.Code(err) != code {
		return fmt.Errorf("%v instead of %v", err, code)
	}
	return nil
}

func (c *client) unknown(ctx context.Context) error {
	for _, method := range []string{"/greeter.v1.Greeter/Ignore", "/greeter.v1.Nobody/Greet"} {
		err := c.greeter.Invoke(ctx, method, c.request("Ada"), c.message("GreetReply", nil))
		if err := is(err, codes.Unimplemented); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
	}
	return nil
}

func (c *client) deadline(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	stream, err := c.stream(ctx, "Repeat")
	if err == nil {
		_ = errors.Join(stream.SendMsg(c.repeat(100, 50)), stream.CloseSend()) // An error here also ends the response.
	}
	for err == nil {
		_, err = c.receive(stream)
	}
	return is(err, codes.DeadlineExceeded)
}

func (c *client) cancellation(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.stream(ctx, "Repeat")
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(c.repeat(100, 200)), stream.CloseSend()); err != nil {
		return err
	}
	if err := c.receives(stream, "hello Ada"); err != nil {
		return err
	}
	cancel()
	for err == nil {
		_, err = c.receive(stream)
	}
	return is(err, codes.Canceled)
}

func (c *client) health(ctx context.Context) error {
	client := health.NewHealthClient(c.greeter)
	for _, service := range []string{"", "greeter.v1.Greeter"} {
		answer, err := client.Check(ctx, &health.HealthCheckRequest{Service: service})
		if err != nil || answer.Status != health.HealthCheckResponse_SERVING {
			return fmt.Errorf("%q: %v, %w", service, answer, err)
		}
	}
	_, err := client.Check(ctx, &health.HealthCheckRequest{Service: "nobody"})
	if err := is(err, codes.NotFound); err != nil {
		return err
	}
	watch, err := client.Watch(ctx, &health.HealthCheckRequest{})
	if err != nil {
		return err
	}
	// gRPC's own clients then treat the service as healthy.
	_, err = watch.Recv()
	return is(err, codes.Unimplemented)
}

// The failing service has one permit, a queue of one request, and a timeout of one second.
func (c *client) failures(ctx context.Context) error {
	act := func(on *grpc.ClientConn, name string, options ...grpc.CallOption) error {
		return on.Invoke(ctx, "/act/"+name, new(emptypb.Empty), new(emptypb.Empty), options...)
	}
	if err := is(act(c.failing, "trap"), codes.Internal); err != nil {
		return err
	}
	// Two calls occupy the permit and the queue again and again, until another call is refused.
	refused := make(chan struct{})
	late := make(chan bool, 2)
	for range cap(late) {
		go func() {
			for was := false; ; {
				was = is(act(c.failing, "spin"), codes.DeadlineExceeded) == nil || was
				select {
				case <-refused:
					late <- was
					return
				default:
				}
			}
		}()
	}
	var trailer metadata.MD
	var err error
	for is(err, codes.Unavailable) != nil && ctx.Err() == nil {
		err = act(c.another, "idle", grpc.Trailer(&trailer))
	}
	close(refused)
	// A call that got the permit held it until its deadline.
	one, other := <-late, <-late
	if err := is(err, codes.Unavailable); err != nil {
		return err
	}
	if pushback := trailer.Get("grpc-retry-pushback-ms"); len(pushback) != 1 {
		return fmt.Errorf("its trailers are %v", trailer)
	}
	if !one && !other {
		return errors.New("no call was too late")
	}
	return nil
}
