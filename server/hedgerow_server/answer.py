"""The request path, from a transport's batch of calls to their answers.

    answer ── parse ─ choose ─ admit ─ read tensors ─┐
                               └─ join features ─────┼─ engine: batch, run ┄┄▶ hedger: a backup as well,
    finish ── write tensors ─ respond ─ end ─────────┘                         once it has taken too long
                 └─ refuse: a backup region ─ else the version's rules ─ else a status   (endings.py)

Everything here is plain functions on the event loop's thread. A transport hands
over what has arrived, all at once; a model that is faster than a change of
thread has answered when `answer` returns, a slower one goes on in a runner
thread and comes back through `finish`. Both go through the same functions in
the same order, so an answer does not depend on the way it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from hedgerow_protos.breaker import State
from hedgerow_protos.hedging import HEDGE, LOAD, REGION, write_load
from hedgerow_protos.open_inference_pb2 import ModelInferRequest

from hedgerow_server.books import Books
from hedgerow_server.call import Call, read_trace
from hedgerow_server.endings import Endings
from hedgerow_server.engine.execution import Ended
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.runners import Engine
from hedgerow_server.engine.work import Ran, Work
from hedgerow_server.errors import (
    DeadlineExceeded,
    Draining,
    Overloaded,
    ServingError,
    TooLarge,
    defect,
)
from hedgerow_server.features.features import Features
from hedgerow_server.features.join import Joined
from hedgerow_server.gate.admission import BYTES, FEATURES, Admission
from hedgerow_server.gate.deadlines import Deadlines, kept
from hedgerow_server.gate.door import Door
from hedgerow_server.resilience.fault import FaultInjection
from hedgerow_server.resilience.hedger import Hedger
from hedgerow_server.resilience.quarantine import Blame, quarantined
from hedgerow_server.routing.table import RouteTable
from hedgerow_server.rpc.codec import BoundCodec
from hedgerow_server.rpc.codecs import Codecs
from hedgerow_server.rpc.heads import Heads
from hedgerow_server.rpc.replies import Encoded
from hedgerow_server.telemetry.request_log import RequestLog

#: Requests that may wait for their features; beyond that they are refused.
MAX_JOINING = 4096

#: Bytes of all messages that may wait or run at once, over all models: 4096 large ones would be
#: more than the machine has. One message of the permitted size is always taken.
MAX_HELD_BYTES = 1 << 30

# StatusCode's own properties cost more than the rest of a call's end.
_OK = 0
_CANCELLED = (1, "CANCELLED")


class Answerer:
    """Answers calls from the models of the current route table.

    Holds: the route table. What is under way is held by its endings, which take it away.

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
        #: Reads requests and writes replies for what can be chosen.
        self.codecs = Codecs()
        self._region = region
        self._features: Features | None = None
        self._hedger: Hedger | None = None
        self._fault: FaultInjection | None = None
        # Of the calls that have just arrived: attempts of those who have counted them already.
        self._tried_before = 0
        self._heads = Heads()
        self.table = RouteTable(0, {})
        #: Counts and logs what has ended.
        self.books = Books(requests)
        self._blame = Blame(engine.batch_of, nanoseconds)
        self._endings = Endings(engine, self.books, self._blame, clock, nanoseconds)
        self._fallback = self._endings.fallback
        self._door = Door(self._admission, engine, self._endings.refuse)
        #: New calls are refused; those under way go on.
        self.draining = False

    def join_with(self, features: Features) -> None:
        """Fills bound inputs by `features`, whose `done` is `joined`."""
        self._features = features
        self.codecs.views = features.views
        self._fallback.joiner = features.joiner

    def hedge_with(self, hedger: Hedger) -> None:
        """Tries slow and failed requests elsewhere."""
        self._hedger = self._endings.hedger = hedger
        hedger.start(self._endings.won_elsewhere, self._endings.fail)

    def harm_with(self, fault: FaultInjection) -> None:
        """Delays and fails requests on purpose."""
        self._fault = self._endings.fault = fault

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

    @property
    def in_flight(self) -> int:
        """Calls that have arrived and not ended."""
        return self._endings.in_flight

    async def idle(self) -> None:
        """Returns when no call is under way."""
        await self._endings.idle()

    def abandon(self) -> None:
        """Ends every call under way as UNAVAILABLE: the time that a drain gives is over."""
        self._endings.abandon()

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
        self._endings.in_flight += len(calls)
        for call in calls:
            if call.ended:
                call.trace = read_trace(call.metadata)
                self._tried_before += bool(call.trace.previous_attempts)
                self._endings.end([call], *_CANCELLED)
                continue
            try:
                model = self._enter(call, table, now)
            except ServingError as error:
                self._endings.refuse(call, error)
            except Exception as error:  # noqa: BLE001  whatever it is, its text stays here
                self._endings.refuse(call, defect(call, error))
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
        held = self._endings.held_bytes
        if held + call.size > MAX_HELD_BYTES and held:
            raise Overloaded(
                f"requests of {held} bytes are under way on this server already; try again later",
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
        self._endings.held_bytes += call.size
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
        error = quarantined(model)
        if call.trace.attempt == HEDGE:
            raise error
        return self._endings.is_answered_otherwise(call, error)

    def _run_late(self, call: Call, model: Model) -> None:
        model.queue.add(call)
        self._engine.run_waiting(model)

    def _join(self, call: Call, model: Model, bound: BoundCodec, request: ModelInferRequest) -> None:
        """Has features read for a call that brings ids; `joined` takes it from there."""
        assert self._features is not None
        if len(self._endings.joining) >= MAX_JOINING:
            raise Overloaded(
                f"{len(self._endings.joining)} requests wait for features already; try again later",
                reason=FEATURES,
            )
        tensors = bound.callers.read(request)
        call.outputs = tensors.outputs
        self._features.joiner.add(call, bound.binding, tensors.parts, tensors.shapes)
        call.joining_ns = self._nanoseconds()
        model.in_flight += 1
        self._endings.held_bytes += call.size
        self._endings.joining[call] = None

    def joined(self, finished: Sequence[Joined]) -> None:
        """Puts calls that have their features into their models' queues."""
        chosen: dict[Model, None] = {}
        for one in finished:
            call = cast("Call", one.asker)
            assert call.codec is not None
            assert call.codec.bound is not None
            bound = call.codec.bound
            if one.failure is not None:
                self._endings.refuse(call, defect(call, one.failure))
                continue
            del self._endings.joining[call]
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
                self._endings.refuse(call, error)
        self._engine.run_waiting(*chosen)

    # ----------------------------------------------------------- on the way out

    def finish(self, ended: Sequence[Ended]) -> None:
        """Answers the calls of batches that have run; those that ended meanwhile are passed over."""
        answered: list[Call] = []
        at_ms = int(time.time() * 1000)
        for model, batch, result in ended:
            calls = cast("list[Call]", batch)
            if isinstance(result, Ran):
                self._give(model, calls, result, answered)
                model.statistics.last_inference_ms = at_ms
            else:
                self._lose(model, calls, result)
        # First the answers, then the books: the callers need not wait for them.
        if answered:
            self._endings.end(answered, _OK, "OK")

    def _lose(self, model: Model, calls: Sequence[Call], error: Exception) -> None:
        """Tells the calls of a batch that its run has failed, or was stopped."""
        for call in calls:
            if call.ended:
                continue
            if call.deadline <= self._clock():
                self._blame.slow(model, call, calls)
                self._endings.refuse(
                    call, DeadlineExceeded("the deadline passed while the model ran; its run was stopped")
                )
            else:
                failure = defect(call, error)
                self._blame.failure(model, call, f"a run failed, error {failure.error_id}")
                self._endings.refuse(call, failure)

    def _give(self, model: Model, calls: Sequence[Call], ran: Ran, answered: list[Call]) -> None:
        """Gives each call of a batch its rows; those that have their answer join `answered`."""
        if not calls:
            return
        began = self._nanoseconds()
        outputs = Encoded(ran.outputs, calls[0].outputs, alone=len(calls) == 1, fixed=ran.fixed)
        end = failed = 0
        for call in calls:
            first, end = end, end + call.rows
            if call.ended:
                continue
            call.run_ns = ran.run_ns
            assert call.codec is not None
            try:
                payload = call.codec.writer.write(call.request_id, outputs, first, call.rows)
            except ServingError as error:
                failed += 1
                self._blame.failure(model, call, str(error))
                self._endings.refuse(call, error)
            except Exception as error:  # noqa: BLE001  as above
                self._endings.refuse(call, defect(call, error))
            else:
                self._endings.respond(call, payload)
                answered.append(call)
        if model.breaker.is_wary:
            model.breaker.tally(len(calls) - failed)
        spent_ns = self._nanoseconds() - began
        model.statistics.ran(ran.rows, ran.input_ns, ran.run_ns, spent_ns, requests=len(calls))

    def expire(self, work: Work) -> None:
        """Tells a call that its time was over before a run began."""
        self._endings.refuse(
            cast("Call", work),
            DeadlineExceeded("the deadline passed while the request waited; it was not run"),
        )

    def cancel(self, call: Call) -> None:
        """Ends a call that its caller gave up; whoever shares its batch notices nothing."""
        if call.ended:
            return
        left = call.deadline - self._clock()
        if left <= kept(left + (self._nanoseconds() - call.received_ns) * 1e-9):
            self._blame.run_of(call)
        self._endings.end([call], *_CANCELLED)
        if call.queued_ns:
            # Perhaps it was the last of a run that a thread is about to begin.
            self._engine.stop_unwanted_runs()
