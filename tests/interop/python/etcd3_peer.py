"""etcd3, the oldest and most used of the family."""

import os

# Its generated code is older than current protobuf, which accepts it only in the slow implementation.
os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"

import etcd3

import peer


class Client:
    def __init__(self, host, port):
        self.etcd = etcd3.client(host=host, port=port, timeout=peer.TIMEOUT)

    def pairs(self, prefix):
        return [(metadata.key.decode(), value.decode()) for value, metadata in self.etcd.get_prefix(prefix)]

    def watch(self, prefix, changed):
        self.etcd.add_watch_prefix_callback(prefix, lambda _: changed())

    def put(self, key, value):
        self.etcd.put(key, value, lease=self.etcd.lease(peer.TTL))

    def delete(self, key):
        self.etcd.delete(key)


peer.run(Client)
