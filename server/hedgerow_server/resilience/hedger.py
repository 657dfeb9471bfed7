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
from collections.abc import Callable, Sequence
from functools import partial

from hedgerow_protos.breaker import Breaker
from hedgerow_protos.hedgerow_control_pb2 import BACKUP_VERSIONS_SAME, HEDGE_MODE_DISABLED
from hedgerow_protos.hedging import ATTEMPT, FAILOVER, HEDGE, Budget, Race, write_previous_attempts
from hedgerow_protos.names import model_name_problem

from hedgerow_server.call import ROUTE_KEY, Call
from hedgerow_server.engine.model import Model
from hedgerow_server.errors import Overloaded, ServingError, defect
from hedgerow_server.resilience.backup import AttemptFailed, Backup, Metadata, Reply, Unusable
from hedgerow_server.resilience.counts import HedgeCounts
from hedgerow_server.resilience.watch import Watch
from hedgerow_server.rpc import foreign

log = logging.getLogger(__name__)

#: Attempts under way at once, and bytes of their requests; beyond that requests stay where they are.
MOST_ATTEMPTS, MOST_BYTES = 1024, 1 << 28
#: Who the caller is, which the backup has to know as this server does.
_PASSED_ON = frozenset(("authorization", "x-api-key", ROUTE_KEY))

#: A backup's answer, as the caller gets it.
Won = Callable[[Call, bytes], None]
#: Nobody answered; the error is the one of the attempt here.
Lost = Callable[[Call, ServingError], None]


class Hedger:
    """Owns: the attempts at backups, and the watch over requests that wait to be hedged.

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
        self._standings = [backup.standing for backup in self.backups]
        self.budget = budget
        self.counts = HedgeCounts()
        self._clock = clock
        self._watch = Watch(
            budget, after=after, adaptive=adaptive, clock=clock, nanoseconds=nanoseconds, due=self._hedge
        )
        self._attempts: dict[asyncio.Task[bytes], _Attempt] = {}
        # Of the requests that they are for.
        self._bytes = 0
        # Calls that only backups can answer: the attempt here has failed.
        self._failed_here: dict[Call, ServingError] = {}
        self._is_closed = False
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
        if call.choice is not None and not call.trace.previous_attempts:
            self._watch.add(call, call.choice.model)

    def follow(self, models: set[Model]) -> None:
        """Forgets the delays of models that are gone."""
        self._watch.follow(models)

    def _hedge(self, call: Call, known: str = "") -> None:
        """Begins a second attempt, if a backup and the budget allow it.

        Args:
            call: Not ended.
            known: What stood against the attempt that this is in place of.
        """
        if call in self._failed_here:
            return
        obstacle = self._begin(call, HEDGE)
        if obstacle:
            self.counts.suppressed[HEDGE, known or obstacle] += 1

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
        if call.choice is None:
            # What can name no model is nowhere; and what is remembered of a backup's models stays short.
            if model_name_problem(call.model_name):
                return False
        elif call.choice.model.serving.hedging.mode == HEDGE_MODE_DISABLED:
            return False
        needs_room = isinstance(error, Overloaded)
        if needs_room and call.race is None and not self._has_room_elsewhere():
            # Most are refused when all regions are full: that must cost next to nothing.
            self.counts.suppressed[FAILOVER, "no_room"] += 1
            return False
        race = self._race(call)
        if not race.pending - {0}:
            obstacle = self._begin(call, FAILOVER, needs_room=needs_room)
            if obstacle:
                self.counts.suppressed[FAILOVER, obstacle] += 1
                return False
        race.fail(0)
        self._failed_here[call] = error
        return True

    def _has_room_elsewhere(self) -> bool:
        return any(standing.has_room() for standing in self._standings)

    # ------------------------------------------------------------ attempts

    def _race(self, call: Call) -> Race:
        race = call.race
        if race is None:
            race = call.race = Race(1 + len(self.backups))
        return race

    def _begin(self, call: Call, kind: str, *, needs_room: bool = False) -> str:
        """Begins the next attempt; returns why not, or nothing if it has begun."""
        if self._is_closed or len(self._attempts) >= MOST_ATTEMPTS or self._bytes + call.size > MOST_BYTES:
            return "busy"
        remaining = call.deadline - self._clock()
        version = _version_for(call)
        first = ""

        def is_usable(number: int) -> bool:
            nonlocal first
            standing = self.backups[number - 1].standing
            obstacle = standing.obstacle(call.model_name, version, remaining)
            if not obstacle and (needs_room or kind == HEDGE):
                # A hedge is welcome unless the backup says no, what is too much here if it says yes.
                has_room = standing.has_room()
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
        attempt = _Attempt(call, number, kind, version)
        task = asyncio.get_running_loop().create_task(self._make(attempt, remaining))
        self._attempts[task] = attempt
        self._bytes += call.size
        call.attempts = [*call.attempts, task]
        # Not in the task itself: one that is cancelled before its first step never runs.
        task.add_done_callback(self._ended_attempt)
        return ""

    async def _make(self, attempt: _Attempt, remaining: float) -> bytes:
        call, version = attempt.call, attempt.version
        payload = call.payload
        if version != call.asked_version:
            payload = foreign.ask_version(payload, version)
        attempt.was_sent = True
        return await self.backups[attempt.number - 1].infer(
            call.model_name,
            version,
            payload,
            _metadata(call, attempt),
            remaining,
            partial(_accept, attempt),
        )

    def _ended_attempt(self, task: asyncio.Task[bytes]) -> None:
        attempt = self._attempts.pop(task)
        call, kind = attempt.call, attempt.kind
        self._bytes -= call.size
        # Looked at in any case, so that nobody logs that nobody did.
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, AttemptFailed) and not error.was_sent:
            attempt.was_sent = False
        if not attempt.was_sent and kind == HEDGE:
            self.budget.refund()
        if call.ended:
            if attempt.was_sent:
                self.counts.outcomes[kind, "superseded"] += 1
            return
        race = self._race(call)
        if error is None:
            if race.win(attempt.number) is not None:
                self.counts.outcomes[kind, "won"] += 1
                call.outcome = kind
                self._won(call, task.result())
            return
        if attempt.was_sent:
            self.counts.outcomes[kind, "failed"] += 1
        if isinstance(error, AttemptFailed):
            log.debug("%r failed: %s", attempt, error)
        elif isinstance(error, Exception):
            defect(call, error)
        race.fail(attempt.number)
        if 0 in race.pending:
            # The next backup at once (gRFC A6), for another token.
            self._hedge(call, "" if attempt.was_sent else "breaker")
        elif not race.pending:
            here = self._failed_here[call]
            if self._begin(call, FAILOVER, needs_room=isinstance(here, Overloaded)):
                del self._failed_here[call]
                self._lost(call, here)

    def ended(self, call: Call) -> None:
        """Ends the attempts of a call that has ended, on whichever side, and its wait for one."""
        if call.line is not None:
            call.line.calls.pop(call, None)
            call.line = None
        if call.race is None:
            return
        self._failed_here.pop(call, None)
        call.race.end()
        for task in call.attempts:
            task.cancel()
        # A failed one holds on to what it was made of, which leads back to the call.
        call.attempts = ()

    def give_up(self) -> list[Call]:
        """The calls that only backups could still answer; somebody must tell them that nobody will."""
        return list(self._failed_here)

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Probes the backups until cancelled."""
        async with asyncio.TaskGroup() as group:
            for backup in self.backups:
                group.create_task(backup.follow(), name=f"probe {backup.address}")

    @property
    def breakers(self) -> list[Breaker]:
        """Of the backups."""
        return [backup.standing.breaker for backup in self.backups]

    def status(self) -> dict[str, object]:
        """How the backups fare, for /health/dependencies."""
        return {f"backup {backup.address}": backup.standing.status() for backup in self.backups}

    async def close(self) -> None:
        """Ends attempts, timers and connections."""
        self._is_closed = True
        self._watch.close()
        tasks = list(self._attempts)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for backup in self.backups:
            await backup.close()


class _Attempt:
    """One attempt at a backup."""

    __slots__ = ("call", "kind", "number", "previous", "version", "was_sent")

    def __init__(self, call: Call, number: int, kind: str, version: str) -> None:
        self.call = call
        #: Of the race; the backup's place is one less.
        self.number = number
        self.kind = kind
        #: That must answer; empty: any.
        self.version = version
        #: How many came before, the one here included.
        self.previous = 1 + len(call.attempts)
        #: The backup may have heard of it.
        self.was_sent = False

    def __repr__(self) -> str:
        return f"<{self.kind} {self.number} of {self.call!r}>"


def _version_for(call: Call) -> str:
    """The version that must answer; empty: whichever is in service there."""
    if call.choice is not None and call.choice.model.serving.hedging.versions == BACKUP_VERSIONS_SAME:
        return call.choice.model.version
    return call.asked_version


def _accept(attempt: _Attempt, reply: Reply) -> bytes:
    """What the caller gets of a backup's reply.

    Raises:
        Unusable: It is not given to anybody.
    """
    call = attempt.call
    try:
        read = foreign.read(
            reply.payload, model=call.model_name, version=attempt.version, request_id=call.request_id
        )
    except foreign.ForeignReply as error:
        raise Unusable(f"the reply is not used: {error}", is_garbage=True) from None
    try:
        if call.choice is not None:
            foreign.check_outputs(read, call.choice.model.signature, call.outputs, call.rows)
    except foreign.ForeignReply as error:
        raise Unusable(f"the reply is not used: {error}", is_garbage=False) from None
    return foreign.mark(read, {"hedgerow_outcome": attempt.kind, "hedgerow_region": reply.region})


def _metadata(call: Call, attempt: _Attempt) -> Metadata:
    """A sibling of the attempt here: the same parent, the same request."""
    passed = [(key, value) for key, value in call.metadata if key in _PASSED_ON and _is_sendable(value)]
    return (
        *passed,
        ("x-request-id", call.trace.request_id),
        ("traceparent", call.trace.parent),
        *write_previous_attempts(attempt.previous),
        (ATTEMPT, attempt.kind),
    )


def _is_sendable(value: str | bytes) -> bool:
    """Whether gRPC takes it as a header; a transport may have let in what another does not."""
    return isinstance(value, str) and value.isascii() and value.isprintable()
