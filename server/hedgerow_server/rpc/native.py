"""The native transport: HTTP/2 and gRPC in Rust, outside the GIL.

ModelInfer calls come out of `NativeGrpcFront` in whole batches. A thread receives them and hands them to
the event loop once a batch. While they come thick and fast, and each batch has been answered
when its turn ends, the loop receives them itself: the change of thread costs more than the answer
then. Every other method goes to a grpcio server behind it, on a Unix socket. Plaintext only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc
from hedgerow_protos.hedging import PUSHBACK
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from hedgerow_server.answer import Answerer
from hedgerow_server.call import Call

if TYPE_CHECKING:
    from pygrpc_native._native import DetailedEvent

log = logging.getLogger(__name__)

INFER = "/inference.GRPCInferenceService/ModelInfer"

#: Events in one trip out of the front at most.
BATCH = 256
#: Events that wait for the loop at most; the receiving thread stops beyond, and
#: the front holds what HTTP/2's flow control lets through.
BACKLOG = 4096
#: Calls answered in one turn of the loop, and up to a batch more; then everything else gets its turn.
TURN = 512
#: Batches in a row, each answered in its turn and received so soon after the one before (nanoseconds), after
#: which the loop receives by itself.
STREAK = 32
SOON_NS = 500_000
#: How long the loop waits for the next batch then, in milliseconds. Whatever else it has to do waits
#: too, so it waits only while no call is under way, and when nothing has come it is the thread's turn again.
LINGER_MS = 1


class NativeTransport:
    """Owns the front, the thread that receives from it, and the calls under way.

    Args:
        answerer: answers the calls.
        address: host and port to listen on; port 0 for a free one.
        fallback: path of the Unix socket of the grpcio server for other methods.
        max_metadata_bytes: calls with more metadata are refused.
        said: trailing metadata of every reply.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        answerer: Answerer,
        address: str,
        fallback: str,
        *,
        max_metadata_bytes: int = 16384,
        said: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._answerer = answerer
        self._said = said
        self._front = NativeGrpcFront(
            address,
            [(INFER, False)],
            io_threads=1,
            call_details=True,
            keepalive_time_ms=60_000,
            max_metadata_size=max_metadata_bytes,
            reuse_port=True,
        )
        self._front.set_fallback(fallback)
        self._calls: dict[int, Call] = {}
        # When events were received (perf_counter_ns), the events, and whether the thread stops after them.
        self._inbox: deque[tuple[int, list[DetailedEvent], bool]] = deque()
        # Wakes the loop. Python gives the GIL back while it writes to it, so the loop begins at
        # once; call_soon_threadsafe keeps the GIL, and the loop would wake only to wait for it.
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._rung = False
        # Set unless the inbox is full.
        self._room = threading.Event()
        self._room.set()
        # One of the two receives: the loop after a streak of batches, the thread once it may go on.
        self._streak = 0
        self._last_ns = 0
        self._go_on = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._front.bound_port

    def start(self) -> None:
        """Begins to accept connections."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._bell, self._take)
        self._front.start()
        self._thread = threading.Thread(target=self._receive, name="native-receive", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        front, inbox = self._front, self._inbox
        while (events := front.recv_batch_details(BATCH)) is not None:
            stops = self._streak >= STREAK
            if stops:
                # Before the loop can take this batch, with which it learns that it has to receive the next.
                self._go_on.clear()
            inbox.append((time.perf_counter_ns(), events, stops))
            if not self._rung:
                self._rung = True
                os.eventfd_write(self._bell, 1)
            if stops:
                self._go_on.wait()
            elif len(inbox) >= BACKLOG // BATCH:
                self._room.clear()
                if len(inbox) >= BACKLOG // BATCH:
                    self._room.wait()

    def _take(self) -> None:
        now = time.perf_counter_ns()
        inbox = self._inbox
        arrived: list[Call] = []
        cancelled: list[Call] = []
        received = 0
        while inbox and len(arrived) < TURN:
            received, events, stopped = inbox.popleft()
            if stopped and self._loop is not None:
                # In the next turn; asked for first, so that somebody receives whatever becomes of these.
                self._loop.call_soon(self._linger)
            # The front says what was left of a call's time when it handed the call over; here it may
            # have waited until the loop had time.
            self._sort(events, received, (now - received) * 1e-9, arrived, cancelled)
        if not self._room.is_set():
            self._room.set()
        self._answer(arrived, cancelled)
        # If nothing was there, the bell rang for what the turn before has taken as well.
        if received:
            if self._answerer.in_flight or received - self._last_ns > SOON_NS:
                self._streak = 0
            else:
                self._streak += 1
            self._last_ns = received
        # Last, because it gives the GIL away; and in this order: who appends from here on rings.
        os.eventfd_read(self._bell)
        self._rung = False
        if inbox:
            self._rung = True
            os.eventfd_write(self._bell, 1)

    def _linger(self) -> None:
        """Receives in place of the thread, in every turn of the loop, until it would wait for nothing."""
        assert self._loop is not None
        if not self._answerer.in_flight:
            events = self._front.recv_batch_details(BATCH, LINGER_MS)
            if events:
                arrived: list[Call] = []
                cancelled: list[Call] = []
                # First, so that it goes on whatever becomes of these.
                self._loop.call_soon(self._linger)
                self._sort(events, time.perf_counter_ns(), 0.0, arrived, cancelled)
                self._answer(arrived, cancelled)
                return
        self._streak = 0
        self._go_on.set()

    def _sort(
        self,
        events: list[DetailedEvent],
        received: int,
        waited: float,
        arrived: list[Call],
        cancelled: list[Call],
    ) -> None:
        calls = self._calls
        for kind, token, _, payload, _, details in events:
            if kind == EVENT_CANCEL:
                gone = calls.pop(token, None)
                if gone is not None:
                    cancelled.append(gone)
                continue
            # Every call has both: call_details is on.
            assert payload is not None
            assert details is not None
            metadata, _, remaining = details
            if remaining is not None:
                remaining -= waited
            call = Call(payload, metadata, remaining, self, token, received)
            calls[token] = call
            arrived.append(call)

    def _answer(self, arrived: list[Call], cancelled: list[Call]) -> None:
        if cancelled:
            new = set(arrived)
            for call in cancelled:
                if call in new:
                    call.ended = True
                else:
                    self._answerer.cancel(call)
        self._answerer.answer(arrived)

    # What the request path calls, the sink of every call.

    def respond(self, call: Call, payload: bytes, trailing: list[tuple[str, str | bytes]]) -> None:
        """Gives the caller an encoded ModelInferResponse."""
        self._calls.pop(call.token, None)
        if self._said:
            trailing = [*trailing, *self._said]
        self._front.respond(call.token, payload, None, trailing)

    def fail(
        self, call: Call, code: grpc.StatusCode, message: str, trailing: list[tuple[str, str | bytes]]
    ) -> None:
        """Ends the call with a status."""
        self._calls.pop(call.token, None)
        # The front takes no key of gRPC's own but that of the details; this one goes under another name too.
        sent = [pair for pair in trailing if pair[0] != PUSHBACK]
        self._front.fail(call.token, code.value[0], message, [*sent, *self._said])

    async def close(self) -> None:
        """Closes every connection."""
        await asyncio.get_running_loop().run_in_executor(None, self._front.close)
        if self._thread is not None:
            # It may be waiting for room, or for its turn.
            self._room.set()
            self._streak = 0
            self._go_on.set()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._thread.join, 5.0)
            loop.remove_reader(self._bell)
        if self._thread is None or not self._thread.is_alive():
            os.close(self._bell)
