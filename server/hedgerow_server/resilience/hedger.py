"""Hedges and failover: the attempts at backup regions beside, or in place of, the one here.

    watch ┄┄ after the delay ┄┄▶ hedge ──┐
                                         ├─▶ an attempt at a backup ─┬▶ won: its answer goes out,
    fail_over ── at once ────────────────┘                          │  the one here is stopped
                                                                     └▶ failed: the next backup,
                                                                        else lost

What a request may do is decided by plain objects: `hedging.Race` (which attempts there are, and that only
one wins), `hedging.Budget` and `hedging.HedgeDelay`. This file gives them clock, timers and connections.

A request answered in the turn of the loop in which it came is never seen here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from hedgerow_protos.hedgerow_control_pb2 import (
    BACKUP_VERSIONS_SAME,
    HEDGE_MODE_ADAPTIVE,
    HEDGE_MODE_DISABLED,
    HEDGE_MODE_UNSPECIFIED,
)
from hedgerow_protos.hedging import (
    ATTEMPT,
    FAILOVER,
    HEDGE,
    PREVIOUS_ATTEMPTS,
    Budget,
    HedgeDelay,
    Percentiles,
    Race,
)

from hedgerow_server.call import ROUTE_KEY, Call
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.statistics import LATENCY_BOUNDS
from hedgerow_server.errors import Overloaded, ServingError, defect
from hedgerow_server.resilience.backup import AttemptFailed, Backup, Metadata, Reply
from hedgerow_server.resilience.counts import HedgeCounts
from hedgerow_server.rpc import foreign

log = logging.getLogger(__name__)

#: Attempts under way at once; beyond that requests stay where they are.
MOST_ATTEMPTS = 1024
#: Who the caller is, which the backup has to know as this server does.
_PASSED_ON = frozenset(("authorization", "x-api-key", ROUTE_KEY))

#: A backup's answer, as the caller gets it.
Won = Callable[[Call, bytes], None]
#: Nobody answered; the error is the one of the attempt here.
Lost = Callable[[Call, ServingError], None]


class Hedger:
    """Owns: the attempts at backups, and the timers of requests that wait to be hedged.

    Args:
        backups: In order of preference.
        budget: Of hedges.
        after: Seconds until a hedge, where a model says nothing else.
        adaptive: Whether live percentiles shorten that, where a model says nothing else.
        clock: Seconds, monotonic; the clock of the requests' deadlines.
        nanoseconds: The clock of `Call.received_ns`.
    """

    def __init__(
        self,
        backups: Sequence[Backup],
        budget: Budget,
        *,
        after: float,
        adaptive: bool,
        clock: Callable[[], float] = time.monotonic,
        nanoseconds: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.backups = tuple(backups)
        self.budget = budget
        self.counts = HedgeCounts()
        self._after = after
        self._adaptive = adaptive
        self._clock = clock
        self._nanoseconds = nanoseconds
        self._lines: dict[Model, _Line] = {}
        self._attempts: set[asyncio.Task[bytes]] = set()
        # Calls that only backups can answer: the attempt here has failed.
        self._failed_here: dict[Call, ServingError] = {}
        self._won: Won
        self._lost: Lost

    def __repr__(self) -> str:
        return f"<Hedger {len(self._attempts)} attempts, {self.budget!r}>"

    def start(self, won: Won, lost: Lost) -> None:
        """Says what becomes of calls; before the first call."""
        self._won, self._lost = won, lost

    # -------------------------------------------------------------- hedges

    def watch(self, call: Call) -> None:
        """Hedges a call that is under way here, if it has no answer when its delay is over."""
        if call.choice is None or call.trace.previous_attempts:
            return
        model = call.choice.model
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = self._new_line(model)
        if line.delay is None:
            return
        line.calls.append(call)
        if line.timer is None:
            self._set_timer(line, call)

    def follow(self, models: set[Model]) -> None:
        """Forgets the delays of models that are gone."""
        for model in [model for model, line in self._lines.items() if model not in models and not line.calls]:
            del self._lines[model]

    def _new_line(self, model: Model) -> _Line:
        spec = model.serving.hedging
        if spec.mode == HEDGE_MODE_DISABLED:
            return _Line(model, None)
        adaptive = self._adaptive if spec.mode == HEDGE_MODE_UNSPECIFIED else spec.mode == HEDGE_MODE_ADAPTIVE
        after = spec.after_ms / 1000 if spec.after_ms else self._after
        return _Line(model, HedgeDelay(after, self.budget, adaptive=adaptive))

    def _set_timer(self, line: _Line, call: Call) -> None:
        assert line.delay is not None
        line.latencies.update(self._clock(), line.model.statistics.latency)
        line.seconds = line.delay.seconds(line.latencies)
        waited = (self._nanoseconds() - call.received_ns) * 1e-9
        # Not below a millisecond, which is what uvloop's timers have.
        line.timer = asyncio.get_running_loop().call_later(
            max(line.seconds - waited, HedgeDelay.SHORTEST), self._hedge_due, line
        )

    def _hedge_due(self, line: _Line) -> None:
        line.timer = None
        now = self._nanoseconds()
        seconds_ns = int(line.seconds * 1e9)
        calls = line.calls
        while calls:
            call = calls[0]
            if not call.ended:
                if now - call.received_ns < seconds_ns:
                    self._set_timer(line, call)
                    return
                self._hedge(call)
            calls.popleft()

    def _hedge(self, call: Call) -> None:
        """Begins a second attempt, if a backup and the budget allow it."""
        if call in self._failed_here:
            return
        obstacle = self._begin(call, HEDGE)
        if obstacle:
            self.counts.suppressed[HEDGE, obstacle] += 1

    # ------------------------------------------------------------ failover

    def fail_over(self, call: Call, error: ServingError) -> bool:
        """Takes a call that cannot be answered here.

        Args:
            call: Not ended.
            error: What its caller hears if no backup answers either.

        Returns:
            Whether it is taken: `won` or `lost` will be called for it.
        """
        if call.trace.previous_attempts or not error.elsewhere or call in self._failed_here:
            return False
        if call.choice is not None and call.choice.model.serving.hedging.mode == HEDGE_MODE_DISABLED:
            return False
        race = self._race(call)
        race.fail(0)
        if not race.pending:
            obstacle = self._begin(call, FAILOVER, needs_room=isinstance(error, Overloaded))
            if obstacle:
                self.counts.suppressed[FAILOVER, obstacle] += 1
                return False
        self._failed_here[call] = error
        return True

    # ------------------------------------------------------------ attempts

    def _race(self, call: Call) -> Race:
        race = call.race
        if race is None:
            race = call.race = Race(1 + len(self.backups))
        return race

    def _begin(self, call: Call, kind: str, *, needs_room: bool = False) -> str:
        """Begins the next attempt; returns why not, or nothing if it has begun."""
        if len(self._attempts) >= MOST_ATTEMPTS:
            return "busy"
        remaining = call.deadline - self._clock()
        model = call.model_name
        first = ""

        def is_usable(number: int) -> bool:
            nonlocal first
            backup = self.backups[number - 1]
            obstacle = backup.obstacle(model, remaining)
            if not obstacle and (needs_room or kind == HEDGE):
                # A hedge is welcome unless the backup says no, what is too much here if it says yes.
                has_room = backup.has_room()
                if has_room is False or (needs_room and has_room is None):
                    obstacle = "no_room"
            first = first or obstacle
            return not obstacle

        if kind == HEDGE and self.budget.tokens < 1:
            return "budget"
        number = self._race(call).begin(is_usable)
        if number is None:
            return first or "no_backup"
        if kind == HEDGE:
            self.budget.withdraw()
        self._send(call, number, kind, remaining)
        return ""

    def _send(self, call: Call, number: int, kind: str, remaining: float) -> None:
        backup = self.backups[number - 1]
        version, payload = "", call.payload
        if call.choice is not None and (
            call.is_version_asked or call.choice.model.serving.hedging.versions == BACKUP_VERSIONS_SAME
        ):
            version = call.choice.model.version
            if not call.is_version_asked:
                payload = foreign.ask_version(payload, version)
        task = asyncio.get_running_loop().create_task(
            backup.infer(
                call.model_name,
                payload,
                _metadata(call, kind),
                remaining,
                partial(_accept, call, version, kind),
            )
        )
        self._attempts.add(task)
        call.attempts = [*call.attempts, task]
        # Not in the task itself: one that is cancelled before its first step never runs.
        task.add_done_callback(partial(self._ended_attempt, call, number, kind))

    def _ended_attempt(self, call: Call, number: int, kind: str, task: asyncio.Task[bytes]) -> None:
        self._attempts.discard(task)
        race = self._race(call)
        if task.cancelled() or call.ended:
            self.counts.outcomes[kind, "superseded"] += 1
            if not task.cancelled():
                task.exception()  # looked at, so that nobody logs that nobody did
            return
        error = task.exception()
        if error is None:
            if race.win(number) is not None:
                self.counts.outcomes[kind, "won"] += 1
                call.outcome = kind
                self._won(call, task.result())
            return
        self.counts.outcomes[kind, "failed"] += 1
        if isinstance(error, AttemptFailed):
            log.debug("%s of %r at %r: %s", kind, call, self.backups[number - 1], error)
        else:
            defect(call, error if isinstance(error, Exception) else RuntimeError(repr(error)))
        race.fail(number)
        if 0 in race.pending:
            self._hedge(call)  # the next backup at once (gRFC A6), for another token
        elif not race.pending:
            here = self._failed_here[call]
            if self._begin(call, FAILOVER, needs_room=isinstance(here, Overloaded)):
                del self._failed_here[call]
                self._lost(call, here)

    def ended(self, call: Call) -> None:
        """Ends the attempts of a call that has ended, on whichever side."""
        self._failed_here.pop(call, None)
        if call.race is not None:
            call.race.end()
        for task in call.attempts:
            task.cancel()

    def give_up(self) -> list[Call]:
        """The calls that only backups could still answer; somebody must tell them that nobody will."""
        return list(self._failed_here)

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Probes the backups until cancelled."""
        async with asyncio.TaskGroup() as group:
            for backup in self.backups:
                group.create_task(backup.follow(), name=f"probe {backup.address}")

    def status(self) -> dict[str, object]:
        """How the backups fare, for /health/dependencies."""
        return {f"backup {backup.address}": backup.status() for backup in self.backups}

    async def close(self) -> None:
        """Ends attempts, timers and connections."""
        for line in self._lines.values():
            if line.timer is not None:
                line.timer.cancel()
            line.calls.clear()
        for task in tuple(self._attempts):
            task.cancel()
        if self._attempts:
            await asyncio.wait(tuple(self._attempts))
        for backup in self.backups:
            await backup.close()


class _Line:
    """Calls of one model version that wait for their hedge, oldest first."""

    __slots__ = ("calls", "delay", "latencies", "model", "seconds", "timer")

    def __init__(self, model: Model, delay: HedgeDelay | None) -> None:
        self.model = model
        #: None: this model is not hedged.
        self.delay = delay
        self.latencies = Percentiles(LATENCY_BOUNDS)
        self.calls: deque[Call] = deque()
        #: The delay in force, in seconds.
        self.seconds = 0.0
        self.timer: asyncio.TimerHandle | None = None


def _accept(call: Call, version: str, kind: str, reply: Reply) -> bytes:
    """What the caller gets of a backup's reply.

    Raises:
        AttemptFailed: It is not given to anybody.
    """
    try:
        read = foreign.read(reply.payload, model=call.model_name, version=version)
        if call.choice is not None:
            foreign.check_outputs(read, call.choice.model.signature, call.outputs, call.rows)
    except foreign.ForeignReply as error:
        raise AttemptFailed(f"the reply is not used: {error}") from None
    return foreign.mark(read, {"hedgerow_outcome": kind, "hedgerow_region": reply.region})


def _metadata(call: Call, kind: str) -> Metadata:
    """A sibling of the attempt here: the same parent, the same request."""
    passed = [(key, value) for key, value in call.metadata if key in _PASSED_ON]
    return (
        *passed,
        ("x-request-id", call.trace.request_id),
        ("traceparent", call.trace.parent),
        (PREVIOUS_ATTEMPTS, str(len(call.attempts) + 1)),
        (ATTEMPT, kind),
    )
