"""One ModelInfer request on its way through the server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import grpc
import msgspec
from hedgerow_protos.hedging import (
    ATTEMPT,
    OWN_PREVIOUS_ATTEMPTS,
    PREVIOUS_ATTEMPTS,
    read_previous_attempts,
)

from hedgerow_server.engine.work import Part

if TYPE_CHECKING:
    from hedgerow_protos.breaker import Token
    from hedgerow_protos.hedging import Race

    from hedgerow_server.resilience.watch import Line
    from hedgerow_server.routing.table import Choice
    from hedgerow_server.rpc.codec import TensorCodec

Metadata = Sequence[tuple[str, str | bytes]]

#: What a caller names itself with, in order of trust.
ROUTE_KEY = "hedgerow-route-key"


class Sink(Protocol):
    """Where a transport wants the answer to a call; exactly one of the two, once."""

    def respond(self, call: Call, payload: bytes, trailing: list[tuple[str, str | bytes]]) -> None:
        """Gives the caller an encoded ModelInferResponse."""

    def fail(
        self, call: Call, code: grpc.StatusCode, message: str, trailing: list[tuple[str, str | bytes]]
    ) -> None:
        """Ends the call with a status."""


class Call:
    """What is known of a request; each stage of `answer.py` adds its part.

    Args:
        payload: an encoded ModelInferRequest.
        metadata: as received.
        remaining: seconds that the caller gives; None if it named no deadline.
        sink: where the answer goes.
        token: what the sink knows the call by.
        received_ns: perf_counter_ns at arrival.
    """

    __slots__ = (
        "asked_version",
        "attempts",
        "choice",
        "codec",
        "deadline",
        "ended",
        "features",
        "join_ns",
        "joining_ns",
        "kind",
        "line",
        "metadata",
        "model_name",
        "outcome",
        "outputs",
        "parts",
        "payload",
        "priority",
        "probe",
        "queued_ns",
        "race",
        "received_ns",
        "remaining",
        "request_id",
        "rows",
        "rule",
        "run_ns",
        "shapes",
        "sink",
        "size",
        "started_ns",
        "token",
        "trace",
    )

    def __init__(
        self,
        payload: bytes,
        metadata: Metadata,
        remaining: float | None,
        sink: Sink,
        token: int,
        received_ns: int,
    ) -> None:
        self.payload = payload
        #: Bytes of the message.
        self.size = len(payload)
        self.metadata = metadata
        self.remaining = remaining
        self.sink = sink
        self.token = token
        self.received_ns = received_ns
        #: Answered, refused or cancelled: nobody waits any more.
        self.ended = False
        #: The request's own id, to be given back.
        self.request_id = ""
        self.trace: Trace = NO_TRACE
        #: What the request asks for; no version: whichever is in service.
        self.model_name = ""
        self.asked_version = ""
        #: time.monotonic() at which the caller stops waiting.
        self.deadline = 0.0
        self.choice: Choice | None = None
        #: Reads and writes for what was chosen, also after the table has changed.
        self.codec: TensorCodec | None = None
        # What the engine reads (engine.work.Work).
        self.rows = 0
        self.kind: Hashable | None = None
        self.priority = 0
        self.parts: Sequence[Part] = ()
        self.shapes: Sequence[tuple[int, ...]] = ()
        self.outputs: tuple[int, ...] | None = None
        self.queued_ns = 0
        self.started_ns = 0
        self.run_ns = 0
        #: fresh, stale or default; empty for a request that brought its features.
        self.features = ""
        #: When it began to wait for features (0: it did not), and for how long it did.
        self.joining_ns = 0
        self.join_ns = 0
        #: What answers it: primary, hedge, failover or fallback.
        self.outcome = "primary"
        #: The fallback rules that answered it.
        self.rule = ""
        #: Its attempts here and at backups, once there is more than the one here.
        self.race: Race | None = None
        #: Leave to try a version in quarantine.
        self.probe: Token | None = None
        self.attempts: Sequence[asyncio.Task[bytes]] = ()
        #: Where it waits to be hedged, while it does.
        self.line: Line | None = None

    def __repr__(self) -> str:
        state = (
            "ended"
            if self.ended
            else "running"
            if self.started_ns
            else "joining"
            if self.joining_ns and not self.queued_ns
            else "waiting"
        )
        return f"<Call {self.token} {state} {self.choice}>"


class Trace(msgspec.Struct, gc=False, eq=False):
    """Which trace a request belongs to (W3C Trace Context), and who sent it."""

    trace_id: str
    #: `x-request-id`: the caller's, else the trace id.
    request_id: str
    #: For sticky routing; empty if the caller did not name itself.
    caller: str
    #: What goes back to the caller with every answer.
    trailing: list[tuple[str, str | bytes]]
    #: The traceparent of the caller's span, which attempts elsewhere have as parent too.
    parent: str
    #: How often this request was tried elsewhere before; from one on nothing is tried anywhere else.
    previous_attempts: int = 0
    #: `hedge` or `failover`: another server asks, which has this request as well.
    attempt: str = ""


NO_TRACE = Trace("", "", "", [], "")

_HEX = frozenset("0123456789abcdef")
_LONGEST_ID = 128
_PREVIOUS = frozenset((PREVIOUS_ATTEMPTS, OWN_PREVIOUS_ATTEMPTS))
_READ = _PREVIOUS | {"traceparent", "x-request-id", ROUTE_KEY, ATTEMPT}


def _ids() -> Iterator[tuple[str, str]]:
    """Pairs of a trace id and a span id, random; the digits for many are made at once."""
    while True:
        digits = random.randbytes(24 * 256).hex()  # noqa: S311 - ids, not secrets
        for at in range(0, len(digits), 48):
            yield digits[at : at + 32], digits[at + 32 : at + 48]


_next_ids = _ids().__next__


def read_trace(metadata: Metadata) -> Trace:
    """Reads `traceparent`, `x-request-id`, `hedgerow-route-key` and which attempt it is; malformed is absent.

    On the event loop's thread only.
    """
    trace_id, span_id = _next_ids()
    for key, _ in metadata:
        if key in _READ:
            return _continue_trace(metadata, trace_id, span_id)
    traceparent = f"00-{trace_id}-{span_id}-00"
    trailing: list[tuple[str, str | bytes]] = [("x-request-id", trace_id), ("traceparent", traceparent)]
    return Trace(trace_id, trace_id, "", trailing, traceparent)


def _continue_trace(metadata: Metadata, trace_id: str, span_id: str) -> Trace:
    request_id = caller = attempt = parent = ""
    flags, previous = "00", 0
    for key, value in metadata:
        if not isinstance(value, str):
            continue
        if key == "traceparent":
            if _is_traceparent(value):
                trace_id, flags, parent = value[3:35], value[53:55], value
        elif key == "x-request-id":
            # It goes back in a header, where only printable ASCII may stand.
            if len(value) <= _LONGEST_ID and value.isascii() and value.isprintable():
                request_id = value.strip()
        elif key == ROUTE_KEY and len(value) <= _LONGEST_ID:
            caller = value
        elif key in _PREVIOUS:
            previous = max(previous, read_previous_attempts(value))
        elif key == ATTEMPT:
            attempt = value
    request_id = request_id or trace_id
    traceparent = f"00-{trace_id}-{span_id}-{flags}"
    return Trace(
        trace_id,
        request_id,
        caller,
        [("x-request-id", request_id), ("traceparent", traceparent)],
        parent=parent or traceparent,
        # Whoever says what kind of attempt it is has made another.
        previous_attempts=max(previous, 1 if attempt else 0),
        attempt=attempt,
    )


def _is_traceparent(value: str) -> bool:
    return (
        len(value) == 55
        and value[:3] == "00-"
        and value[35] == value[52] == "-"
        and _HEX.issuperset(value[3:35])
        and _HEX.issuperset(value[36:52])
        and _HEX.issuperset(value[53:])
        and value[3:35] != "0" * 32
        and value[36:52] != "0" * 16
    )
