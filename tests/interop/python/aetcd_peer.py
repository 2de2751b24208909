"""aetcd, over gRPC and asyncio."""

import asyncio
import threading

import aetcd

import peer


class Client:
    def __init__(self, host, port):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.etcd = self.wait(self.connect(host, port))

    async def connect(self, host, port):
        client = aetcd.Client(host=host, port=port, timeout=peer.TIMEOUT)
        await client.connect()
        return client

    def wait(self, awaitable):
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result(peer.TIMEOUT)

    def pairs(self, prefix):
        found = self.wait(self.etcd.get_prefix(prefix.encode()))
        return [(pair.key.decode(), pair.value.decode()) for pair in found]

    def watch(self, prefix, changed):
        events = self.wait(self.etcd.watch_prefix(prefix.encode()))

        async def follow():
            async for _ in events:
                await self.loop.run_in_executor(None, changed)

        asyncio.run_coroutine_threadsafe(follow(), self.loop)

    def put(self, key, value):
        async def leased():
            lease = await self.etcd.lease(peer.TTL)
            await self.etcd.put(key.encode(), value.encode(), lease=lease)

        self.wait(leased())

    def delete(self, key):
        self.wait(self.etcd.delete(key.encode()))


peer.run(Client)
