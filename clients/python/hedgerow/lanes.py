"""Which connection takes the next call, and which worker of the server it leads to.

A server with several workers has them all on one port, and the kernel gives
each new connection to one of them at random. Two connections reach only one of
two workers every second time, and a worker that was restarted has none at all.
So such a server names the worker in every reply, and the client

- gives a call to the worker with the fewest of its calls under way, and
- while a worker has no connection, opens another and gives up a spare one,
  until it got through to each.

A server that names no worker is asked over the connection with the fewest
calls under way.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

ChannelT = TypeVar("ChannelT")

Trailing = Mapping[str, str | bytes]

#: In a reply's trailing metadata: the worker that answered, and how many there are, as in `1/4`.
WORKER = "hedgerow-worker"
#: Connections that a client opens at most to find every worker.
MOST = 16
#: Seconds until the next attempt to find a worker: after one that failed, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 10.0
#: A connection changes its worker when gRPC has to dial anew. So many changes, each soon after the last,
#: come from a proxy that spreads the requests itself.
CHANGES, SOON = 32, 60.0


class Lane(Generic[ChannelT]):
    """One channel, its calls by method, and how many of them are under way."""

    __slots__ = ("channel", "outstanding", "spare", "stub", "worker")

    def __init__(self, channel: ChannelT, stub: Any) -> None:
        self.channel = channel
        #: The methods of the service; untyped, and alike for sync and asyncio channels.
        self.stub = stub
        self.outstanding = 0
        #: Number of the worker that last answered; None before the first reply.
        self.worker: int | None = None
        #: Given up: it takes no more calls, and is closed after its last.
        self.spare = False

    def __repr__(self) -> str:
        worker = "?" if self.worker is None else self.worker
        return f"<Lane to worker {worker}, {self.outstanding} calls{', spare' if self.spare else ''}>"


class Lanes(Generic[ChannelT]):
    """Several channels to one server; holds how busy each is and where it leads. Threads may share it.

    Args:
        connect: opens a channel; it connects with its first call.
        close: closes a channel that has no more calls.
        count: channels to begin with, and to keep at least.
        clock: seconds.
        stub: makes the methods of a channel.
    """

    def __init__(
        self,
        connect: Callable[[], ChannelT],
        close: Callable[[ChannelT], None],
        count: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        stub: Callable[[Any], Any] = GRPCInferenceServiceStub,
    ) -> None:
        self._connect = connect
        self._stub = stub
        self._close = close
        self._clock = clock
        self._most = max(MOST, count)
        #: Those that take calls.
        self.all = tuple(self._open() for _ in range(count))
        self._spare: set[Lane[ChannelT]] = set()
        self._turn = itertools.count()
        self._lock = threading.Lock()
        self._pause = FIRST_PAUSE
        self._next_attempt = 0.0
        self._changes = 0
        self._last_change = 0.0
        self._spread_by_proxy = False

    def _open(self) -> Lane[ChannelT]:
        channel = self._connect()
        return Lane(channel, self._stub(channel))

    @property
    def open(self) -> tuple[Lane[ChannelT], ...]:
        """Those that take calls, and those given up that still have some."""
        with self._lock:
            return (*self.all, *self._spare)

    @property
    def outstanding(self) -> int:
        """Calls under way."""
        return sum(lane.outstanding for lane in self.open)

    def acquire(self) -> Lane[ChannelT]:
        """The lane for the next call; give it back with `release`."""
        with self._lock:
            lanes = self.all
            count = len(lanes)
            first = next(self._turn)
            # By worker first: one that three lanes lead to gets no more than one with a single lane.
            busy: dict[int | None, int] = {}
            for lane in lanes:
                if lane.worker is not None:
                    busy[lane.worker] = busy.get(lane.worker, 0) + lane.outstanding
            best = lanes[first % count]
            least = (busy.get(best.worker, best.outstanding), best.outstanding)
            for step in range(1, count):
                other = lanes[(first + step) % count]
                load = (busy.get(other.worker, other.outstanding), other.outstanding)
                if load < least:
                    best, least = other, load
            best.outstanding += 1
        return best

    def release(self, lane: Lane[ChannelT], said: Trailing | None = None) -> None:
        """The call is over.

        Args:
            lane: that it was made on.
            said: the reply's trailing metadata.
        """
        worker = said.get(WORKER) if said else None
        with self._lock:
            lane.outstanding -= 1
            if worker is not None and not (lane.spare or self._spread_by_proxy):
                self._learn(lane, str(worker))
            idle = [each for each in self._spare if not each.outstanding]
            self._spare.difference_update(idle)
        for each in idle:
            self._close(each.channel)

    def _learn(self, lane: Lane[ChannelT], said: str) -> None:
        """Takes note of who answered."""
        number, _, total = said.partition("/")
        if not (number.isdecimal() and total.isdecimal()):
            return
        worker, workers = int(number), int(total)
        if lane.worker != worker:
            if lane.worker is not None and self._changed_by_proxy():
                return
            if all(other.worker != worker for other in self.all):
                self._pause = FIRST_PAUSE
            lane.worker = worker
        self._look_for_others(workers)

    def _changed_by_proxy(self) -> bool:
        """Counts a change; after too many no lane stands for a worker any more."""
        now = self._clock()
        self._changes = self._changes + 1 if now - self._last_change < SOON else 1
        self._last_change = now
        if self._changes >= CHANGES:
            self._spread_by_proxy = True
            for each in self.all:
                each.worker = None
        return self._spread_by_proxy

    def _look_for_others(self, workers: int) -> None:
        """Opens another channel if a worker has none and every channel has told where it leads."""
        found = {lane.worker for lane in self.all}
        wanted = min(workers, self._most)
        if len(found) >= wanted or None in found:
            return
        now = self._clock()
        if now < self._next_attempt:
            return
        self._next_attempt = now + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        kept = self.all
        if len(kept) >= wanted:
            # Some worker has two lanes, or every worker would have one.
            spare = next(lane for lane in kept if any(o.worker == lane.worker for o in kept if o is not lane))
            spare.spare = True
            self._spare.add(spare)
            kept = tuple(lane for lane in kept if lane is not spare)
        self.all = (*kept, self._open())
