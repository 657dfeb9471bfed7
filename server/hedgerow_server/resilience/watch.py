"""Calls under way that are hedged if they have no answer when their delay is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hedgerow_protos.hedgerow_control_pb2 import (
    HEDGE_MODE_ADAPTIVE,
    HEDGE_MODE_DISABLED,
    HEDGE_MODE_UNSPECIFIED,
)
from hedgerow_protos.hedging import Budget, HedgeDelay, Percentiles

from hedgerow_server.call import Call
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.statistics import LATENCY_BOUNDS


class Line:
    """Calls of one model version that wait for their hedge, oldest first. They leave it when they end."""

    __slots__ = ("calls", "delay", "latencies", "model", "seconds", "timer")

    def __init__(self, model: Model, delay: HedgeDelay | None) -> None:
        self.model = model
        #: None: this model is not hedged.
        self.delay = delay
        self.latencies = Percentiles(LATENCY_BOUNDS)
        self.calls: dict[Call, None] = {}
        #: The delay in force, in seconds.
        self.seconds = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Watch:
    """Holds: a line for each model version. Owns: the timers, one for each line.

    A timer for each call would keep the call and its message alive until it fires, long after the answer.

    Args:
        budget: Of hedges, which a live delay follows.
        after: Seconds until a hedge, where a model says nothing else.
        adaptive: Whether live percentiles shorten that, where a model says nothing else.
        clock: Seconds, monotonic.
        nanoseconds: The clock of `Call.received_ns`.
        due: Gets each call whose delay is over.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        after: float,
        adaptive: bool,
        clock: Callable[[], float],
        nanoseconds: Callable[[], int],
        due: Callable[[Call], None],
    ) -> None:
        self._budget = budget
        self._after = after
        self._adaptive = adaptive
        self._clock = clock
        self._nanoseconds = nanoseconds
        self._due = due
        self._lines: dict[Model, Line] = {}

    def __repr__(self) -> str:
        return f"<Watch over {sum(len(line.calls) for line in self._lines.values())} calls>"

    def add(self, call: Call, model: Model) -> None:
        """Watches a call that is under way for `model`."""
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = self._new_line(model)
        if line.delay is None:
            return
        line.calls[call] = None
        call.line = line
        if line.timer is None:
            self._set_timer(line, call)

    def _new_line(self, model: Model) -> Line:
        spec = model.serving.hedging
        if spec.mode == HEDGE_MODE_DISABLED:
            return Line(model, None)
        adaptive = self._adaptive if spec.mode == HEDGE_MODE_UNSPECIFIED else spec.mode == HEDGE_MODE_ADAPTIVE
        after = spec.after_ms / 1000 if spec.after_ms else self._after
        return Line(model, HedgeDelay(after, self._budget, adaptive=adaptive))

    def _set_timer(self, line: Line, call: Call) -> None:
        assert line.delay is not None
        line.latencies.update(self._clock(), line.model.statistics.latency)
        line.seconds = line.delay.seconds(line.latencies)
        waited = (self._nanoseconds() - call.received_ns) * 1e-9
        # Not below a millisecond, which is what uvloop's timers have.
        line.timer = asyncio.get_running_loop().call_later(
            max(line.seconds - waited, HedgeDelay.SHORTEST), self._look, line
        )

    def _look(self, line: Line) -> None:
        line.timer = None
        now = self._nanoseconds()
        seconds_ns = int(line.seconds * 1e9)
        calls = line.calls
        while calls:
            call = next(iter(calls))
            if now - call.received_ns < seconds_ns:
                self._set_timer(line, call)
                return
            del calls[call]
            call.line = None
            self._due(call)

    def follow(self, models: set[Model]) -> None:
        """Forgets models that are gone; those that calls still wait for, the next time."""
        for model in [model for model, line in self._lines.items() if model not in models and not line.calls]:
            line = self._lines.pop(model)
            if line.timer is not None:
                line.timer.cancel()

    def close(self) -> None:
        """Ends the timers."""
        for line in self._lines.values():
            if line.timer is not None:
                line.timer.cancel()
                line.timer = None
