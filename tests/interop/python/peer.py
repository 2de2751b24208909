"""The common part of the Python peers: the line protocol of ../peer/peer.go, and the layout `seed`.

etcd's Python clients have no service discovery; their users read and write the keys themselves, as these peers do.
"""

import argparse
import itertools
import json
import os
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TIMEOUT = 10
TTL = 10
HELLO = b"hello\n"


class Greeter(BaseHTTPRequestHandler):
    """The registered server: Python's own, since these libraries have none."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(HELLO)))
        self.end_headers()
        self.wfile.write(HELLO)


class Session:
    """One peer. Its client has `pairs(prefix)`, `watch(prefix, changed)`, `put(key, value)` under a lease, `delete(key)`."""

    def __init__(self, client, answers):
        self.client = client
        self.answers = answers
        self.lock = threading.Lock()
        self.key = None
        self.turns = itertools.count()

    def do(self, command):
        match command["do"]:
            case "watch":
                return self.watch(command["name"])
            case "call":
                return {"answer": self.call(command["name"])}
            case "register":
                return self.register(command["node"])
            case "deregister":
                self.client.delete(self.key)
                return {"done": True}
        raise ValueError(f"there is no {command['do']!r}")

    def watch(self, name):
        before = None

        def changed():
            nonlocal before
            now = sorted(self.instances(name), key=lambda instance: instance["addr"])
            if now != before:
                before = now
                self.write({"of": name, "saw": now})

        self.client.watch(f"/{name}/", changed)
        changed()
        return {"done": True}

    def call(self, name):
        instances = self.instances(name)
        addr = instances[next(self.turns) % len(instances)]["addr"]
        with urllib.request.urlopen(f"http://{addr}/", timeout=TIMEOUT) as answer:
            return answer.read().decode()

    def register(self, node):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Greeter)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addr = f"127.0.0.1:{server.server_port}"
        version = f"{node['version']}/" if node["version"] else ""
        self.key = f"/{node['name']}/{version}{addr}"
        value = {"name": node["name"], "addr": addr, "version": node["version"], "weight": str(node["weight"])}
        self.client.put(self.key, json.dumps(value, separators=(",", ":")))
        return {"answer": addr}

    def instances(self, name):
        nodes = [json.loads(value) for _, value in self.client.pairs(f"/{name}/")]
        return [{"addr": node["addr"], "version": node["version"], "weight": int(node["weight"])} for node in nodes]

    def write(self, line):
        with self.lock:
            print(json.dumps(line), file=self.answers, flush=True)


def run(connect):
    """Drives the client that `connect(host, port)` returns, until stdin ends."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("-etcd", required=True)
    host, port = arguments.parse_args().etcd.rsplit(":", 1)
    answers, sys.stdout = sys.stdout, sys.stderr
    session = Session(connect(host, int(port)), answers)
    for line in sys.stdin:
        try:
            session.write(session.do(json.loads(line)))
        except Exception as error:  # Any exception of a library is its response.
            session.write({"error": f"{type(error).__name__}: {error}"})
    os._exit(0)  # Some threads of the libraries never end.
