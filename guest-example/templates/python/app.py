"""A service that registers itself, greets, reports its registration, and calls other services by name."""

import json
import sys

import componentize_py_async_support
import wit_world
from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import client, discovery, registrar
from wit_world.imports.registry_types import ServerNode
from wit_world.imports.wasi_http_types import Fields, Method_Get, Request, Response, Scheme_Http

NAME = "{{name}}"
# Time that the key in etcd outlives a dead host.
TTL_SECONDS = 10


class Lifecycle(exports.Lifecycle):
    def start(self) -> None:
        """Called once, when the listener is open. The host keeps the registration until `stop`."""
        node = ServerNode(
            name=NAME,
            # Empty: the address at which the host serves this component.
            addr="",
            version="v1",
            # None would be a weight that the host computes from the load of the machine.
            weight=50,
            metadata=[("language", "python")],
        )
        try:
            registration = registrar.register(node, TTL_SECONDS)
        except Err as error:
            # The only exception that the host takes for an error of `start`.
            raise Err(f"register {NAME}: {error.value}") from None
        # Standard error is the host's log.
        print(f"registered as {registration.key()}", file=sys.stderr)

    def stop(self) -> None:
        """Called once, when the last request is complete."""
        for registration in registrar.current():
            try:
                registration.stop()
            except Err:
                pass  # After a timeout the host goes on until the key is gone.
        print("stopped", file=sys.stderr)


class Handler(exports.Handler):
    async def handle(self, request: Request) -> Response:
        try:
            status, body = await answer(request.get_path_with_query() or "/")
        except Err as error:
            status, body = 502, f"{error.value}\n"
        writer, reader = wit_world.byte_stream()
        response, _ = Response.new(Fields.from_list([]), reader, no_trailers())
        response.set_status_code(status)
        componentize_py_async_support.spawn(send(writer, body.encode()))
        return response


async def answer(path: str) -> tuple[int, str]:
    match path.split("/")[1:]:
        case [""]:
            return 200, f"hello from {NAME}\n"
        case ["status"]:
            return 200, json.dumps(status()) + "\n"
        case ["nodes", service]:
            nodes = discovery.resolve(service, "")
            return 200, json.dumps([{"addr": node.addr, "version": node.version} for node in nodes]) + "\n"
        case ["call", service]:
            return 200, await call(service)
    return 404, "not found\n"


def status() -> dict:
    """The registration that `start` made, maybe on another instance."""
    registration = registrar.describe()[0]
    node, now = registration.node, registration.status
    return {
        "key": registration.key,
        "addr": node.addr,
        "version": node.version,
        "weight": now.weight,
        "state": now.state.name.lower(),
        "metadata": node.metadata,
    }


async def call(service: str) -> str:
    """Calls a service by name; the host picks one of its nodes."""
    request, _ = Request.new(Fields.from_list([]), None, no_trailers(), None)
    request.set_method(Method_Get())
    request.set_scheme(Scheme_Http())
    request.set_authority(f"{service}.leasehold")
    request.set_path_with_query("/")
    response = await client.send(request)
    code, body = response.get_status_code(), b""
    stream, _ = Response.consume_body(response, received())
    with stream:
        while not stream.writer_dropped:
            body += await stream.read(16 * 1024)
    return f"{service} answered {code}: {body.decode()}"


async def send(writer, body: bytes) -> None:
    with writer:
        await writer.write_all(body)


def no_trailers():
    _, reader = wit_world.result_option_wasi_http_types_fields_wasi_http_types_error_code_future(lambda: Ok(None))
    return reader


def received():
    _, reader = wit_world.result_unit_wasi_http_types_error_code_future(lambda: Ok(None))
    return reader
