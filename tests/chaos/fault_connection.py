"""One connection through the fault proxy: two sockets and two links between them, without a task."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from random import Random
from typing import Any, Protocol

from faults import Ending, Faults, Link


class Proxy(Protocol):
    """What a connection asks of its proxy."""

    seed: int
    buffer: int
    counts: Counter[str]

    @property
    def target(self) -> str: ...
    @property
    def upstream(self) -> Faults: ...
    @property
    def downstream(self) -> Faults: ...
    def forget(self, connection: Connection) -> None: ...


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, also `[::1]:8001`.

    Raises:
        ValueError: It is something else.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) <= 65535):
        raise ValueError(f"{address!r} is no HOST:PORT, such as 127.0.0.1:8001")
    return host.strip("[]"), int(port)


class Connection:
    """A caller's connection and the one to the server that belongs to it.

    Args:
        proxy: That it passes.
        number: Of the connections of this proxy, from 1.
        caller: Just accepted; from now on the connection's.
    """

    def __init__(self, proxy: Proxy, number: int, caller: socket.socket) -> None:
        self._proxy = proxy
        self.caller, self.server = _End(self), _End(self)
        now = asyncio.get_running_loop().time()

        def link(name: str, faults: Faults) -> Link:
            # Numbers of its own, so that traffic elsewhere does not change what happens here.
            return Link(faults, Random(f"{proxy.seed} {number} {name}"), proxy.counts, now)

        self.upstream = _Flow(self, "upstream", link("upstream", proxy.upstream), self.caller, self.server)
        self.downstream = _Flow(
            self, "downstream", link("downstream", proxy.downstream), self.server, self.caller
        )
        self._connecting: asyncio.Task[Any] | None = None
        self.is_over = False
        self._is_half_open = False
        caller.setblocking(False)
        loop = asyncio.get_running_loop()
        self._accepting = loop.create_task(loop.connect_accepted_socket(lambda: self.caller, caller))
        self._accepting.add_done_callback(self._opened)
        self.connect()

    def __repr__(self) -> str:
        return f"<Connection {'over, ' if self.is_over else ''}{self.upstream.link}, {self.downstream.link}>"

    @property
    def is_whole(self) -> bool:
        """Whether both peers were told all that the other said."""
        holes = self.upstream.link.has_hole or self.downstream.link.has_hole
        return not (self._is_half_open or holes)

    def connect(self) -> None:
        """To the server, unless a SYN would not get there."""
        if self._connecting is None and not self.upstream.link.is_black_hole:
            host, port = split_address(self._proxy.target)
            loop = asyncio.get_running_loop()
            self._connecting = loop.create_task(loop.create_connection(lambda: self.server, host, port))
            self._connecting.add_done_callback(self._opened)

    def _opened(self, attempt: asyncio.Task[Any]) -> None:
        if not attempt.cancelled() and attempt.exception() is not None:
            # The caller has a connection already, with this proxy: too late to refuse it.
            self._proxy.counts["unreachable"] += 1
            self.abort(rst=True)
        self._forget_if_gone()

    def change(self, upstream: Faults, downstream: Faults) -> None:
        """Other faults from now on; a connection that lost bytes does not go on."""
        if self.is_over:
            return
        self.upstream.change(upstream)
        self.downstream.change(downstream)
        links = (self.upstream.link, self.downstream.link)
        if any(link.has_hole and not link.is_black_hole for link in links):
            self.abort(rst=True)
        elif not self._is_half_open:
            self.connect()

    def half_open(self, closed: _End) -> None:
        """One side is closed, with FIN; the other is never told."""
        self._is_half_open = True
        self._stop_connecting()
        closed.close()

    def lost(self, end: _End, error: Exception | None) -> None:
        """An end's socket is closed: from here, or, with an error, by its peer's RST."""
        if error is not None and not self.is_over:
            if self.server.transport is None:
                self.abort(rst=True)  # nobody there to tell yet
            else:
                end.into.end(Ending.RESET)
        self._forget_if_gone()

    def count(self, what: str, number: int = 1) -> None:
        """Adds to the proxy's counts."""
        self._proxy.counts[what] += number

    @property
    def buffer(self) -> int:
        """Bytes that each direction may hold."""
        return self._proxy.buffer

    def close(self) -> None:
        """FIN to both, after what was sent."""
        self._end()
        self.caller.close()
        self.server.close()

    def abort(self, *, rst: bool) -> None:
        """Both are closed at once, what was sent may be lost; with RST, or as the kernel likes."""
        self._end()
        self.caller.abort(rst=rst)
        self.server.abort(rst=rst)

    def _end(self) -> None:
        self.is_over = True
        self.upstream.stop()
        self.downstream.stop()
        self._stop_connecting()

    def _stop_connecting(self) -> None:
        if self._connecting is not None and self.server.transport is None:
            self._connecting.cancel()

    def _forget_if_gone(self) -> None:
        is_opening = any(task is not None and not task.done() for task in (self._accepting, self._connecting))
        if self.caller.is_gone and (self.server.is_gone or self.server.transport is None) and not is_opening:
            self._proxy.forget(self)


class _End(asyncio.Protocol):
    """One side of a connection, the caller's or the server's: its socket, and the flows at it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.transport: asyncio.Transport | None = None
        self.is_writable = False
        self.is_gone = False
        self._is_closed = False
        self.into: _Flow
        self.out_of: _Flow

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._connection.is_over or self._is_closed:
            transport.abort()
            return
        self.is_writable = True
        self.out_of.pump()
        self.into.pump()

    def data_received(self, data: bytes) -> None:
        self.into.take(data)

    def eof_received(self) -> bool:
        self.into.end(Ending.EOF)
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self.out_of.pump()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_gone = True
        self.is_writable = False
        self._connection.lost(self, error)

    def close(self) -> None:
        self._is_closed = True
        if self.transport is not None:
            self.transport.close()

    def abort(self, *, rst: bool) -> None:
        if self.transport is None or self.is_gone:
            return
        if rst:
            on = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, on)
        self.transport.abort()


class _Flow:
    """One direction at work: a link between two ends, and a timer."""

    def __init__(self, connection: Connection, name: str, link: Link, source: _End, sink: _End) -> None:
        self._connection = connection
        self._name = name
        self.link = link
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._has_said_all = False
        source.into = sink.out_of = self

    def take(self, data: bytes) -> None:
        self._connection.count(f"{self._name}_chunks")
        self._connection.count(f"{self._name}_bytes", len(data))
        if self._sink.is_gone:
            self._connection.count("vanished_bytes", len(data))
        else:
            self.link.take(data, self._loop.time())
            self.pump()

    def end(self, ending: Ending) -> None:
        if self._sink.is_gone:
            self._connection.close()
        else:
            self.link.end(ending, self._loop.time())
            self.pump()

    def change(self, faults: Faults) -> None:
        self.link.change(faults, self._loop.time())
        self.pump()

    def pump(self) -> None:
        """Sends what is due, and sets the timer for the rest."""
        self.stop()
        while self._may_send() and (what := self.link.send(self._loop.time())) is not None:
            self._send(what)
        if self._connection.is_over:
            return
        at = self.link.next_at if self._sink.is_writable else self.link.closes_at
        if at < float("inf"):
            self._timer = self._loop.call_at(at, self.pump)
        self._read_on()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _may_send(self) -> bool:
        can = self._sink.is_writable or self._loop.time() >= self.link.closes_at
        return can and not self._connection.is_over

    def _send(self, what: bytes | memoryview | Ending) -> None:
        if what is Ending.CLOSE:
            self._connection.close()
        elif what is Ending.RESET:
            self._connection.abort(rst=True)
        else:
            assert self._sink.transport is not None
            if isinstance(what, Ending):
                self._sink.transport.write_eof()
                self._has_said_all = True
                if self._source.out_of._has_said_all:
                    self._connection.close()
            else:
                self._sink.transport.write(what)

    def _read_on(self) -> None:
        """Or not: the peer is to wait while too much is here."""
        if self._source.transport is None:
            return
        if self.link.queued >= self._connection.buffer:
            self._source.transport.pause_reading()
        elif self.link.queued <= self._connection.buffer // 2:
            self._source.transport.resume_reading()
