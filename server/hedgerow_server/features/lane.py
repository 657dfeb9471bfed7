"""The way to one dependency: few calls at once, what waits goes together, nothing past an open breaker."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hedgerow_protos.breaker import Breaker, State, Token

from hedgerow_server.features.counts import LaneCounts
from hedgerow_server.features.sources import SourceError, ViewRefused

if TYPE_CHECKING:
    from hedgerow_server.features.flight import Flight
    from hedgerow_server.features.view import View

log = logging.getLogger(__name__)

#: Keys that may wait at once; who comes later is answered without the dependency.
MAX_WAITING = 100_000


#: Asks for some flights' keys of one view.
Ask = Callable[["View", Sequence["Flight"]], Awaitable[Any]]
#: Gets the answer; None: there is none.
Deliver = Callable[["View", Sequence["Flight"], Any], None]


class Lane:
    """Reads keys of one dependency, those of one view together.

    Natural batching: while a call may begin it takes the flights that wait for its view, up to
    `max_keys`. So one turn of the loop makes one call for each view, and a slow dependency fewer,
    larger ones.

    Owns: the tasks that make the calls. Nobody who waits for a key can cancel them, so a caller
    who gives up never leaves a connection with half an answer on it.

    Args:
        ask: Makes one call; is cancelled after `timeout` seconds.
        deliver: Told the end of every flight that was added.
        breaker: Of the dependency.
        calls: At once.
        max_keys: In one call, unless one flight has more.
        timeout: Seconds that one call gets.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        ask: Ask,
        deliver: Deliver,
        *,
        breaker: Breaker,
        calls: int,
        max_keys: int,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self.breaker = breaker
        self.counts = LaneCounts()
        self._ask = ask
        self._deliver = deliver
        self._calls = calls
        self._max_keys = max_keys
        self._timeout = timeout
        self._clock = clock
        # The first view is the next to be served.
        self._waiting: OrderedDict[View, deque[Flight]] = OrderedDict()
        # Keys in all of them.
        self._count = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Lane to {self.breaker!r}: {len(self._tasks)} calls, {self._count} keys wait>"

    def add(self, view: View, flight: Flight) -> bool:
        """Puts a flight in line for the next `flush`; False if too many wait already."""
        keys = len(flight.known)
        if self._count + keys > MAX_WAITING or self._closed:
            self.counts.refused_keys += keys
            return False
        line = self._waiting.get(view)
        if line is None:
            line = self._waiting[view] = deque()
        line.append(flight)
        self._count += keys
        return True

    def flush(self) -> None:
        """Begins calls for what waits, as far as calls are free; refuses it if the breaker does."""
        while self._waiting:
            if len(self._tasks) >= self._calls:
                if self.breaker.check() is not State.CLOSED:
                    self._refuse_all()
                return
            token = self.breaker.acquire()
            if token is None:
                self._refuse_all()
                return
            view, line = self._waiting.popitem(last=False)
            flights = self._take(line)
            if line:
                # To the end: a view with many keys does not hold up the others.
                self._waiting[view] = line
            task = asyncio.get_running_loop().create_task(self._call(view, flights))
            self._tasks.add(task)
            # Not in the task itself: one that is cancelled before its first step never runs.
            task.add_done_callback(partial(self._end, view, flights, token, self._clock()))

    def _take(self, line: deque[Flight]) -> list[Flight]:
        """The flights of the next call."""
        flights = [line.popleft()]
        keys = len(flights[0].known)
        while line and keys + len(line[0].known) <= self._max_keys:
            flights.append(line.popleft())
            keys += len(flights[-1].known)
        self._count -= keys
        return flights

    def _refuse_all(self) -> None:
        waiting, self._waiting = self._waiting, OrderedDict()
        self.counts.refused_keys += self._count
        self._count = 0
        for view, flights in waiting.items():
            self._deliver(view, flights, None)

    async def _call(self, view: View, flights: Sequence[Flight]) -> Any:
        async with asyncio.timeout(self._timeout):
            return await self._ask(view, flights)

    def _end(
        self, view: View, flights: Sequence[Flight], token: Token, began: float, task: asyncio.Task[Any]
    ) -> None:
        self._tasks.discard(task)
        counts = self.counts
        counts.seconds += self._clock() - began
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        answer = None
        if error is None:
            token.success()
            counts.ok += 1
            answer = task.result()
        else:
            counts.failed += 1
            counts.failed_keys += sum(len(flight.known) for flight in flights)
            if isinstance(error, asyncio.CancelledError):
                token.ignore()
            elif isinstance(error, ViewRefused):
                # The dependency itself is well.
                token.success()
            elif isinstance(error, TimeoutError):
                token.failure(f"no answer within {self._timeout:g} s")
            elif isinstance(error, SourceError):
                token.failure(str(error))
            else:
                token.failure("a defect; the process's log has its stack trace")
                log.error("reading %s from the %s failed", view.ref, self.breaker.name, exc_info=error)
        try:
            self._deliver(view, flights, answer)
        finally:
            self.flush()

    async def close(self) -> None:
        """Cancels the calls under way and waits for their end; who waits is answered without."""
        self._closed = True
        self._refuse_all()
        for task in tuple(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
            await asyncio.sleep(0)  # for the tasks' callbacks
