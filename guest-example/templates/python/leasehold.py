"""The host's registry as functions and types of Python: registration, look-ups, calls by name, responses, and the log."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, TypeVar

import componentize_py_async_support
import wit_world
from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import client, discovery, registrar
from wit_world.imports import wasi_http_types as http
from wit_world.imports.registry_types import ServerNode, State, Status

T = TypeVar("T")


class Kind(Enum):
    """Reason of an error, to decide by. HTTP: a call by name had no response, or its response broke off."""

    INVALID_ARGUMENT = "invalid argument"
    ACCESS_DENIED = "access denied"
    QUOTA_EXCEEDED = "quota exceeded"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    NOT_REGISTERED = "not registered"
    OTHER = "other"
    HTTP = "the request failed"


class LeaseholdError(Exception):
    """A call of the host that failed: `register user: access denied: name is not in this component's allow.names`."""

    def __init__(self, subject: str, kind: Kind, detail: str = ""):
        super().__init__(": ".join(filter(None, [subject, kind.value, detail])))
        self.kind = kind


@dataclass(frozen=True)
class Node:
    """A node of a service. To register one, leave `addr` empty for the address at which the host serves this component, and
    `weight` None (otherwise 1 to 100) for one that the host computes."""

    name: str
    version: str = ""
    weight: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    addr: str = ""


@dataclass(frozen=True)
class Registration:
    """A registration at one moment."""

    key: str
    node: Node
    state: State
    weight: int


@dataclass(frozen=True)
class Response:
    """A response with its whole body."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


class Service(exports.Lifecycle):
    """The lifecycle of a service: `class Lifecycle(Service)` with a `node` registers it at the start, and deletes every registration
    at the end."""

    node: ClassVar[Node]
    ttl_seconds: ClassVar[int] = 0

    def started(self, registration: Registration) -> None:
        """Runs after the registration. An exception fails the start, and the registration is undone; its traceback is in the host's
        log."""

    def stopped(self) -> None:
        """Runs after the last request, when the node is deleted."""

    def start(self) -> None:
        try:
            self.started(register(self.node, self.ttl_seconds))
        except LeaseholdError as error:
            # The only exception that the host takes for an error of `start`.
            raise Err(str(error)) from None

    def stop(self) -> None:
        try:
            stop()
        except LeaseholdError as error:
            log(str(error))  # The host goes on until the key is gone.
        self.stopped()


def register(node: Node, ttl_seconds: int = 0) -> Registration:
    """Registers a node, and returns when it is in etcd. The key outlives a dead host by the time to live; 0 is the host's."""
    declared = ServerNode(node.name, node.addr, node.version, node.weight, list(node.metadata.items()))
    with _host(f"register {node.name}", lambda: registrar.register(declared, ttl_seconds)) as handle:
        return _registration(handle.key(), handle.node(), handle.status())


def stop(key: str | None = None) -> None:
    """Deletes the registration of this key from etcd, or all of this component."""
    errors = []
    for handle in registrar.current():
        with handle:
            try:
                if key in (None, handle.key()):
                    _host(f"stop {handle.key()}", handle.stop)
            except LeaseholdError as error:
                errors.append(error)
    if errors:
        raise errors[0]


def status() -> list[Registration]:
    """The registrations of this component, whichever of its instances made them."""
    return [_registration(one.key, one.node, one.status) for one in registrar.describe()]


def resolve(name: str, version: str = "") -> list[Node]:
    """The nodes of a service, and of one version unless it is empty."""
    return [_node(node) for node in _host(f"resolve {name}", lambda: discovery.resolve(name, version))]


def pick(name: str, version: str = "") -> Node | None:
    """One node of a service, by the host's balancer; None if there is no node."""
    node = _host(f"pick {name}", lambda: discovery.pick(name, version))
    return None if node is None else _node(node)


async def call(name: str, path: str = "/", method: str = "GET", body: bytes = b"", version: str = "") -> Response:
    """Calls a service by name: the host picks a node, and goes on to the next one if a node takes no connection."""
    contents = _stream(body) if body else None
    request, _ = http.Request.new(http.Fields.from_list([]), contents, _no_trailers(), None)
    try:
        known = getattr(http, f"Method_{method.capitalize()}", None)
        request.set_method(known() if known else http.Method_Other(method))
        request.set_scheme(http.Scheme_Http())
        request.set_authority(f"{version}.{name}.leasehold" if version else f"{name}.leasehold")
        request.set_path_with_query(path)
        response = await client.send(request)
        code, received = response.get_status_code(), list[bytes]()
        _, taken = wit_world.result_unit_wasi_http_types_error_code_future(lambda: Ok(None))
        stream, trailers = http.Response.consume_body(response, taken)
        with stream:
            while not stream.writer_dropped:
                received.append(await stream.read(16 * 1024))
        end = await trailers.read()
        if isinstance(end, Err):
            raise end
    except Err as error:
        raise LeaseholdError(f"call {name}", Kind.HTTP, _words(error.value)) from None
    return Response(code, b"".join(received))


def respond(status: int, body: str | bytes) -> http.Response:
    """A response for `Handler.handle` to return; the body is sent behind it."""
    contents = _stream(body.encode() if isinstance(body, str) else body)
    response, _ = http.Response.new(http.Fields.from_list([]), contents, _no_trailers())
    response.set_status_code(status)
    return response


def log(line: str) -> None:
    """Writes a line to the host's log."""
    print(line, file=sys.stderr)


def _host(subject: str, run: Callable[[], T]) -> T:
    try:
        return run()
    except Err as error:
        kind = re.sub("(?<!^)(?=[A-Z])", "_", type(error.value).__name__.removeprefix("Error_")).upper()
        raise LeaseholdError(subject, Kind[kind], getattr(error.value, "value", "")) from None


def _words(error: object) -> str:
    """An error of wasi:http as words: its own text if it has one, or the name of its case."""
    if error is None:
        return "the name, the version or the path is not valid in a request"
    text = getattr(error, "value", None)
    return text if isinstance(text, str) else re.sub("(?<!^)(?=[A-Z])", " ", type(error).__name__.split("_")[-1]).lower()


def _registration(key: str, node: ServerNode, status: Status) -> Registration:
    return Registration(key, _node(node), status.state, status.weight)


def _node(node: ServerNode) -> Node:
    return Node(node.name, node.version, node.weight, dict(node.metadata), node.addr)


def _stream(body: bytes):
    writer, reader = wit_world.byte_stream()

    async def send() -> None:
        with writer:
            await writer.write_all(body)

    componentize_py_async_support.spawn(send())
    return reader


def _no_trailers():
    _, reader = wit_world.result_option_wasi_http_types_fields_wasi_http_types_error_code_future(lambda: Ok(None))
    return reader
