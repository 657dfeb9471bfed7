"""Runs the attempts of requests for the asyncio client.

Each request runs in its caller's task, which awaits the first attempt as without backups. Attempts beside it
have tasks of their own, which end before the request does; whoever brings the answer cancels the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Sequence
from typing import Any, Generic

import grpc
import grpc.aio
from hedgerow_protos import open_inference_pb2 as pb
from hedgerow_protos.breaker import Breaker, State

from hedgerow.errors import Cancelled, DeadlineExceeded, HedgerowError, InvalidReply, from_rpc
from hedgerow.hedging.attempt import Attempt
from hedgerow.hedging.attempts import Attempts
from hedgerow.hedging.direct import cancel
from hedgerow.hedging.method import ASK_TIMEOUT, AWAY, Asked, Method, ResultT, news_of, traced
from hedgerow.hedging.regions import Regions
from hedgerow.hedging.settings import Hedging
from hedgerow.hedging.target import Trailing
from hedgerow.infer_request import Headers
from hedgerow.lanes import Lanes

log = logging.getLogger(__name__)

#: Seconds after the deadline in which gRPC should have ended all attempts.
GRACE = 0.2


class AsyncHedger:
    """Owns: the requests under way, and tasks that outlive theirs: questions to backups, and probes.

    Args:
        targets: Addresses, the primary's first.
        lanes: Connections to each, made with `method.BytesStub`.
        hedge: As for the client.
        retries: As for the client.
        headers: Of the questions to backups.
        loop: All is called on.
    """

    def __init__(
        self,
        targets: Sequence[str],
        lanes: Sequence[Lanes[grpc.aio.Channel]],
        *,
        hedge: Hedging | None,
        retries: int,
        headers: Headers,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.regions = Regions(targets, hedge, retries=retries, clock=loop.time, changed=self._take_note)
        self.lanes = tuple(lanes)
        self.loop = loop
        #: Under way.
        self.calls: set[_Call[Any]] = set()
        self._headers = headers
        self._tasks: set[asyncio.Task[None]] = set()
        #: Targets that are said to be down.
        self._down: set[str] = set()

    def __repr__(self) -> str:
        return f"<AsyncHedger {len(self.calls)} calls, {self.regions!r}>"

    async def call(
        self, method: Method[ResultT], asked: Asked, payload: bytes, seconds: float, sent: Headers
    ) -> ResultT:
        """Brings the answer to a request from whichever target; as `blocking.Hedger.call`."""
        return await _Call(self, method, asked, payload, seconds, traced(sent)).run()

    async def close(self) -> None:
        """Ends the requests under way with `Cancelled`; the lanes are closed by their owner."""
        for call in tuple(self.calls):
            call.attempts.end(Cancelled("the client was closed while the call was under way"))
            call.finish()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def ask(self) -> None:
        """Asks the backups that are due whether they are ready, once on each connection."""
        for index in self.regions.to_ask(self.loop.time()):
            for _ in self.lanes[index].all:
                self.keep(self._ask(index))

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what no request waits for."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, index: int) -> None:
        lanes = self.lanes[index]
        lane = lanes.acquire()
        said: Trailing = {}
        ready: bool | None = None
        try:
            call = lane.stub.ServerReady(pb.ServerReadyRequest(), timeout=ASK_TIMEOUT, metadata=self._headers)
            ready = (await call).ready
            said = dict(await call.trailing_metadata() or ())
        except grpc.aio.AioRpcError as error:
            said = dict(error.trailing_metadata() or ())
            if error.code() in AWAY:
                ready = False
        finally:
            lanes.release(lane, said)
        self.regions.heard(self.loop.time(), index, said, ready=ready)

    def _take_note(self, breaker: Breaker) -> None:
        line = news_of(breaker, self._down)
        if line:
            log.warning(line)
        if breaker.state is State.OPEN:
            # Some may be waiting for its target only. Not at once: this is called amid a decision.
            self.loop.call_soon(self._look_at_all)

    def _look_at_all(self) -> None:
        for call in tuple(self.calls):
            call.look()


class _Call(Generic[ResultT]):
    """One request: its attempts, their calls and tasks."""

    _result: ResultT | None = None
    #: Done when it is over, if the caller waits for nothing else.
    _waiting: asyncio.Future[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _wakes_at = math.inf

    def __init__(
        self,
        hedger: AsyncHedger,
        method: Method[ResultT],
        asked: Asked,
        payload: bytes,
        seconds: float,
        sent: Headers,
    ) -> None:
        now = hedger.loop.time()
        self._hedger = hedger
        self._method = method
        self._asked = asked
        self._payload = payload
        self._sent = sent
        self._deadline = now + seconds
        self._calls: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.attempts = Attempts(hedger.regions, asked[0], now, seconds)

    async def run(self) -> ResultT:
        """Makes the attempts; in the caller's task."""
        hedger = self._hedger
        now = hedger.loop.time()
        begun = self.attempts.start(now)
        hedger.calls.add(self)
        self._set_timer()
        try:
            if now >= hedger.regions.ask_at:
                hedger.ask()
            while begun:
                here, *beside = begun
                self._spawn(beside)
                begun = await self._make(here)
            if not self.attempts.over:
                self._waiting = hedger.loop.create_future()
                await asyncio.wait((self._waiting,), timeout=max(0.0, self._remaining()) + GRACE)
                self.attempts.end(DeadlineExceeded("no answer in time"))
        finally:
            hedger.calls.discard(self)
            if self._timer is not None:
                self._timer.cancel()
            self.attempts.end()  # cancelled
            self.finish()
            if self._tasks:
                await asyncio.wait(self._tasks)
        if self.attempts.error is not None:
            raise self.attempts.error
        assert self._result is not None
        return self._result

    def look(self) -> None:
        """It may be time for another attempt."""
        self._go_on(self.attempts.on_time(self._hedger.loop.time()))

    def finish(self) -> None:
        """Ends the attempts that nobody waits for, and the caller's wait; once it is over."""
        for attempt in self.attempts.losers:
            call = self._calls.get(attempt.number)
            if call is not None:
                cancel(call)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _go_on(self, begun: Sequence[Attempt]) -> None:
        self._spawn(begun)
        if self.attempts.over:
            self.finish()
        else:
            self._set_timer()

    def _set_timer(self) -> None:
        wake = self.attempts.wake
        if wake == self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = wake
        self._timer = None if wake == math.inf else self._hedger.loop.call_at(wake, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._wakes_at = math.inf
        self.look()

    # ---------------------------------------------------------------- an attempt

    def _spawn(self, begun: Sequence[Attempt]) -> None:
        """Makes attempts in tasks of their own."""
        for attempt in begun:
            if attempt.is_probe:
                self._hedger.keep(self._make_beside(attempt))
            else:
                task = self._hedger.loop.create_task(self._make_beside(attempt))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _make_beside(self, attempt: Attempt) -> None:
        if self.attempts.over:
            self.attempts.unsent(attempt)
            return
        begun = await self._make(attempt)
        self._go_on(begun)

    async def _make(self, attempt: Attempt) -> list[Attempt]:
        """Makes an attempt and waits for its end; returns those to make then."""
        lanes = self._hedger.lanes[attempt.target]
        lane = lanes.acquire()
        said: Trailing = {}
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        try:
            call = getattr(lane.stub, self._method.name)(
                self._payload,
                timeout=self._remaining(),
                metadata=(*self._sent, *attempt.headers),
            )
            self._calls[attempt.number] = call
            reply = await call
            said = dict(await call.trailing_metadata() or ())
        except grpc.aio.AioRpcError as error:
            said = dict(error.trailing_metadata() or ())
            failure = from_rpc(error, self._hedger.regions.targets[attempt.target].name)
            failure.__cause__ = error
            return self._failed(attempt, failure, said)
        except asyncio.CancelledError:
            if task.cancelling() > before:
                raise
            # Its call was: it has lost, or its channel was closed.
            self.attempts.end(Cancelled("the client was closed while the call was under way"))
            return []
        finally:
            lanes.release(lane, said)
        return self._answered(attempt, reply, said)

    def _answered(self, attempt: Attempt, reply: bytes, said: Trailing) -> list[Attempt]:
        name = self._hedger.regions.targets[attempt.target].name
        try:
            result = self._method.read(reply, said, self._asked, attempt.kind, name)
        except InvalidReply as error:
            return self._failed(attempt, error, said)
        if self.attempts.answered(attempt, self._hedger.loop.time(), said):
            self._result = result
        return []

    def _failed(self, attempt: Attempt, error: HedgerowError, said: Trailing) -> list[Attempt]:
        begun = self.attempts.failed(attempt, self._hedger.loop.time(), error, said)
        if not self.attempts.over:
            self._set_timer()
        return begun

    def _remaining(self) -> float:
        return self._deadline - self._hedger.loop.time()
