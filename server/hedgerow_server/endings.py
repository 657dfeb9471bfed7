"""How calls end: the last steps of the request path, and those of the ways that lead off it.

respond ────────────────────────────────────────────────────────┐
refuse ─ a backup takes it ┄┄▶ won_elsewhere ───────────────────┤
   └─ fail ─ else its version's rules take it ┄┄▶ give_rules ───┼─ end: counted, logged, let go
        └─ else end_with a status ──────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import cast

from hedgerow_server.books import Books
from hedgerow_server.call import Call
from hedgerow_server.engine.runners import Engine
from hedgerow_server.errors import Draining, Internal, Overloaded, ServingError, defect
from hedgerow_server.resilience.fallback import Fallback
from hedgerow_server.resilience.fault import FaultInjection
from hedgerow_server.resilience.hedger import Hedger
from hedgerow_server.resilience.quarantine import Blame
from hedgerow_server.resilience.rules import Answered
from hedgerow_server.rpc import pushback
from hedgerow_server.rpc.replies import Encoded

log = logging.getLogger(__name__)

# StatusCode's own properties cost more than the rest of a call's end.
_OK = 0


class Endings:
    """Ends each call once.

    Holds: what is under way, which `answer.py` adds to: calls, their bytes, and those without features yet.

    Args:
        engine: stops runs that nobody waits for any more.
        books: count and log what has ended.
        blame: hears of runs that rules answered in place of.
        clock: seconds, monotonic; the clock of the deadlines.
        nanoseconds: the clock of the measurements.
    """

    def __init__(
        self,
        engine: Engine,
        books: Books,
        blame: Blame,
        clock: Callable[[], float],
        nanoseconds: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._books = books
        self._blame = blame
        self._nanoseconds = nanoseconds
        #: What answers calls that the versions themselves do not.
        self.fallback = Fallback(self.give_rules, self.end_with, clock)
        self.hedger: Hedger | None = None
        #: Holds calls up on purpose.
        self.fault: FaultInjection | None = None
        #: Calls that have arrived and not ended.
        self.in_flight = 0
        #: Of the calls in the queues and in runs.
        self.held_bytes = 0
        #: Calls that wait for features, in the order they came.
        self.joining: dict[Call, None] = {}
        # Set when the last call under way has ended; only while somebody waits for that.
        self._idle: asyncio.Event | None = None

    # ------------------------------------------------------------- with an answer

    def respond(self, call: Call, payload: bytes) -> None:
        """Gives a call its answer; somebody must `end` it then."""
        try:
            call.sink.respond(call, payload, call.trace.trailing)
        except Exception:
            # A transport's trouble with one call is none of its batch-mates'.
            log.exception("the answer to %r could not be sent", call)

    def won_elsewhere(self, call: Call, payload: bytes) -> None:
        """Answers a call with a backup's reply; what it has under way here is dropped."""
        self.respond(call, payload)
        self.end([call], _OK, "OK")
        if call.queued_ns:
            self._engine.stop_unwanted_runs()

    def give_rules(self, call: Call, answered: Answered) -> None:
        """Answers a call with what its version's rules say."""
        assert call.codec is not None
        outputs = Encoded(answered.outputs, call.outputs, alone=True)
        try:
            payload = call.codec.write_fallback(call.request_id, outputs, call.rows, answered.rule)
        except Exception as error:  # noqa: BLE001  whatever it is, its text stays here
            self.end_with(call, defect(call, error))
            return
        call.outcome = "fallback"
        call.rule = answered.rule
        self._blame.run_of(call)
        self.respond(call, payload)
        self.end([call], _OK, "OK")
        if call.queued_ns:
            self._engine.stop_unwanted_runs()

    # ----------------------------------------------------------- without its model

    def refuse(self, call: Call, error: ServingError) -> None:
        """A call is not answered here: a backup does, or its version's rules, or it ends with a status."""
        if isinstance(error, Overloaded) and error.reason:
            self._books.of(call).sheds[error.reason] += 1
        if not self.is_answered_otherwise(call, error):
            self.end_with(call, error)

    def is_answered_otherwise(self, call: Call, error: ServingError) -> bool:
        """Has a backup answer a call in place of its version, else the version's rules.

        Returns:
            Whether one of them does.
        """
        if self.hedger is not None and self.hedger.fail_over(call, error):
            return True
        return self.fallback.take(call, error)

    def fail(self, call: Call, error: ServingError) -> None:
        """Nobody has answered a call: its version's rules do, or it ends with a status."""
        if not self.fallback.take(call, error):
            self.end_with(call, error)

    def end_with(self, call: Call, error: ServingError) -> None:
        """Ends a call with a status."""
        number, _ = error.code.value
        message, trailing = pushback.ending(error, is_attempt=call.trace.previous_attempts > 0)
        try:
            call.sink.fail(call, error.code, message, [*call.trace.trailing, *trailing])
        except Exception:
            log.exception("the status of %r could not be sent", call)
        self.end([call], number, error.code.name, error.error_id if isinstance(error, Internal) else None)

    # ------------------------------------------------------------------- the end

    def end(self, calls: Sequence[Call], code: int, status: str, error_id: str | None = None) -> None:
        """The one place where calls end: they are counted, logged and let their version go.

        Args:
            calls: those of one version one after the other.
            code: the gRPC status of all of them.
            status: its name.
            error_id: of the defect that ended them.
        """
        some_have_more = self.fault is not None or self.fallback.is_busy
        for call in calls:
            call.ended = True
            if some_have_more or call.line is not None or call.race is not None or call.probe is not None:
                self._let_go(call, code)
            if call.queued_ns or call.joining_ns:
                if not call.queued_ns:
                    self.joining.pop(call, None)
                assert call.choice is not None
                call.choice.model.release()
                self.held_bytes -= call.size
        self._books.enter(calls, self._nanoseconds(), code, status, error_id)
        self.in_flight -= len(calls)
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None

    def _let_go(self, call: Call, code: int) -> None:
        """Ends what few calls have: attempts elsewhere, rules that wait, a probe, a delay on purpose."""
        self.fallback.ended(call)
        if self.hedger is not None:
            self.hedger.ended(call)
        if call.probe is not None:
            if code == _OK and call.outcome == "primary":
                call.probe.success()
            else:
                call.probe.ignore()
        if self.fault is not None:
            self.fault.ended(call)

    def abandon(self) -> None:
        """Ends every call under way as UNAVAILABLE: the time that a drain gives is over."""
        elsewhere = self.hedger.give_up() if self.hedger is not None else []
        held_up = self.fault.give_up() if self.fault is not None else []
        for work in (
            *self.joining,
            *held_up,
            *self._engine.give_up(),
            *elsewhere,
            *self.fallback.give_up(),
        ):
            # One that failed here and waits for a backup stands in two of these.
            if not work.ended:
                self.end_with(
                    cast("Call", work),
                    Draining("this server shut down before it could answer; send the request to another"),
                )
        self._engine.stop_unwanted_runs()

    async def idle(self) -> None:
        """Returns when no call is under way."""
        while self.in_flight:
            if self._idle is None:
                self._idle = asyncio.Event()
            await self._idle.wait()
