"""A service that registers itself, greets, reports its registration, and calls other services by name."""

import json

import leasehold
from leasehold import LeaseholdError, Node, Registration, Service, call, log, resolve, respond
from wit_world import exports
from wit_world.imports.wasi_http_types import Request, Response

NAME = "{{name}}"


class Lifecycle(Service):
    """The host calls it at the start, when the listener is open, and at the end, when the last request is complete."""

    # Without a weight the host computes one from the load of the machine.
    node = Node(NAME, version="v1", weight=50, metadata={"language": "python"})

    def started(self, registration: Registration) -> None:
        log(f"registered as {registration.key}")

    def stopped(self) -> None:
        log("stopped")


class Handler(exports.Handler):
    async def handle(self, request: Request) -> Response:
        try:
            return respond(*await answer(request.get_path_with_query() or "/"))
        except LeaseholdError as error:
            return respond(502, f"{error}\n")


async def answer(path: str) -> tuple[int, str]:
    match path.split("/")[1:]:
        case [""]:
            return 200, f"hello from {NAME}\n"
        case ["status"]:
            return 200, json.dumps(status()) + "\n"
        case ["nodes", service]:
            nodes = [{"addr": node.addr, "version": node.version} for node in resolve(service)]
            return 200, json.dumps(nodes) + "\n"
        case ["call", service]:
            # The host picks one of its nodes.
            response = await call(service)
            return 200, f"{service} answered {response.status}: {response.text}"
    return 404, "not found\n"


def status() -> dict:
    """The registration that was made at the start, maybe on another instance."""
    registration = leasehold.status()[0]
    node = registration.node
    return {
        "key": registration.key,
        "addr": node.addr,
        "version": node.version,
        "weight": registration.weight,
        "state": registration.state.name.lower(),
        "metadata": list(node.metadata.items()),
    }
