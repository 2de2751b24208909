"""Client with gRPC's Python library, which is built on gRPC's C core: the same checks as in the Go client.

    client.py DESCRIPTORS GREETER FAILING [CA]

Each check prints a line; the first failed check ends the program with exit code 1.
"""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

# Longer than any response takes, shorter than the timeout of the test that runs this program.
PATIENCE = 30

OPTIONS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.use_local_subchannel_pool", 1)]


class Client:
    def __init__(self, descriptors, greeter, failing, authority=None):
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(Path(descriptors).read_bytes()).file:
            pool.Add(file)
        self.types = {
            name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"greeter.v1.{name}"))
            for name in ("GreetRequest", "RepeatRequest", "GreetReply")
        }
        if authority is None:
            self.greeter = grpc.insecure_channel(greeter, OPTIONS)
        else:
            trust = grpc.ssl_channel_credentials(Path(authority).read_bytes())
            self.greeter = grpc.secure_channel(greeter, trust, OPTIONS)
        # What gRPC's C core sends for a target as `etcd:///user/v1`.
        named = [*OPTIONS, ("grpc.default_authority", "user%2Fv1")]
        self.named = grpc.insecure_channel(greeter, named) if authority is None else None
        self.failing = grpc.insecure_channel(failing, OPTIONS)
        self.another = grpc.insecure_channel(failing, OPTIONS)

    def checks(self):
        yield "unary", self.unary
        yield "server streaming", self.server_streaming
        yield "client streaming", self.client_streaming
        yield "bidirectional streaming", self.bidirectional
        yield "messages of three megabytes", self.large
        yield "many calls on one connection", self.many
        yield "a status with details", self.details
        yield "an unknown method and an unknown service", self.unknown
        yield "a deadline", self.deadline
        yield "a cancellation", self.cancellation
        yield "health", self.health
        yield "a target with a slash", self.slash
        yield "a trap, a call that takes too long, and a host that is busy", self.failures

    def call(self, kind, method, service="greeter.v1.Greeter"):
        return getattr(self.greeter, kind)(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.types["GreetReply"].FromString,
        )

    def request(self, name):
        return self.types["GreetRequest"](name=name)

    def repeat(self, times, pause_ms, timeout=PATIENCE):
        request = self.types["RepeatRequest"](name="Ada", times=times, pause_ms=pause_ms)
        return self.call("unary_stream", "Repeat")(request, timeout=timeout)

    def greet(self, name):
        return self.call("unary_unary", "Greet")(self.request(name), timeout=PATIENCE).greeting

    def unary(self):
        same(self.greet("Ada"), "hello Ada")

    def slash(self):
        if self.named is None:
            return
        call = self.named.unary_unary(
            "/greeter.v1.Greeter/Greet",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.types["GreetReply"].FromString,
        )
        for _ in range(20):
            same(call(self.request("Ada"), timeout=PATIENCE).greeting, "hello Ada")

    def server_streaming(self):
        same([reply.greeting for reply in self.repeat(5, 10)], ["hello Ada"] * 5)

    def client_streaming(self):
        requests = (self.request(name) for name in ("Ada", "Grace", "Edsger"))
        reply = self.call("stream_unary", "GreetAll")(requests, timeout=PATIENCE)
        same(reply.greeting, "hello Ada, Grace, Edsger")

    def converse(self):
        """A bidirectional call: the queue of requests, and the replies."""
        said = SimpleQueue()
        return said, self.call("stream_stream", "Converse")(iter(said.get, None), timeout=PATIENCE)

    def bidirectional(self):
        said, heard = self.converse()
        for name in ("Ada", "Grace", "Edsger"):
            said.put(self.request(name))
            same(next(heard).greeting, f"hello {name}")
        said.put(None)
        same(list(heard), [])

    def large(self):
        name = "x" * (3 << 20)
        if self.greet(name) != f"hello {name}":
            raise AssertionError("it came back changed")

    def many(self):
        with ThreadPoolExecutor(20) as threads:
            for each in [threads.submit(self.unary) for _ in range(200)]:
                each.result()

    def details(self):
        error = fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: self.greet(""))
        same(error.details(), "a name must not be empty")
        bad = error_details_pb2.BadRequest()
        same([detail.Unpack(bad) for detail in rpc_status.from_call(error).details], [True])
        same(bad.field_violations[0].field, "name")
        # A status after messages, and so in the trailers.
        said, heard = self.converse()
        said.put(self.request("Ada"))
        same(next(heard).greeting, "hello Ada")
        said.put(self.request(""))
        fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: next(heard))
        said.put(None)

    def unknown(self):
        for service, method in (("greeter.v1.Greeter", "Ignore"), ("greeter.v1.Nobody", "Greet")):
            call = self.call("unary_unary", method, service)
            fails(grpc.StatusCode.UNIMPLEMENTED, lambda: call(self.request("Ada"), timeout=PATIENCE))

    def deadline(self):
        fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: list(self.repeat(100, 50, timeout=0.3)))

    def cancellation(self):
        replies = self.repeat(100, 200)
        same(next(replies).greeting, "hello Ada")
        replies.cancel()
        fails(grpc.StatusCode.CANCELLED, lambda: list(replies))

    def health(self):
        client = health_pb2_grpc.HealthStub(self.greeter)
        for service in ("", "greeter.v1.Greeter"):
            answer = client.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
            same(answer.status, health_pb2.HealthCheckResponse.SERVING)
        nobody = health_pb2.HealthCheckRequest(service="nobody")
        fails(grpc.StatusCode.NOT_FOUND, lambda: client.Check(nobody, timeout=PATIENCE))
        watch = client.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        fails(grpc.StatusCode.UNIMPLEMENTED, lambda: next(watch))

    def failures(self):
        """The failing service has one permit, a queue of one request, and a timeout of one second."""

        def act(channel, name):
            empty = empty_pb2.Empty
            call = channel.unary_unary(
                f"/act/{name}", request_serializer=empty.SerializeToString, response_deserializer=empty.FromString
            )
            return call.future(empty(), timeout=PATIENCE)

        fails(grpc.StatusCode.INTERNAL, act(self.failing, "trap").result)
        refused = threading.Event()

        def spin():
            """Occupies the permit or the queue until another call is refused; returns true if a call got the permit."""
            codes = set()
            while not refused.is_set():
                codes.add(act(self.failing, "spin").code())
            return grpc.StatusCode.DEADLINE_EXCEEDED in codes

        with ThreadPoolExecutor(2) as threads:
            late = [threads.submit(spin) for _ in range(2)]
            code, until = None, time.monotonic() + PATIENCE
            while code != grpc.StatusCode.UNAVAILABLE and time.monotonic() < until:
                code = act(self.another, "idle").code()
            refused.set()
        same(code, grpc.StatusCode.UNAVAILABLE)
        # A call that got the permit held it until its deadline.
        same(any(each.result() for each in late), True)


def same(found, expected):
    if found != expected:
        raise AssertionError(f"{found!r} instead of {expected!r}")


def fails(code, call):
    """Returns the error of a call that must fail with this code."""
    try:
        found = call()
    except grpc.RpcError as error:
        same(error.code(), code)
        return error
    raise AssertionError(f"{found!r} instead of {code}")


def main():
    client = Client(*sys.argv[1:])
    for name, check in client.checks():
        try:
            check()
        except Exception as error:  # Any error fails this check only.
            sys.exit(f"{name}: {error!r}")
        print(name, flush=True)


main()
