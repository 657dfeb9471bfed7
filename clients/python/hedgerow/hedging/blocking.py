"""Runs the attempts of requests for the blocking client.

Each request runs in its caller's thread, which makes the first attempt and blocks in it, as without backups.
Attempts beside it are gRPC futures, begun by the timer's thread and ended in gRPC's own; whoever brings the
answer cancels the others, and so wakes the caller. One lock guards all decisions; no call is made under it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Generic

import grpc
from hedgerow_protos import open_inference_pb2 as pb
from hedgerow_protos.breaker import Breaker, State

from hedgerow.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    HedgerowError,
    InvalidReply,
    from_rpc,
)
from hedgerow.hedging.attempt import Attempt
from hedgerow.hedging.attempts import Attempts
from hedgerow.hedging.direct import Cancel, DirectCall
from hedgerow.hedging.method import ASK_TIMEOUT, AWAY, Asked, BytesStub, Method, ResultT, news_of, traced
from hedgerow.hedging.regions import Regions
from hedgerow.hedging.settings import Hedging
from hedgerow.hedging.target import Trailing
from hedgerow.hedging.timer import Timer
from hedgerow.infer_request import Headers
from hedgerow.lanes import Lane, Lanes

log = logging.getLogger(__name__)

clock = time.monotonic

#: Seconds after the deadline in which gRPC should have ended all attempts.
GRACE = 0.2


def direct_stub(channel: grpc.Channel) -> BytesStub:
    """The methods of a channel, for its lane."""
    return BytesStub(channel, DirectCall)


class Hedger:
    """Owns: the requests under way and their timer. Threads share it.

    Args:
        targets: Addresses, the primary's first.
        lanes: Connections to each, made with `direct_stub`.
        hedge: As for the client.
        retries: As for the client.
        headers: Of the questions to backups.
    """

    def __init__(
        self,
        targets: Sequence[str],
        lanes: Sequence[Lanes[grpc.Channel]],
        *,
        hedge: Hedging | None,
        retries: int,
        headers: Headers,
    ) -> None:
        self.lock = threading.Lock()
        self.regions = Regions(targets, hedge, retries=retries, clock=clock, changed=self._take_note)
        self.lanes = tuple(lanes)
        self.timer: Timer[_Call[Any]] = Timer(self.lock, self._look, clock)
        #: Under way.
        self.calls: set[_Call[Any]] = set()
        self.is_closed = False
        self._headers = headers
        self._news: list[str] = []
        #: Targets that are said to be down.
        self._down: set[str] = set()
        #: A breaker has opened: some requests may be waiting for its target only.
        self._looks_at_all = False

    def __repr__(self) -> str:
        return f"<Hedger {len(self.calls)} calls, {self.regions!r}>"

    def call(
        self, method: Method[ResultT], asked: Asked, payload: bytes, seconds: float, sent: Headers
    ) -> ResultT:
        """Brings the answer to a request from whichever target.

        Args:
            method: Which.
            asked: The model, and the version if one is asked.
            payload: The request.
            seconds: For all attempts together.
            sent: Its metadata.

        Raises:
            HedgerowError: Nobody has a good answer.
        """
        return _Call(self, method, asked, payload, seconds, traced(sent)).run()

    def close(self) -> None:
        """Ends the requests under way with `Cancelled`; the lanes are closed by their owner."""
        with self.lock:
            self.is_closed = True
            self.timer.stop()
            calls = list(self.calls)
            for call in calls:
                call.attempts.end(Cancelled("the client was closed while the call was under way"))
        for call in calls:
            call.finish()

    def ask(self) -> None:
        """Asks the backups that are due whether they are ready, once on each connection."""
        with self.lock:
            due = self.regions.to_ask(clock())
        for index in due:
            for _ in self.lanes[index].all:
                self._ask(index)

    def _ask(self, index: int) -> None:
        lanes = self.lanes[index]
        lane = lanes.acquire()
        try:
            future = lane.stub.ServerReady.future(
                pb.ServerReadyRequest(), timeout=ASK_TIMEOUT, metadata=self._headers
            )
        except ValueError:  # closed
            lanes.release(lane)
            return
        future.add_done_callback(partial(self._hear, index, lane))

    def _hear(self, index: int, lane: Lane[grpc.Channel], future: Any) -> None:
        said: Trailing = dict(future.trailing_metadata() or ())
        self.lanes[index].release(lane, said)
        code = future.code()
        ready: bool | None = None
        if code is grpc.StatusCode.OK:
            ready = future.result().ready
        elif code in AWAY:
            ready = False
        with self.lock:
            self.regions.heard(clock(), index, said, ready=ready)

    def _look(self, due: Sequence[_Call[Any]]) -> None:
        with self.lock:
            news, self._news = self._news, []
            calls = list(self.calls) if self._looks_at_all else due
            self._looks_at_all = False
        for line in news:
            log.warning(line)
        for call in calls:
            call.look()

    def _take_note(self, breaker: Breaker) -> None:
        if breaker.state is State.OPEN:
            self._looks_at_all = True
        line = news_of(breaker, self._down)
        if line:
            self._news.append(line)
        self.timer.look_now()


class _Call(Generic[ResultT]):
    """One request: its attempts, and what their calls are cancelled by."""

    _result: ResultT | None = None
    #: Set when it is over, if the caller waits for nothing else.
    _waiting: threading.Event | None = None
    #: For the timer.
    look_at = 0.0

    def __init__(
        self,
        hedger: Hedger,
        method: Method[ResultT],
        asked: Asked,
        payload: bytes,
        seconds: float,
        sent: Headers,
    ) -> None:
        now = clock()
        self._hedger = hedger
        self._method = method
        self._payload = payload
        self._sent = sent
        self._asked = asked
        self._deadline = now + seconds
        self._cancels: dict[int, Cancel] = {}
        self.attempts = Attempts(hedger.regions, asked[0], now, seconds)

    @property
    def over(self) -> bool:
        """For the timer."""
        return self.attempts.over

    def run(self) -> ResultT:
        """Makes the attempts; in the caller's thread."""
        hedger = self._hedger
        now = clock()
        with hedger.lock:
            if hedger.is_closed:
                raise FailedPrecondition("the client is closed: make another")
            begun = self.attempts.start(now)
            hedger.calls.add(self)
            hedger.timer.add(self, self.attempts.wake)
            asks = now >= hedger.regions.ask_at
        try:
            if asks:
                hedger.ask()
            while begun:
                here, *beside = begun
                for attempt in beside:
                    self._send(attempt)
                begun = self._make(here)
            self._wait()
        finally:
            hedger.calls.discard(self)
            if not self.attempts.over:  # interrupted
                with hedger.lock:
                    self.attempts.end()
            self.finish()
        if self.attempts.error is not None:
            raise self.attempts.error
        assert self._result is not None
        return self._result

    def look(self) -> None:
        """It may be time for another attempt; in the timer's thread."""
        with self._hedger.lock:
            begun = self.attempts.on_time(clock())
            self._set_timer()
        self._go_on(begun)

    def finish(self) -> None:
        """Ends the attempts that nobody waits for, and the caller's wait; once it is over."""
        for attempt in self.attempts.losers:
            cancel = self._cancels.get(attempt.number)
            if cancel is not None:
                cancel()
        if self._waiting is not None:
            self._waiting.set()
        self._payload = b""  # the timer may still hold this object for a while

    def _wait(self) -> None:
        """Waits for attempts in the background."""
        if self.attempts.over:
            return
        with self._hedger.lock:
            if self.attempts.over:
                return
            self._waiting = threading.Event()
        # They end with the deadline, a moment later at most.
        self._waiting.wait(max(0.0, self._remaining()) + GRACE)
        with self._hedger.lock:
            self.attempts.end(DeadlineExceeded("no answer in time"))

    def _go_on(self, begun: Sequence[Attempt]) -> None:
        for attempt in begun:
            self._send(attempt)
        if self.attempts.over:
            self.finish()

    def _set_timer(self) -> None:
        wake = self.attempts.wake
        if not self.attempts.over and wake != self.look_at:
            self._hedger.timer.add(self, wake)

    # ---------------------------------------------------------------- an attempt

    def _make(self, attempt: Attempt) -> list[Attempt]:
        """Makes an attempt and waits for its end; returns those to make then."""
        lanes = self._hedger.lanes[attempt.target]
        lane = lanes.acquire()
        said: Trailing = {}
        try:
            method: DirectCall = getattr(lane.stub, self._method.name)
            reply, call = method.call(
                self._payload,
                self._remaining(),
                (*self._sent, *attempt.headers),
                partial(self._began, attempt),
            )
            said = dict(call.trailing_metadata() or ())
        except grpc.RpcError as error:
            return self._failed(attempt, error)
        except ValueError as error:
            return self._unsent(attempt, error)
        finally:
            lanes.release(lane, said)
        return self._answered(attempt, reply, said)

    def _send(self, attempt: Attempt) -> None:
        """Makes an attempt in the background."""
        payload = self._payload
        if self.attempts.over:
            self._unsent(attempt, None)
            return
        lanes = self._hedger.lanes[attempt.target]
        lane = lanes.acquire()
        try:
            method: DirectCall = getattr(lane.stub, self._method.name)
            future = method.future(payload, self._remaining(), (*self._sent, *attempt.headers))
        except ValueError as error:
            lanes.release(lane)
            self._unsent(attempt, error)
            return
        self._began(attempt, future.cancel)
        future.add_done_callback(partial(self._ended, attempt, lane))

    def _began(self, attempt: Attempt, cancel: Cancel) -> None:
        self._cancels[attempt.number] = cancel
        # Whoever ended the request meanwhile may have come too early to see how this is cancelled.
        if self.attempts.over and attempt in self.attempts.losers:
            cancel()

    def _ended(self, attempt: Attempt, lane: Lane[grpc.Channel], future: Any) -> None:
        """An attempt in the background has ended; in gRPC's thread."""
        said: Trailing = {}
        begun: list[Attempt] = []
        try:
            reply = future.result()
            said = dict(future.trailing_metadata() or ())
        except grpc.FutureCancelledError:
            pass
        except grpc.RpcError as error:
            begun = self._failed(attempt, error)
        else:
            begun = self._answered(attempt, reply, said)
        self._hedger.lanes[attempt.target].release(lane, said)
        self._go_on(begun)

    def _answered(self, attempt: Attempt, reply: bytes, said: Trailing) -> list[Attempt]:
        name = self._hedger.regions.targets[attempt.target].name
        try:
            result = self._method.read(reply, said, self._asked, attempt.kind, name)
        except InvalidReply as error:
            return self._note_failure(attempt, error, said)
        with self._hedger.lock:
            is_first = self.attempts.answered(attempt, clock(), said)
            if is_first:
                self._result = result
        return []

    def _failed(self, attempt: Attempt, error: grpc.RpcError) -> list[Attempt]:
        failure = from_rpc(error, self._hedger.regions.targets[attempt.target].name)
        failure.__cause__ = error
        call: Any = error
        return self._note_failure(attempt, failure, dict(call.trailing_metadata() or ()))

    def _note_failure(self, attempt: Attempt, error: HedgerowError, said: Trailing) -> list[Attempt]:
        with self._hedger.lock:
            begun = self.attempts.failed(attempt, clock(), error, said)
            self._set_timer()
        return begun

    def _unsent(self, attempt: Attempt, error: Exception | None) -> list[Attempt]:
        cancelled = Cancelled("the client was closed while a call began")
        cancelled.__cause__ = error
        with self._hedger.lock:
            self.attempts.unsent(attempt, cancelled)
        return []

    def _remaining(self) -> float:
        return self._deadline - clock()
