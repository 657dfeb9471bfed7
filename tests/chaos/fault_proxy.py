"""A TCP proxy that breaks what passes through it, while it passes: in a test, or by hand.

    async with FaultProxy("127.0.0.1:8001") as proxy:      # callers go to proxy.address
        proxy.faults = Faults(latency=0.05, jitter=0.01)   # each way, from now on
        with proxy.under(upstream=BLACK_HOLE):             # requests vanish, for a while
            ...

It breaks connections, and one connection carries many calls: to stall one call and not its neighbours, set
the server's `fault.delay_percent`. Code without an event loop runs a proxy by `fault_hosts.py`, in a thread
or in a process. By hand: `python tests/chaos/fault_proxy.py --help`, and docs/chaos.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from fault_connection import Connection, split_address
from faults import BLACK_HOLE, Faults

__all__ = ["BLACK_HOLE", "BUFFER", "FaultProxy", "Faults"]

#: Bytes that one direction of a connection holds before nothing more is read from its peer, as a TCP window
#: would: with a latency of 50 ms, 20 MB/s pass at most.
BUFFER = 1 << 20


class FaultProxy:
    """A listening port, and a target to which every connection goes on, with faults; use with `async with`.

    Faults belong to directions, `upstream` (from caller to server) and `downstream`; what is set holds for
    connections that exist and for new ones. Calling a dead target, a caller's connection is reset.

    Args:
        target: The server's `host:port`; may be set to another for new connections.
        listen: `host:port`; port 0 takes a free one, which stays the same for good.
        seed: With it, the n-th chunk of a direction of the m-th connection always has the same fate.
        buffer: Bytes that each direction of a connection holds, give or take what one read brings (256 KiB).

    Attributes:
        counts: `connections`, `unreachable` (the target), `upstream_chunks`, `upstream_bytes`, the same for
            downstream, `stalls`, `resets` and `closes` by faults, `vanished_bytes`.

    Raises:
        ValueError: An address is none.
        OSError: By `async with`: the port is taken.
    """

    def __init__(
        self, target: str, *, listen: str = "127.0.0.1:0", seed: int = 0, buffer: int = BUFFER
    ) -> None:
        self.target = target
        self.seed = seed
        self.buffer = buffer
        self.counts: Counter[str] = Counter()
        self._host, self._port = split_address(listen)
        self._upstream = self._downstream = Faults()
        self._connections: set[Connection] = set()
        self._has_none = asyncio.Event()
        self._has_none.set()
        #: Bound; listens unless connections are refused, and keeps the port from others while they are.
        self._socket: socket.socket | None = None
        self._is_listening = False

    def __repr__(self) -> str:
        return f"<FaultProxy {self.status()}>"

    async def __aenter__(self) -> Self:
        self._bind()
        self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_socket()
        for connection in [*self._connections]:
            connection.abort(rst=False)
        await self._has_none.wait()

    @property
    def address(self) -> str:
        """Where callers go: `host:port`."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def target(self) -> str:
        """Where new connections go on to: `host:port`; ValueError for something else."""
        return self._target

    @target.setter
    def target(self, target: str) -> None:
        split_address(target)
        self._target = target

    @property
    def upstream(self) -> Faults:
        """What happens on the way from caller to server."""
        return self._upstream

    @upstream.setter
    def upstream(self, faults: Faults) -> None:
        self._set(faults, self._downstream)

    @property
    def downstream(self) -> Faults:
        """What happens on the way from server to caller."""
        return self._downstream

    @downstream.setter
    def downstream(self, faults: Faults) -> None:
        self._set(self._upstream, faults)

    @property
    def faults(self) -> Faults:
        """What happens both ways; ValueError where the two differ."""
        if self._upstream != self._downstream:
            raise ValueError(f"upstream and downstream differ: {self!r}")
        return self._upstream

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._set(faults, faults)

    @contextlib.contextmanager
    def under(self, *, upstream: Faults | None = None, downstream: Faults | None = None) -> Iterator[None]:
        """Faults for the length of a block; a direction that is not named keeps its own."""
        before = (self._upstream, self._downstream)
        self._set(upstream or self._upstream, downstream or self._downstream)
        try:
            yield
        finally:
            self._set(*before)

    def reset(self) -> None:
        """RST to both sides of every connection, now."""
        for connection in [*self._connections]:
            self.counts["resets"] += 1
            connection.abort(rst=True)

    def half_open(self, *, closed: str = "server") -> None:
        """Closes one side of every connection, with FIN; the other is never told, and what it says vanishes.

        Args:
            closed: `server` or `caller`.
        """
        if closed not in ("server", "caller"):
            raise ValueError(f"closed must be server or caller, got {closed!r}")
        for connection in [*self._connections]:
            connection.half_open(connection.server if closed == "server" else connection.caller)

    def refuse(self) -> None:
        """Refuses new connections until `accept`; those that exist go on."""
        if self._is_listening:
            self._close_socket()
            self._bind()

    def accept(self) -> None:
        """Accepts connections again, on the same port."""
        if not self._is_listening:
            assert self._socket is not None, "use a proxy with `async with`"
            self._is_listening = True
            self._socket.listen(1024)
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def down(self) -> None:
        """As if the process at the target had died: resets all connections, and refuses new ones."""
        self.refuse()
        self.reset()

    def heal(self) -> None:
        """No faults any more; connections that missed something are reset."""
        self.faults = Faults()
        for connection in [*self._connections]:
            if not connection.is_whole:
                connection.abort(rst=True)
        self.accept()

    def status(self) -> str:
        """What is set and what happened, in a line."""
        doing = "listens" if self._is_listening else "refuses"
        counts = " ".join(f"{name}={number}" for name, number in sorted(self.counts.items()))
        return (
            f"{doing} at {self.address}, target {self.target}; {len(self._connections)} open; "
            f"upstream: {self._upstream}; downstream: {self._downstream}; {counts or 'nothing came yet'}"
        )

    def forget(self, connection: Connection) -> None:
        """Called by a connection whose sockets are closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._has_none.set()

    def _bind(self) -> None:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setblocking(False)
            self._socket.bind((self._host, self._port))
            self._port = self._socket.getsockname()[1]
        except OSError:
            self._socket.close()
            raise

    def _close_socket(self) -> None:
        assert self._socket is not None
        if self._is_listening:
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._is_listening = False

    def _accept(self) -> None:
        # Not by asyncio's server, which forgets to close a connection that it accepted when it was closed.
        assert self._socket is not None
        try:
            caller, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # has left again
        self.counts["connections"] += 1
        connection = Connection(self, self.counts["connections"], caller)
        self._connections.add(connection)
        self._has_none.clear()

    def _set(self, upstream: Faults, downstream: Faults) -> None:
        self._upstream, self._downstream = upstream, downstream
        for connection in [*self._connections]:
            connection.change(upstream, downstream)


if __name__ == "__main__":
    from fault_command import main

    main()
