"""The request path, from a transport's batch of calls to their answers.

    answer ── parse ─ choose ─ admit ─ read tensors ─┐
                               └─ join features ─────┼─ engine: batch, run ┄┄▶ hedger: a backup as well,
    finish ── write tensors ─ respond ─ log ─────────┘                         once it has taken too long
                 └─ what failed: a backup region ─ else the version's rules ─ else a status

Everything here is plain functions on the event loop's thread. A transport hands
over what has arrived, all at once; a model that is faster than a change of
thread has answered when `answer` returns, a slower one goes on in a runner
thread and comes back through `finish`. Both go through the same functions in
the same order, so an answer does not depend on the way it took.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from hedgerow_protos.breaker import State
from hedgerow_protos.hedging import HEDGE, LOAD, REGION, write_load
from hedgerow_protos.open_inference_pb2 import ModelInferRequest

from hedgerow_server.books import Books
from hedgerow_server.call import Call, read_trace
from hedgerow_server.engine.execution import Ended
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.runners import Engine
from hedgerow_server.engine.work import Ran, Work
from hedgerow_server.errors import (
    DeadlineExceeded,
    Draining,
    Internal,
    Overloaded,
    ServingError,
    TooLarge,
    Unavailable,
    defect,
)
from hedgerow_server.features.features import Features
from hedgerow_server.features.join import Joined
from hedgerow_server.gate.admission import BYTES, FEATURES, Admission
from hedgerow_server.gate.deadlines import Deadlines, kept
from hedgerow_server.gate.door import Door
from hedgerow_server.resilience.fallback import Fallback
from hedgerow_server.resilience.fault import FaultInjection
from hedgerow_server.resilience.hedger import Hedger
from hedgerow_server.resilience.rules import Answered
from hedgerow_server.routing.table import RouteTable
from hedgerow_server.rpc import pushback
from hedgerow_server.rpc.codec import BoundCodec
from hedgerow_server.rpc.codecs import Codecs
from hedgerow_server.rpc.heads import Heads
from hedgerow_server.rpc.replies import Encoded
from hedgerow_server.telemetry.request_log import RequestLog

log = logging.getLogger(__name__)

#: Requests that may wait for their features; beyond that they are refused.
MAX_JOINING = 4096

#: Bytes of all messages that may wait or run at once, over all models: 4096 large ones would be
#: more than the machine has. One message of the permitted size is always taken.
MAX_HELD_BYTES = 1 << 30

#: A run given up at a deadline after so many times what it should have taken speaks against the version.
TIMED_OUT = 10.0

# StatusCode's own properties cost more than the rest of a call's end.
_OK = 0
_CANCELLED = (1, "CANCELLED")


class Answerer:
    """Answers calls from the models of the current route table.

    Holds: the route table, and how many calls are under way.

    Args:
        engine: runs the batches.
        requests: gets a line for each call.
        deadlines: the time that calls get.
        max_message_bytes: larger requests are refused.
        admission: who may join a model's queue.
        region: where this server is; other regions' attempts are told.
        clock: seconds, monotonic; the clock of the deadlines.
        nanoseconds: the clock of the measurements.
    """

    def __init__(
        self,
        engine: Engine,
        requests: RequestLog,
        *,
        deadlines: Deadlines,
        max_message_bytes: int,
        admission: Admission | None = None,
        region: str = "local",
        clock: Callable[[], float] = time.monotonic,
        nanoseconds: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._engine = engine
        self._deadlines = deadlines
        self._max_message_bytes = max_message_bytes
        self._clock = clock
        self._nanoseconds = nanoseconds
        self._admission = admission or Admission()
        self._door = Door(self._admission, engine, self._refuse)
        #: Reads requests and writes replies for what can be chosen.
        self.codecs = Codecs()
        self._region = region
        self._features: Features | None = None
        self._hedger: Hedger | None = None
        self._fault: FaultInjection | None = None
        self._fallback = Fallback(self._give_rules, self._end_with, clock)
        # Of the calls that have just arrived: attempts of those who have counted them already.
        self._tried_before = 0
        # Calls that wait for features, in the order they came.
        self._joining: dict[Call, None] = {}
        self._heads = Heads()
        # Set when the last call under way has ended; only while somebody waits for that.
        self._idle: asyncio.Event | None = None
        self.table = RouteTable(0, {})
        #: Counts and logs what has ended.
        self.books = Books(requests)
        self.in_flight = 0
        # Of the calls in the queues and in runs.
        self._held_bytes = 0
        #: New calls are refused; those under way go on.
        self.draining = False

    def join_with(self, features: Features) -> None:
        """Fills bound inputs by `features`, whose `done` is `joined`."""
        self._features = features
        self.codecs.views = features.views
        self._fallback.joiner = features.joiner

    def hedge_with(self, hedger: Hedger) -> None:
        """Tries slow and failed requests elsewhere."""
        self._hedger = hedger
        hedger.start(self._won_elsewhere, self._fail)

    def harm_with(self, fault: FaultInjection) -> None:
        """Delays and fails requests on purpose."""
        self._fault = fault

    def use(self, table: RouteTable) -> None:
        """Routes every call that arrives from now on by `table`."""
        self.codecs.use(table)
        self.table = table
        models = self.codecs.models
        self._admission.follow(models)
        if self._hedger is not None:
            self._hedger.follow(models)

    @property
    def utilization(self) -> float:
        """How busy this server is, from 0 to 1 and above, for those who have a choice of servers."""
        return self._admission.utilization(self._clock())

    # ------------------------------------------------------------ on the way in

    def answer(self, calls: Sequence[Call]) -> None:
        """Takes calls that have just arrived; each gets exactly one answer through its sink.

        A call that its caller gave up before it got here comes as `ended`; it is only counted.
        """
        if not calls:
            return
        table = self.table
        now = self._clock()
        chosen: dict[Model, None] = {}
        self.in_flight += len(calls)
        for call in calls:
            if call.ended:
                call.trace = read_trace(call.metadata)
                self._tried_before += bool(call.trace.previous_attempts)
                self._end([call], *_CANCELLED)
                continue
            try:
                model = self._enter(call, table, now)
            except ServingError as error:
                self._refuse(call, error)
            except Exception as error:  # noqa: BLE001  whatever it is, its text stays here
                self._refuse(call, defect(call, error))
            else:
                if model is not None:
                    chosen[model] = None
        if self._features is not None and self._features.joiner.has_new:
            self._features.joiner.flush()
        self._engine.run_waiting(*chosen)
        hedger = self._hedger
        if hedger is not None:
            hedger.budget.deposit(len(calls) - self._tried_before)
            self._tried_before = 0
        for call in calls:
            # What the turn has answered needs no hedge: the express lane pays for this look alone.
            if not call.ended:
                if hedger is not None:
                    hedger.watch(call)
                self._fallback.watch(call)

    def _enter(self, call: Call, table: RouteTable, now: float) -> Model | None:
        """Parses, routes and admits one call, and puts it into its model's queue.

        Returns:
            The model; None if the call waits for something else first.
        """
        call.trace = trace = read_trace(call.metadata)
        if trace.previous_attempts:
            self._tried_before += 1
            trace.trailing += ((REGION, self._region), (LOAD, write_load(self.utilization)))
        if call.size > self._max_message_bytes:
            raise TooLarge(
                f"the request has {call.size} bytes; this server takes {self._max_message_bytes}. "
                "Send fewer rows at once, or raise server.max_message_bytes"
            )
        payload = call.payload
        request: ModelInferRequest | None = None
        found = self._heads.find(payload)
        if found is not None:
            head, call.request_id, shift = found
        else:
            head, request = self._heads.parse(payload)
            call.request_id, shift = request.id, 0
        call.model_name, call.asked_version = head.model_name, head.model_version
        call.deadline = self._deadlines.end(now, call.remaining, head.timeout_us)
        if self.draining:
            raise Draining("this server is shutting down; send the request to another")

        choice = table.choose(head.model_name, head.model_version, trace.caller, trace.request_id)
        call.choice = choice
        call.codec = codec = self.codecs[choice]
        model = choice.model
        if model.is_prioritized:
            # A hedge has the lowest: it is somebody's second chance.
            call.priority = model.priorities.of(head.priority, is_hedge=trace.attempt == HEDGE)
        if model.in_flight >= model.limit.ample:
            choice = self._door.enter(call, choice, head.priority, table, now)
            if choice is not call.choice:
                call.choice, model = choice, choice.model
                call.codec = codec = self.codecs[choice]
        if self._held_bytes + call.size > MAX_HELD_BYTES and self._held_bytes:
            raise Overloaded(
                f"requests of {self._held_bytes} bytes are under way on this server already; try again later",
                reason=BYTES,
            )

        if codec.bound is not None:
            request = request or ModelInferRequest.FromString(payload)
            if codec.bound.is_for(request):
                self._join(call, model, codec.bound, request)
                return None
        seen = codec.recognise(head, payload, shift) if request is None else None
        if seen is not None:
            tensors, call.parts = seen
        else:
            tensors = codec.read(request or ModelInferRequest.FromString(payload), head)
            call.parts = tensors.parts
        call.rows = tensors.rows
        call.kind = tensors.kind
        call.shapes = tensors.shapes
        call.outputs = tensors.outputs
        model.in_flight += 1
        self._held_bytes += call.size
        return self._queue(call, model)

    def _queue(self, call: Call, model: Model) -> Model | None:
        """Puts a call into its model's queue.

        Returns:
            The model; None if the call is held up on purpose, or answered elsewhere.

        Raises:
            Unavailable: the version is in quarantine, or fault injection says so.
        """
        call.queued_ns = self._nanoseconds()
        if model.breaker.state is not State.CLOSED:
            call.probe = model.breaker.acquire()
            if call.probe is None and self._is_spared(call, model):
                return None
        if self._fault is not None and self._fault.strike(call, partial(self._run_late, call, model)):
            return None
        model.queue.add(call)
        return model

    def _is_spared(self, call: Call, model: Model) -> bool:
        """Has another answer a call in place of a version in quarantine.

        Returns:
            Whether one does. If nobody can, the version may: one that fails often is better than none, as
            with Envoy's panic threshold, and it may be one caller's requests alone that fail.

        Raises:
            Unavailable: another region asks, whose own attempt is under way.
        """
        refusal = Unavailable(
            f"version {model.version} of model {model.name!r} is in quarantine: "
            f"{model.breaker.reason}; it is tried again in a moment"
        )
        if call.trace.attempt == HEDGE:
            raise refusal
        if self._hedger is not None and self._hedger.fail_over(call, refusal):
            return True
        return self._fallback.take(call, refusal)

    def _run_late(self, call: Call, model: Model) -> None:
        model.queue.add(call)
        self._engine.run_waiting(model)

    def _join(self, call: Call, model: Model, bound: BoundCodec, request: ModelInferRequest) -> None:
        """Has features read for a call that brings ids; `joined` takes it from there."""
        assert self._features is not None
        if len(self._joining) >= MAX_JOINING:
            raise Overloaded(
                f"{len(self._joining)} requests wait for features already; try again later", reason=FEATURES
            )
        tensors = bound.callers.read(request)
        call.outputs = tensors.outputs
        self._features.joiner.add(call, bound.binding, tensors.parts, tensors.shapes)
        call.joining_ns = self._nanoseconds()
        model.in_flight += 1
        self._held_bytes += call.size
        self._joining[call] = None

    def joined(self, finished: Sequence[Joined]) -> None:
        """Puts calls that have their features into their models' queues."""
        chosen: dict[Model, None] = {}
        for one in finished:
            call = cast("Call", one.asker)
            assert call.codec is not None
            assert call.codec.bound is not None
            bound = call.codec.bound
            if one.failure is not None:
                self._refuse(call, defect(call, one.failure))
                continue
            del self._joining[call]
            call.parts, call.shapes = one.parts, one.shapes
            call.rows, call.kind = call.codec.rows(one.shapes, call.outputs)
            call.features = one.freshness.label
            call.codec = bound.replies[one.freshness]
            call.join_ns = self._nanoseconds() - call.joining_ns
            bound.model.statistics.join_ns += call.join_ns
            try:
                if self._queue(call, bound.model) is not None:
                    chosen[bound.model] = None
            except ServingError as error:
                self._refuse(call, error)
        self._engine.run_waiting(*chosen)

    # ----------------------------------------------------------- on the way out

    def finish(self, ended: Sequence[Ended]) -> None:
        """Answers the calls of batches that have run; those that ended meanwhile are passed over."""
        answered: list[Call] = []
        for model, batch, result in ended:
            calls = cast("list[Call]", batch)
            if isinstance(result, Ran):
                answered += self._give(model, calls, result)
            else:
                self._lose(model, calls, result)
        # First the answers, then the books: the callers need not wait for them.
        if answered:
            self._end(answered, _OK, "OK")

    def _lose(self, model: Model, calls: Sequence[Call], error: Exception) -> None:
        """Tells the calls of a batch that its run has failed, or was stopped."""
        for call in calls:
            if call.ended:
                continue
            if call.deadline <= self._clock():
                self._blame_slow(model, call, calls)
                self._refuse(
                    call, DeadlineExceeded("the deadline passed while the model ran; its run was stopped")
                )
            else:
                failure = defect(call, error)
                self._blame(model, call, f"a run failed, error {failure.error_id}")
                self._refuse(call, failure)

    def _blame(self, model: Model, call: Call, reason: str) -> None:
        """Counts a failure of a version, which after several goes into quarantine."""
        if call.probe is not None:
            call.probe.failure(reason)
        else:
            model.breaker.tally(1, failed=1, reason=reason)

    def _blame_slow(self, model: Model, call: Call, batch: Sequence[Work]) -> None:
        """Counts a run that a call waited for in vain, unless nobody could have met its deadline."""
        seconds = (self._nanoseconds() - call.started_ns) * 1e-9
        if call.started_ns and seconds > TIMED_OUT * model.latency.expect(sum([work.rows for work in batch])):
            self._blame(model, call, f"a run had not ended after {seconds:.3f} s")

    def _blame_run_of(self, call: Call) -> None:
        """Blames the run under way, if there is one, of a call that ends shortly before its deadline.

        It ends then because rules answer it, or its caller, whose clock began earlier, gives it up.
        """
        batch = self._engine.batch_of(call)
        if batch:
            assert call.choice is not None
            self._blame_slow(call.choice.model, call, batch)

    def _give(self, model: Model, calls: Sequence[Call], ran: Ran) -> list[Call]:
        """Gives each call of a batch its rows; returns those that have their answer."""
        if not calls:
            return []
        began = self._nanoseconds()
        outputs = Encoded(ran.outputs, calls[0].outputs, alone=len(calls) == 1, fixed=ran.fixed)
        answered: list[Call] = []
        end = failed = 0
        for call in calls:
            first, end = end, end + call.rows
            if call.ended:
                continue
            call.run_ns = ran.run_ns
            assert call.codec is not None
            try:
                payload = call.codec.write(call.request_id, outputs, first, call.rows)
            except ServingError as error:
                failed += 1
                self._blame(model, call, str(error))
                self._refuse(call, error)
            except Exception as error:  # noqa: BLE001  as above
                self._refuse(call, defect(call, error))
            else:
                self._respond(call, payload)
                answered.append(call)
        if model.breaker.is_wary:
            model.breaker.tally(len(calls) - failed)
        spent_ns = self._nanoseconds() - began
        model.statistics.ran(ran.rows, ran.input_ns, ran.run_ns, spent_ns, requests=len(calls))
        model.statistics.last_inference_ms = int(time.time() * 1000)
        return answered

    def expire(self, work: Work) -> None:
        """Tells a call that its time was over before a run began."""
        self._refuse(
            cast("Call", work),
            DeadlineExceeded("the deadline passed while the request waited; it was not run"),
        )

    def cancel(self, call: Call) -> None:
        """Ends a call that its caller gave up; whoever shares its batch notices nothing."""
        if call.ended:
            return
        left = call.deadline - self._clock()
        if left <= kept(left + (self._nanoseconds() - call.received_ns) * 1e-9):
            self._blame_run_of(call)
        self._end([call], *_CANCELLED)
        if call.queued_ns:
            # Perhaps it was the last of a run that a thread is about to begin.
            self._engine.stop_unwanted_runs()

    def abandon(self) -> None:
        """Ends every call under way as UNAVAILABLE: the time that a drain gives is over."""
        elsewhere = self._hedger.give_up() if self._hedger is not None else []
        held_up = self._fault.give_up() if self._fault is not None else []
        for work in (
            *self._joining,
            *held_up,
            *self._engine.give_up(),
            *elsewhere,
            *self._fallback.give_up(),
        ):
            # One that failed here and waits for a backup stands in two of these.
            if not work.ended:
                self._end_with(
                    cast("Call", work),
                    Draining("this server shut down before it could answer; send the request to another"),
                )
        self._engine.stop_unwanted_runs()

    def _respond(self, call: Call, payload: bytes) -> None:
        """Gives a call its answer; somebody must `_end` it then."""
        try:
            call.sink.respond(call, payload, call.trace.trailing)
        except Exception:
            # A transport's trouble with one call is none of its batch-mates'.
            log.exception("the answer to %r could not be sent", call)

    def _won_elsewhere(self, call: Call, payload: bytes) -> None:
        """Answers a call with a backup's reply; what it has under way here is dropped."""
        self._respond(call, payload)
        self._end([call], _OK, "OK")
        if call.queued_ns:
            self._engine.stop_unwanted_runs()

    def _give_rules(self, call: Call, answered: Answered) -> None:
        """Answers a call with what its version's rules say."""
        assert call.codec is not None
        outputs = Encoded(answered.outputs, call.outputs, alone=True)
        try:
            payload = call.codec.write_fallback(call.request_id, outputs, call.rows, answered.rule)
        except Exception as error:  # noqa: BLE001  as above
            self._end_with(call, defect(call, error))
            return
        call.outcome = "fallback"
        call.rule = answered.rule
        self._blame_run_of(call)
        self._respond(call, payload)
        self._end([call], _OK, "OK")
        if call.queued_ns:
            self._engine.stop_unwanted_runs()

    def _refuse(self, call: Call, error: ServingError) -> None:
        """A call is not answered here; a backup takes it, or it fails."""
        if isinstance(error, Overloaded) and error.reason:
            self.books.of(call).sheds[error.reason] += 1
        if self._hedger is None or not self._hedger.fail_over(call, error):
            self._fail(call, error)

    def _fail(self, call: Call, error: ServingError) -> None:
        """Nobody has answered a call: its version's rules do, or it ends with a status."""
        if not self._fallback.take(call, error):
            self._end_with(call, error)

    def _end_with(self, call: Call, error: ServingError) -> None:
        """Ends a call with a status."""
        number, _ = error.code.value
        message, trailing = pushback.ending(error, is_attempt=call.trace.previous_attempts > 0)
        try:
            call.sink.fail(call, error.code, message, [*call.trace.trailing, *trailing])
        except Exception:
            log.exception("the status of %r could not be sent", call)
        self._end([call], number, error.code.name, error.error_id if isinstance(error, Internal) else None)

    def _end(self, calls: Sequence[Call], code: int, status: str, error_id: str | None = None) -> None:
        """The one place where calls end: they are counted, logged and let their version go.

        Args:
            calls: those of one version one after the other.
            code: the gRPC status of all of them.
            status: its name.
            error_id: of the defect that ended them.
        """
        some_have_more = self._fault is not None or self._fallback.is_busy
        for call in calls:
            call.ended = True
            if some_have_more or call.line is not None or call.race is not None or call.probe is not None:
                self._let_go(call, code)
            if call.queued_ns or call.joining_ns:
                if not call.queued_ns:
                    self._joining.pop(call, None)
                assert call.choice is not None
                call.choice.model.release()
                self._held_bytes -= call.size
        self.books.enter(calls, self._nanoseconds(), code, status, error_id)
        self.in_flight -= len(calls)
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None

    def _let_go(self, call: Call, code: int) -> None:
        """Ends what few calls have: attempts elsewhere, rules that wait, a probe, a delay on purpose."""
        self._fallback.ended(call)
        if self._hedger is not None:
            self._hedger.ended(call)
        if call.probe is not None:
            if code == _OK and call.outcome == "primary":
                call.probe.success()
            else:
                call.probe.ignore()
        if self._fault is not None:
            self._fault.ended(call)

    async def idle(self) -> None:
        """Returns when no call is under way."""
        while self.in_flight:
            if self._idle is None:
                self._idle = asyncio.Event()
            await self._idle.wait()
