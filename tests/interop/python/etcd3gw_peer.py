"""etcd3gw, over etcd's JSON gateway."""

import threading

import etcd3gw

import peer


class Client:
    def __init__(self, host, port):
        self.etcd = etcd3gw.client(host=host, port=port, timeout=peer.TIMEOUT)
        # A watch has no deadline.
        self.watching = etcd3gw.client(host=host, port=port)

    def pairs(self, prefix):
        return [(metadata["key"].decode(), value.decode()) for value, metadata in self.etcd.get_prefix(prefix)]

    def watch(self, prefix, changed):
        events, _ = self.watching.watch_prefix(prefix)

        def follow():
            for _ in events:
                changed()

        threading.Thread(target=follow, daemon=True).start()

    def put(self, key, value):
        self.etcd.put(key, value, lease=self.etcd.lease(peer.TTL))

    def delete(self, key):
        self.etcd.delete(key)


peer.run(Client)
