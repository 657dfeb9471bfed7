"""What can go wrong with a connection: the faults, and one direction of a connection that suffers them.

The names are Toxiproxy's, with its two directions: `upstream` is from caller to server, `downstream` from
server to caller. `stall` is Envoy's delay fault: a fixed delay for a share of what passes.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, fields
from enum import Enum
from random import Random

#: Under a bandwidth, what is sent in one piece would take so many seconds to send.
_PIECE = 0.02
#: Seconds by which a late timer may be made good, so that the bandwidth is kept on average.
_CATCH_UP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What one direction of every connection suffers; times in seconds, nothing by default.

    A chunk is what one read from a socket gives: on a connection with little traffic one gRPC message, on a
    busy one many. Chunks never overtake each other.

    Attributes:
        latency: Every chunk arrives so much later. Nothing waits for the chunk before it to arrive.
        jitter: Evenly spread around `latency`: as much as this more or less.
        stall: Probability that a chunk is held for `stall_for`, and all behind it on this connection with it:
            one connection carries many calls, and all of them wait.
        stall_for: Infinite: until there is no stall any more.
        bandwidth: KB/s (1,000 bytes) of each connection; None: unlimited.
        limit_data: Connections are closed when so many bytes have passed; None: never.
        reset_peer: Probability that a chunk resets its connection (RST to both sides) instead of arriving.
        slow_close: The end of a connection is passed on so much later.
        timeout: All bytes vanish, and so do the ends of connections; after so long they are closed. 0: they
            stay open for ever (a black hole). None: bytes pass.
    """

    latency: float = 0.0
    jitter: float = 0.0
    stall: float = 0.0
    stall_for: float = 0.0
    bandwidth: float | None = None
    limit_data: int | None = None
    reset_peer: float = 0.0
    slow_close: float = 0.0
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("latency", "jitter", "slow_close", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be seconds from 0, got {value}")
        for name in ("stall", "reset_peer"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability from 0 to 1, got {getattr(self, name)}")
        if not self.stall_for >= 0:
            raise ValueError(f"stall_for must be seconds from 0, got {self.stall_for}")
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ValueError(f"bandwidth must be KB/s above 0, got {self.bandwidth}")
        if self.limit_data is not None and self.limit_data < 1:
            raise ValueError(f"limit_data must be bytes from 1, got {self.limit_data}")

    def __str__(self) -> str:
        set_here = [
            f"{one.name}={getattr(self, one.name):g}"
            for one in fields(self)
            if getattr(self, one.name) != one.default
        ]
        return " ".join(set_here) or "none"


#: Bytes vanish, connections are accepted and stay open: a region whose packets no router delivers.
BLACK_HOLE = Faults(timeout=0)


class Ending(Enum):
    """How a direction ends."""

    #: The peer has said all that it will, and may still listen.
    EOF = "eof"
    #: Both sides are closed, after what was said.
    CLOSE = "close"
    #: Both sides get an RST.
    RESET = "reset"


@dataclass(slots=True)
class _Item:
    came: float
    #: Not before what is in front of it.
    due: float
    what: bytes | memoryview | Ending


class Link:
    """One direction of one connection: what came in, and when it may go out. State in, decision out.

    The n-th chunk's fate hangs on `random` and n alone: three numbers are drawn for each, whatever is set.

    Args:
        faults: At the beginning.
        random: Of this link alone.
        counts: Gets `stalls`, `resets`, `closes` and `vanished_bytes`.
        now: Seconds of a clock that never goes back, as everywhere here.
    """

    def __init__(self, faults: Faults, random: Random, counts: Counter[str], now: float) -> None:
        self._random = random
        self._counts = counts
        self._items: deque[_Item] = deque()
        #: Bytes that wait here.
        self.queued = 0
        #: Something has vanished: what follows must not be sent, or a peer would read it in its place.
        self.has_hole = False
        self._begin(faults, now)

    def _begin(self, faults: Faults, now: float) -> None:
        self._faults = faults
        self._passed = 0
        self._free_at = now
        #: When the connection is closed by these faults; infinite: not known, or never.
        self.closes_at = now + faults.timeout if faults.timeout else math.inf

    def __repr__(self) -> str:
        return f"<Link {self.queued} bytes queued{', with a hole' if self.has_hole else ''}; {self._faults}>"

    @property
    def is_black_hole(self) -> bool:
        """Whether all that comes vanishes."""
        return self._faults.timeout is not None

    @property
    def next_at(self) -> float:
        """When `send` may have something; infinite: not before something comes, or is changed."""
        if not self._items:
            return self.closes_at
        return min(self._ready_at(self._items[0]), self.closes_at)

    def take(self, data: bytes, now: float) -> None:
        """A chunk has come."""
        jitter, stall, reset = (self._random.random() for _ in range(3))
        faults = self._faults
        if self.is_black_hole:
            self._vanish(len(data))
        elif reset < faults.reset_peer:
            self._counts["resets"] += 1
            self._vanish(self.queued + len(data))
            self._items.append(_Item(now, now, Ending.RESET))
        else:
            delay = max(0.0, faults.latency + (2 * jitter - 1) * faults.jitter)
            if stall < faults.stall:
                self._counts["stalls"] += 1
                delay += faults.stall_for
            self._put(now, delay, data)

    def end(self, ending: Ending, now: float) -> None:
        """The peer's end has come: nothing will follow."""
        if self.is_black_hole:
            self._vanish(0)
        else:
            self._put(now, self._faults.latency + self._faults.slow_close, ending)

    def change(self, faults: Faults, now: float) -> None:
        """Other faults from now on. What waits goes out no later than if it had come under them."""
        self._begin(faults, now)
        if self.is_black_hole and self._items:
            self._vanish(self.queued)
        # Of a stall that is a matter of luck they are rid.
        certain_stall = faults.stall_for if faults.stall == 1 else 0.0
        for item in self._items:
            extra = faults.slow_close if isinstance(item.what, Ending) else faults.jitter + certain_stall
            item.due = min(item.due, item.came + faults.latency + extra)

    def send(self, now: float) -> bytes | memoryview | Ending | None:
        """What is to be sent now, at most one piece of it; None: nothing before `next_at`."""
        if now >= self.closes_at:
            self._counts["closes"] += 1
            self._vanish(self.queued)
            self.closes_at = math.inf
            return Ending.CLOSE
        if now < self.next_at:
            return None
        head = self._items[0]
        if isinstance(head.what, Ending):
            self._items.popleft()
            return head.what
        return self._piece(head, head.what, now)

    def _piece(self, head: _Item, data: bytes | memoryview, now: float) -> bytes | memoryview:
        self._free_at = max(self._ready_at(head), now - _CATCH_UP)
        size = self._size(data)
        if size < len(data):
            data, head.what = memoryview(data)[:size], memoryview(data)[size:]
        else:
            self._items.popleft()
        self.queued -= size
        self._passed += size
        if self._passed == self._faults.limit_data:
            self.closes_at = now
        return data

    def _ready_at(self, head: _Item) -> float:
        """When the first piece of it has come through whole."""
        rate = self._faults.bandwidth
        if rate is None or isinstance(head.what, Ending):
            return head.due
        return max(head.due, self._free_at) + self._size(head.what) / (rate * 1000)

    def _size(self, data: bytes | memoryview) -> int:
        """Bytes of a chunk that are sent in one piece."""
        size, faults = len(data), self._faults
        if faults.limit_data is not None:
            size = min(size, faults.limit_data - self._passed)
        if faults.bandwidth is not None:
            size = min(size, max(1, int(faults.bandwidth * 1000 * _PIECE)))
        return size

    def _put(self, now: float, delay: float, what: bytes | Ending) -> None:
        self._items.append(_Item(now, now + delay, what))
        self.queued += 0 if isinstance(what, Ending) else len(what)

    def _vanish(self, count: int) -> None:
        self._items.clear()
        self.queued = 0
        self.has_hole = True
        self._counts["vanished_bytes"] += count
