"""A server, the fault proxy in front of it, and callers, on real sockets: what the proxy's tests share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fault_proxy import FaultProxy

MIB = 1 << 20
#: Generous: on a busy machine a millisecond may take a hundred.
SOON = 10.0
#: In which something that happens would have happened.
QUIET = 0.1


class Peer:
    """One end of a TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hears(self, count: int) -> bytes:
        async with asyncio.timeout(SOON):
            return await self.reader.readexactly(count)

    async def hears_end(self) -> bytes:
        """All that is left, up to an orderly end."""
        async with asyncio.timeout(SOON):
            return await self.reader.read()

    async def hears_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            await self.hears_end()

    async def hears_nothing(self) -> None:
        """No byte, no end, no reset."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET):
                await self.reader.read(1)

    def reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Target:
    """A TCP server whose connections are handed to the test."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self.peers: list[Peer] = []

    @contextlib.asynccontextmanager
    async def listening(self, limit: int = 2**16) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=limit)
        host, port = server.sockets[0].getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            server.close()
            for peer in self.peers:
                peer.writer.transport.abort()
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(Peer(reader, writer))
        self.accepted.put_nowait(self.peers[-1])

    async def next(self) -> Peer:
        async with asyncio.timeout(SOON):
            return await self.accepted.get()


class Bench:
    """A target, the proxy in front of it, and callers."""

    def __init__(self, target: Target, proxy: FaultProxy) -> None:
        self.target, self.proxy = target, proxy
        self.callers: list[Peer] = []

    async def call(self) -> Peer:
        host, port = self.proxy.address.split(":")
        self.callers.append(Peer(*await asyncio.open_connection(host, int(port))))
        return self.callers[-1]

    async def pair(self) -> tuple[Peer, Peer]:
        """A caller and its peer at the server, which have spoken to each other."""
        caller = await self.call()
        caller.say(b"?")
        server = await self.target.next()
        assert await server.hears(1) == b"?"
        server.say(b"!")
        assert await caller.hears(1) == b"!"
        return caller, server

    async def is_refused(self) -> bool:
        try:
            await self.call()
        except ConnectionRefusedError:
            return True
        return False

    async def until(self, name: str, count: int = 1) -> None:
        """Waits until the proxy has counted so many."""
        await until(lambda: self.proxy.counts[name] >= count)


async def until(holds: Callable[[], bool]) -> None:
    """Waits; fails if it takes too long."""
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


def sockets() -> int:
    """Of this process."""
    found = 0
    for open_file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(open_file.readlink()).startswith("socket:")
    return found


@contextlib.asynccontextmanager
async def running(**options) -> AsyncIterator[Bench]:
    """A bench; the proxy leaves nothing behind, and nothing raised where nobody would see it."""
    target = Target()
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    async with target.listening() as address:
        before = asyncio.all_tasks()
        async with FaultProxy(address, **options) as proxy:
            bench = Bench(target, proxy)
            try:
                yield bench
            finally:
                for caller in bench.callers:
                    caller.writer.transport.abort()
        assert raised == []
        assert proxy.status().split("; ")[1] == "0 open"
        await until(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()})
