"""Joins features to requests that bring ids: those that arrived in one turn of the loop, together.

    add ─ ids to keys ─ want ─┐
    add ─ ids to keys ─ want ─┼─ flush: one MGET for each view ┄┄▶ ready ─ judge ─ lay out ─▶ done
    add ─ ids to keys ─ want ─┘

A request whose values are all held in this process is done within `add`'s turn.
One that waits does so at most as long as its budget; then it is answered with
what is known, marked for what it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from hedgerow_server.engine.work import Part
from hedgerow_server.features.binding import Binding
from hedgerow_server.features.clock import Clock
from hedgerow_server.features.flight import Wait
from hedgerow_server.features.freshness import Freshness
from hedgerow_server.features.reader import FeatureReader


class Asker(Protocol):
    """A request that waits for features."""

    #: Nobody waits for its answer any more.
    ended: bool
    #: When it is over, on the clock of the joiner.
    deadline: float


class Joined(Wait):
    """A request's inputs on their way from ids to the model's tensors; waits for its values.

    Attributes:
        asker: The request.
        keys: For each lookup of the binding, the cache key of each row.
        parts: The model's inputs, once it is done.
        shapes: Of these.
        freshness: The worst of its values.
        failure: What went wrong in laying them out; None: nothing.
    """

    __slots__ = (
        "_sent",
        "_shapes",
        "asker",
        "binding",
        "failure",
        "freshness",
        "keys",
        "parts",
        "shapes",
    )

    def __init__(
        self,
        asker: Asker,
        binding: Binding,
        sent: Sequence[Part],
        shapes: Sequence[tuple[int, ...]],
        keys: Sequence[Sequence[bytes]],
    ) -> None:
        super().__init__()
        self.asker = asker
        self.binding = binding
        self._sent = sent
        self._shapes = shapes
        self.keys = keys
        self.parts: list[Part] = []
        self.shapes: list[tuple[int, ...]] = []
        self.freshness = Freshness.FRESH
        self.failure: Exception | None = None

    def lay_out(self, now: float) -> None:
        """Lays what is known into the model's inputs, and the default where it may not be served."""
        values = self.values
        rows: list[list[bytes]] = []
        for lookup, keys in zip(self.binding.lookups, self.keys, strict=True):
            laid, freshness = lookup.view.serve([values[key] for key in keys], now)
            rows.append(laid)
            self.freshness = max(self.freshness, freshness)
        self.parts, self.shapes = self.binding.lay_out(rows, self._sent, self._shapes)


class Joiner:
    """Joins batches of requests.

    Args:
        reader: Makes the reader, given what is to be told of waits that end.
        clock: The process's clocks.
        budget: Seconds that a request waits for its features at most.
        max_entities: In one request.
        done: Gets the requests that have their inputs, those of one moment together. Ended ones
            are left out.
    """

    def __init__(
        self,
        reader: Callable[[Callable[[Sequence[Wait]], None]], FeatureReader],
        clock: Clock,
        *,
        budget: float,
        max_entities: int,
        done: Callable[[Sequence[Joined]], None],
    ) -> None:
        self.reader = reader(self._ready)
        self._clock = clock
        self._budget = budget
        self._max_entities = max_entities
        self._done = done
        self._full: list[Joined] = []
        self._pending: list[Joined] = []
        # By the time at which they have waited long enough, which is also the order they came in.
        self._patient: deque[tuple[float, Joined]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        #: Requests that wait for features.
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<Joiner {self.waiting} requests wait; {self.reader!r}>"

    def recall(
        self, asker: Asker, binding: Binding, sent: Sequence[Part], shapes: Sequence[tuple[int, ...]]
    ) -> Joined:
        """Lays out a request by what this process remembers, at once; nobody is asked.

        Args:
            asker: As for `add`, and so are the others.
            binding: Of its model.
            sent: Its tensors.
            shapes: Of these.

        Raises:
            InvalidTensor: Its ids cannot be ids, or are too many.
        """
        joined = Joined(asker, binding, sent, shapes, binding.keys(sent, shapes, self._max_entities))
        for keys in joined.keys:
            joined.values.update(self.reader.remembered(keys))
        joined.lay_out(self._clock.monotonic())
        return joined

    @property
    def has_new(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._full or self._pending)

    def add(
        self, asker: Asker, binding: Binding, sent: Sequence[Part], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        """Takes a request; `flush` ends the turn.

        Args:
            asker: The request.
            binding: Of its model.
            sent: Its tensors, in the order of `binding.callers`.
            shapes: Of these.

        Raises:
            InvalidTensor: Its ids cannot be ids, or are too many.
        """
        joined = Joined(asker, binding, sent, shapes, binding.keys(sent, shapes, self._max_entities))
        for lookup, keys in zip(binding.lookups, joined.keys, strict=True):
            self.reader.want(joined, lookup.view, keys)
        self.waiting += 1
        if self.reader.seal(joined):
            self._full.append(joined)
        else:
            self._pending.append(joined)

    def flush(self) -> None:
        """Ends a turn: asks for what was wanted, and gives out what was known already."""
        full, self._full = self._full, []
        pending, self._pending = self._pending, []
        if full:
            self._finish(full)
        # What is wanted by nobody is asked for here too: values that are refreshed ahead of time.
        self.reader.flush()
        self._set_timers([joined for joined in pending if not joined.done])

    def _set_timers(self, pending: Sequence[Joined]) -> None:
        """One timer for all that have time enough; a request in a hurry has its own."""
        loop = asyncio.get_running_loop()
        now = self._clock.monotonic()
        for joined in pending:
            # The model needs time as well: at most half of what is left is spent here.
            left = (joined.asker.deadline - now) / 2
            if left < self._budget:
                loop.call_later(max(left, 0.0), self.reader.settle, [joined])
            else:
                self._patient.append((now + self._budget, joined))
        if self._patient and self._timer is None:
            self._timer = loop.call_later(self._patient[0][0] - now, self._settle_due)

    def _settle_due(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        due = []
        # Timers may go off a little early: uvloop's have milliseconds.
        while self._patient and (self._patient[0][0] <= now + 0.001 or self._patient[0][1].done):
            due.append(self._patient.popleft()[1])
        self._set_timers([])
        self.reader.settle(due)

    def _ready(self, waits: Sequence[Wait]) -> None:
        self._finish(cast("Sequence[Joined]", waits))

    def _finish(self, finished: Sequence[Joined]) -> None:
        self.waiting -= len(finished)
        now = self._clock.monotonic()
        done = []
        for joined in finished:
            if not joined.asker.ended:
                try:
                    joined.lay_out(now)
                except Exception as error:  # noqa: BLE001 - it must not hang its batch-mates
                    joined.failure = error
                done.append(joined)
        while self._patient and self._patient[0][1].done:
            self._patient.popleft()
        if done:
            self._done(done)

    async def close(self) -> None:
        """Ends the reads; who still waits gets what is known."""
        if self._timer is not None:
            self._timer.cancel()
        await self.reader.close()
