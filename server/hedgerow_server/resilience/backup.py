"""One backup region: the connection to it, and whether it wants and can take attempts."""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from hedgerow_protos.breaker import Breaker, Policy, State
from hedgerow_protos.hedging import LOAD, PUSHBACK, REGION, ROOM, read_load, read_pushback
from hedgerow_protos.open_inference_pb2 import ServerReadyRequest, ServerReadyResponse

log = logging.getLogger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"
#: An attempt that takes so much longer than the median at this backup is slow, but none below a second.
SLOW_TIMES, SLOW_AT_LEAST = 10.0, 1.0
#: A model that a backup does not have is asked for again after so many seconds.
MISSING_SECONDS = 5.0
#: What the backup said of its load counts for so long.
LOAD_SECONDS = 5.0
#: Models whose latency at a backup is remembered.
MOST_MODELS = 1024

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A peer that vanished without a word is noticed while attempts wait for it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # The hedger decides what is tried again, and where.
    ("grpc.enable_retries", 0),
    # A backup that is back is found by the next probes, not after gRPC's own two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # The regions of one machine must not share a connection's fate.
    ("grpc.use_local_subchannel_pool", 1),
)

#: Statuses that say something about the backup; the others are about the request.
_ITS_FAULT = frozenset((
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
))  # fmt: skip


class AttemptFailed(Exception):
    """A backup gave no answer that can be used; the message is for the log.

    Args:
        message: Why.
        is_its_fault: Whether that says something about the backup, not only about this request.
    """

    def __init__(self, message: str, *, is_its_fault: bool = True) -> None:
        super().__init__(message)
        self.is_its_fault = is_its_fault


@dataclass(frozen=True, slots=True)
class Reply:
    """A backup's answer as it came: an encoded ModelInferResponse, and the region that it says it is."""

    payload: bytes
    region: str


Metadata = Sequence[tuple[str, str | bytes]]
#: Looks at a reply and returns what its caller gets; raises AttemptFailed if it is none.
Accept = Callable[[Reply], bytes]


class Backup:
    """Owns: the channel. Holds: how the backup fares, from attempts and from a probe a second.

    Args:
        address: host:port.
        ca: PEM file of the authorities that its certificate is signed by; None: plaintext.
        probe_seconds: Between probes, and what one gets.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        address: str,
        *,
        ca: Path | None = None,
        probe_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        #: Where it is, as it says itself; until then its address.
        self.region = address
        policy = Policy(window=5.0, minimum=3, slow_after=SLOW_AT_LEAST, open_for=1.0, probes=2)
        self.breaker = Breaker(f"backup {address}", policy, clock, _say)
        #: It said that it is not ready: it drains, or its models are not loaded.
        self.is_ready = True
        self._clock = clock
        self._probe_seconds = probe_seconds
        self._pushed_back_until = -math.inf
        self._utilization = 0.0
        self._utilization_at = -math.inf
        # Models that it does not have, and until when that is believed.
        self._missing: dict[str, float] = {}
        self._latencies: dict[str, deque[float]] = {}
        if ca is None:
            self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates=ca.read_bytes())
            self._channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        # Messages pass as bytes: the request goes as it came.
        self._infer: Any = self._channel.unary_unary(f"{_SERVICE}ModelInfer")
        self._server_ready: Any = self._channel.unary_unary(
            f"{_SERVICE}ServerReady",
            request_serializer=ServerReadyRequest.SerializeToString,
            response_deserializer=ServerReadyResponse.FromString,
        )

    def __repr__(self) -> str:
        return f"<Backup {self.address} {self.breaker.state.name.lower()}>"

    def obstacle(self, model: str, remaining: float) -> str:
        """Why an attempt should not go there now; empty if it may.

        Args:
            model: That it is for.
            remaining: Seconds until the request's deadline.
        """
        now = self._clock()
        if (
            self.breaker.check() is State.OPEN
            and self.breaker.seconds_in_state < self.breaker.policy.open_for
        ):
            return "breaker"
        if not self.is_ready:
            return "not_ready"
        if now < self._pushed_back_until:
            return "pushback"
        if self._missing and now < self._missing.get(model, -math.inf):
            return "no_model"
        if remaining <= self.median(model):
            return "no_time"
        return ""

    def has_room(self) -> bool | None:
        """Whether it said lately that it can take more; None if it said nothing of it."""
        if self._clock() >= self._utilization_at + LOAD_SECONDS:
            return None
        return self._utilization < ROOM

    def median(self, model: str) -> float:
        """Seconds that half of the attempts for a model took at most; 0 without one."""
        latencies = self._latencies.get(model)
        return statistics.median(latencies) if latencies else 0.0

    async def infer(
        self, model: str, payload: bytes, metadata: Metadata, remaining: float, accept: Accept
    ) -> bytes:
        """Makes one attempt; when it is cancelled, the call at the backup is.

        Args:
            model: That it is for.
            payload: An encoded ModelInferRequest.
            metadata: Of the attempt.
            remaining: Seconds until the deadline, which the backup sees.
            accept: Judges the reply.

        Returns:
            What `accept` made of it.

        Raises:
            AttemptFailed: No answer, a refusal, or none that is acceptable.
        """
        token = self.breaker.acquire()
        if token is None:
            raise AttemptFailed(f"{self.breaker!r}")
        began = self._clock()
        try:
            call = self._infer(payload, timeout=remaining, metadata=metadata)
            raw = await call
            self._hear(await call.trailing_metadata() or ())
            answer = accept(Reply(raw, self.region))
        except grpc.aio.AioRpcError as error:
            self._hear(error.trailing_metadata() or ())
            reason = f"{error.code().name}: {error.details()}"
            if self._clock() < self._pushed_back_until:
                pass  # It refuses, so it is well.
            elif error.code() is grpc.StatusCode.NOT_FOUND:
                self._note_missing(model)
            elif error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._push_back(self._probe_seconds)
            elif error.code() in _ITS_FAULT:
                token.failure(reason)
            raise AttemptFailed(reason) from None
        except AttemptFailed as error:
            if error.is_its_fault:
                token.failure(str(error))
            raise
        else:
            token.success()
            self._observe(model, self._clock() - began)
            return answer
        finally:
            token.ignore()  # where it says nothing: cancelled, or the request's own fault

    def _push_back(self, seconds: float) -> None:
        self._pushed_back_until = max(self._pushed_back_until, self._clock() + seconds)

    def _hear(self, trailing: Any) -> None:
        """Takes note of what the backup says of itself behind each reply."""
        for key, value in trailing:
            if key == PUSHBACK:
                seconds = read_pushback(value) or 0.0
                # "Never" is about this request; another may be tried after a moment.
                self._push_back(self._probe_seconds if seconds == math.inf else seconds)
            elif key == LOAD:
                said = read_load(value)
                if said is not None:
                    self._utilization, self._utilization_at = said, self._clock()
            elif key == REGION:
                self.region = str(value)[:63]

    def _note_missing(self, model: str) -> None:
        if len(self._missing) >= MOST_MODELS:
            self._missing.clear()
        self._missing[model] = self._clock() + MISSING_SECONDS

    def _observe(self, model: str, seconds: float) -> None:
        latencies = self._latencies.get(model)
        if latencies is None:
            if len(self._latencies) >= MOST_MODELS:
                self._latencies.clear()
            latencies = self._latencies[model] = deque(maxlen=65)
        latencies.append(seconds)

    def slow_after(self) -> float:
        """Seconds above which an attempt counts as slow."""
        medians = [statistics.median(latencies) for latencies in self._latencies.values()]
        return max(SLOW_AT_LEAST, SLOW_TIMES * max(medians, default=0.0))

    async def follow(self) -> None:
        """Asks the backup once a second whether it is ready, until cancelled.

        So its breaker closes again without a request for a probe, and its load is known before it is needed.
        """
        while True:
            await self.probe()
            await asyncio.sleep(self._probe_seconds)

    async def probe(self) -> None:
        """Asks once."""
        self.breaker.policy = Policy(
            window=5.0, minimum=3, slow_after=self.slow_after(), open_for=1.0, probes=2
        )
        token = self.breaker.acquire()
        if token is None:
            return
        try:
            call = self._server_ready(ServerReadyRequest(), timeout=self._probe_seconds)
            reply = await call
            self._hear(await call.trailing_metadata() or ())
            if self.is_ready is not reply.ready:
                log.info("backup %s says it is %s", self.address, "ready" if reply.ready else "not ready")
            self.is_ready = reply.ready
            token.success()
        except grpc.aio.AioRpcError as error:
            token.failure(f"{error.code().name}: {error.details()}")
        finally:
            token.ignore()

    def status(self) -> dict[str, object]:
        """How it fares, for /health/dependencies."""
        breaker = self.breaker
        return {
            "state": breaker.state.name.lower(),
            "since_seconds": round(breaker.seconds_in_state, 3),
            "trips": breaker.trips,
            "region": self.region,
            "ready": self.is_ready,
            "utilization": round(self._utilization, 3),
            **({"reason": breaker.reason} if breaker.reason else {}),
        }

    async def close(self) -> None:
        """Ends the connection, and the attempts on it."""
        await self._channel.close()


def _say(breaker: Breaker) -> None:
    if breaker.state is State.OPEN:
        log.warning("%s: not tried for %g s: %s", breaker.name, breaker.policy.open_for, breaker.reason)
    elif breaker.state is State.CLOSED:
        log.warning("%s: answers again", breaker.name)
