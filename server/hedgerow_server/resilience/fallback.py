"""Fallback rules on the request path: they answer when neither this server nor a backup does, or not in time.

    take ── the call has failed ──┐
                                  ├─ the version's rules ─┬▶ give: their answer goes out
    watch ┄ its time is nearly up ┘                       └▶ fail: the error that led here

A short request is answered at once, a long one in turns between which the event loop does other things.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from hedgerow_protos.open_inference_pb2 import ModelInferRequest

from hedgerow_server.call import Call
from hedgerow_server.errors import ServingError
from hedgerow_server.features.join import Joiner
from hedgerow_server.gate.deadlines import kept
from hedgerow_server.resilience.rules import Answered, Rules, Unanswered

log = logging.getLogger(__name__)

#: Turns of about a millisecond that rules get before the event loop does something else, and calls that they
#: answer by turns at once.
TURNS = 4

Give = Callable[[Call, Answered], None]
Fail = Callable[[Call, ServingError], None]


class Fallback:
    """Owns: the timers of calls that rules answer if nobody else has, and the tasks of long answers.

    There are no more tasks than calls under way, whose number and bytes are bounded where they are let in.

    Args:
        give: Sends a call what rules answered.
        fail: Ends a call with a status: the rules could not answer either.
        clock: Seconds, monotonic; the clock of deadlines.
    """

    def __init__(self, give: Give, fail: Fail, clock: Callable[[], float] = time.monotonic) -> None:
        self._give = give
        self._fail = fail
        self._clock = clock
        #: Knows features of calls that were refused before anybody asked for them.
        self.joiner: Joiner | None = None
        self._timers: dict[Call, asyncio.TimerHandle] = {}
        self._jobs: dict[Call, asyncio.Task[Answered | Unanswered]] = {}
        # What these calls hear if their rules cannot answer; one that is still run has no error yet.
        self._errors: dict[Call, ServingError] = {}
        self._places = asyncio.Semaphore(TURNS)
        # Of this turn of the loop; above 0 only during it.
        self._turns = 0.0

    def __repr__(self) -> str:
        return f"<Fallback {len(self._timers)} timers, {len(self._jobs)} jobs>"

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to end."""
        return bool(self._timers or self._jobs)

    def watch(self, call: Call) -> None:
        """Has the rules answer a call that is under way, if it has no answer shortly before its deadline."""
        if _rules_for(call) is None or call in self._timers:
            return
        remaining = call.deadline - self._clock()
        self._timers[call] = asyncio.get_running_loop().call_later(
            max(0.0, remaining - kept(remaining)), self._time_is_nearly_up, call
        )

    def _time_is_nearly_up(self, call: Call) -> None:
        del self._timers[call]
        if not call.ended:
            self._answer(call, None)

    def take(self, call: Call, error: ServingError) -> bool:
        """Answers a call that has failed, by the rules of its version.

        Args:
            call: Not ended.
            error: What its caller hears if the rules cannot answer either.

        Returns:
            Whether it is taken: the call has its answer, or will.
        """
        return error.elsewhere and self._answer(call, error)

    def _answer(self, call: Call, error: ServingError | None) -> bool:
        """Lets the rules answer; what they cannot ends with the error, or without one goes on as it was."""
        rules = _rules_for(call)
        if rules is None:
            return False
        if call not in self._jobs:
            if not (call.shapes or self._read(call, rules)):
                return False
            if self._has_turn(call.rows / rules.turn_rows):
                return self._end(call, rules.answer(call.parts, call.shapes, call.outputs))
            if not call.queued_ns:
                # It was refused at the door, and holds no place here: it gets no more than a moment.
                return False
            job = asyncio.get_running_loop().create_task(self._answer_in_turns(call, rules))
            self._jobs[call] = job
            job.add_done_callback(partial(self._end_job, call))
        if error is not None:
            self._errors[call] = error
        return True

    def _has_turn(self, turns: float) -> bool:
        """Whether a call can be answered at once, by how many turns that takes."""
        if turns > 1 or self._turns + turns > TURNS:
            return False
        if not self._turns:
            asyncio.get_running_loop().call_soon(self._begin_turn)
        self._turns += turns
        return True

    def _begin_turn(self) -> None:
        self._turns = 0.0

    async def _answer_in_turns(self, call: Call, rules: Rules) -> Answered | Unanswered:
        async with self._places:
            if call.deadline <= self._clock():
                return Unanswered("the deadline has passed", {})
            return await rules.answer_in_turns(call.parts, call.shapes, call.outputs)

    def _end_job(self, call: Call, job: asyncio.Task[Answered | Unanswered]) -> None:
        self._jobs.pop(call, None)
        error = self._errors.pop(call, None)
        if job.cancelled() or call.ended:
            return
        if not self._end(call, job.result()) and error is not None:
            self._fail(call, error)

    def _end(self, call: Call, result: Answered | Unanswered) -> bool:
        assert call.choice is not None
        counts = call.choice.model.statistics.rules
        for name, rows in result.failures.items():
            counts.failed[name] += rows
        if isinstance(result, Unanswered):
            log.warning("the rules of %r could not answer: %s", call.choice.model, result.reason)
            return False
        # Not by the names joined, of which there are as many as subsets: each is a label of metrics.
        counts.answered.update(result.rules.keys())
        self._give(call, result)
        return True

    def _read(self, call: Call, rules: Rules) -> bool:
        """Finds out what a call is about that was refused before anybody did; False if that cannot be."""
        codec = call.codec
        if codec is None or call.joining_ns:
            # The features of the latter are on their way, or could not be laid out.
            return False
        try:
            request = ModelInferRequest.FromString(call.payload)
            bound = codec.bound if codec.bound is not None and codec.bound.is_for(request) else None
            tensors = (codec if bound is None else bound.callers).read(request)
            if tensors.rows > rules.turn_rows:
                return False
            parts, shapes = tensors.parts, tensors.shapes
            if bound is not None:
                assert self.joiner is not None
                joined = self.joiner.recall(call, bound.binding, parts, shapes)
                parts, shapes = joined.parts, joined.shapes
                call.features = joined.freshness.label
                call.codec = bound.replies[joined.freshness]
        except ServingError:
            return False
        except Exception:
            # The refusal is what the caller should hear of, and who arrived with it must not notice.
            log.exception("%r could not be read for its rules", call)
            return False
        call.parts, call.shapes = parts, shapes
        call.rows, call.outputs = tensors.rows, tensors.outputs
        return True

    def ended(self, call: Call) -> None:
        """Ends what is under way for a call that has ended."""
        timer = self._timers.pop(call, None)
        if timer is not None:
            timer.cancel()
        self._errors.pop(call, None)
        job = self._jobs.pop(call, None)
        if job is not None:
            job.cancel()

    def give_up(self) -> list[Call]:
        """The calls that rules are answering; somebody must tell them that they will not."""
        return list(self._jobs)


def _rules_for(call: Call) -> Rules | None:
    """The rules that may answer a call; not those of an attempt: who made it has rules of its own."""
    return None if call.choice is None or call.trace.attempt else call.choice.model.rules
