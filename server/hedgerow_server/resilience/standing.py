"""How a backup region fares: a plain object without I/O, told by whoever talks to the backup.

Two things are told apart. What the backup as a whole does (it cannot be reached, says nothing, or speaks
something else) counts in its circuit breaker. What a server that lives says of one model there (it has
none, or it is in quarantine) keeps attempts for this model away for a moment, and no others: else a model
that is broken in both regions, or one caller's bad requests, would take hedging from all.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
from hedgerow_protos.breaker import Breaker, Policy, State, Token
from hedgerow_protos.hedging import LOAD, PUSHBACKS, REGION, ROOM, read_load, read_pushback

log = logging.getLogger(__name__)

#: An attempt that takes so much longer than the median at this backup is slow, but none below a second.
SLOW_TIMES, SLOW_AT_LEAST = 10.0, 1.0
#: A model that a backup does not have is asked for again after so many seconds.
MISSING_SECONDS = 5.0
#: What the backup said of its load counts for so long.
LOAD_SECONDS = 5.0
#: Models whose latency at a backup is remembered, and models and versions that it does not have.
MOST_MODELS = 1024

#: Statuses that say something about the backup, if no server of ours gave them; others are of the request.
_ITS_FAULT = frozenset((
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.CANCELLED,  # by its server, as it ends
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Heard:
    """What stood behind a reply: whether a server that knows of attempts gave it, and asked for a pause."""

    spoke: bool = False
    pushed_back: bool = False


class Standing:
    """Holds: whether a backup wants and can take attempts, from attempts and from probes.

    Args:
        address: host:port.
        probe_seconds: Between probes.
        clock: Seconds, monotonic.
    """

    def __init__(self, address: str, *, probe_seconds: float, clock: Callable[[], float]) -> None:
        self.address = address
        #: Where it is, as it says itself; until then its address.
        self.region = address
        self.breaker = Breaker(f"backup {address}", _policy(SLOW_AT_LEAST), clock, self._say)
        #: It did not say that it is not ready: that it drains, or its models are not loaded.
        self.is_ready = True
        self._clock = clock
        self._probe_seconds = probe_seconds
        self._pushed_back_until = -math.inf
        self._utilization = 0.0
        self._utilization_at = -math.inf
        # Models that it does not have, by name and version asked for, and until when that is believed.
        self._missing: dict[tuple[str, str], float] = {}
        self._latencies: dict[str, deque[float]] = {}

    def __repr__(self) -> str:
        return f"<Standing of {self.address}: {self.breaker.state.name.lower()}>"

    def obstacle(self, model: str, version: str, remaining: float) -> str:
        """Why an attempt should not go there now; empty if it may.

        Args:
            model: That it is for.
            version: That must answer; empty: any.
            remaining: Seconds until the request's deadline.
        """
        now = self._clock()
        if self.breaker.refuses():
            return "breaker"
        if not self.is_ready:
            return "not_ready"
        if now < self._pushed_back_until:
            return "pushback"
        if self._missing and now < self._missing.get((model, version), -math.inf):
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

    # ------------------------------------------------- what became of attempts

    def hear(self, trailing: Iterable[tuple[str, str | bytes]]) -> Heard:
        """Takes note of what the backup says of itself behind a reply."""
        spoke = pushed_back = False
        for key, value in trailing:
            if key in PUSHBACKS:
                seconds = read_pushback(value) or 0.0
                # "Never" is about this request; another may be tried after a moment.
                self._push_back(self._probe_seconds if seconds == math.inf else seconds)
                pushed_back = True
            elif key == LOAD:
                said = read_load(value)
                if said is not None:
                    self._utilization, self._utilization_at = said, self._clock()
            elif key == REGION:
                self.region = str(value)[:63]
                spoke = True
        return Heard(spoke, pushed_back)

    def answered(self, token: Token, model: str) -> None:
        """An attempt brought an answer that is used."""
        self._observe(model, self._clock() - token.started)
        token.success()

    def superseded(self, token: Token, model: str) -> None:
        """An attempt was cancelled. It would have taken longer than it did, which counts (as with Finagle).

        Else a backup that is slower than what is here would be known by its few quick answers alone.
        """
        took = self._clock() - token.started
        if took > self.median(model):
            self._observe(model, took)
        token.ignore()

    def refused(
        self, token: Token, model: str, version: str, code: grpc.StatusCode, reason: str, heard: Heard
    ) -> None:
        """An attempt ended with a status.

        Args:
            token: Of the attempt.
            model: That it was for.
            version: That it asked for.
            code: The status.
            reason: In words.
            heard: What stood behind it.
        """
        took = self._clock() - token.started
        if heard.pushed_back:
            pass  # It refuses, so it is well.
        elif code is grpc.StatusCode.NOT_FOUND:
            self._note_missing(model, version, MISSING_SECONDS)
        elif code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._push_back(self._probe_seconds)
        elif code is grpc.StatusCode.UNAVAILABLE and heard.spoke:
            # In quarantine, say. If it drains, the next probe tells.
            self._note_missing(model, version, self._probe_seconds)
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            # A caller with little time says nothing about the backup.
            if took > self.breaker.policy.slow_after:
                token.failure(reason)
        elif code in _ITS_FAULT and not heard.spoke:
            token.failure(reason)
        token.ignore()

    def misfit(self, token: Token, model: str, version: str) -> None:
        """A reply does not fit what is here: the versions differ. Another model's may fit."""
        self._note_missing(model, version, MISSING_SECONDS)
        token.ignore()

    def probed(self, token: Token, *, is_ready: bool) -> None:
        """A probe was answered."""
        if self.is_ready is not is_ready:
            log.info("backup %s says it is %s", self.address, "ready" if is_ready else "not ready")
            # Perhaps it was started again, with other models.
            self._missing.clear()
        self.is_ready = is_ready
        token.success()

    def follow_latency(self) -> None:
        """Has the breaker call slow what is slow beside the attempts so far."""
        medians = [statistics.median(latencies) for latencies in self._latencies.values()]
        self.breaker.policy = _policy(max(SLOW_AT_LEAST, SLOW_TIMES * max(medians, default=0.0)))

    def _push_back(self, seconds: float) -> None:
        self._pushed_back_until = max(self._pushed_back_until, self._clock() + seconds)

    def _note_missing(self, model: str, version: str, seconds: float) -> None:
        if len(self._missing) >= MOST_MODELS:
            self._missing.clear()
        self._missing[model, version] = self._clock() + seconds

    def _observe(self, model: str, seconds: float) -> None:
        latencies = self._latencies.get(model)
        if latencies is None:
            if len(self._latencies) >= MOST_MODELS:
                self._latencies.clear()
            latencies = self._latencies[model] = deque(maxlen=65)
        latencies.append(seconds)

    def _say(self, breaker: Breaker) -> None:
        """Once when it goes and once when it is back, not for each probe between."""
        if breaker.state is State.OPEN and not breaker.reopened:
            log.warning("%s: not used until it answers probes again: %s", breaker.name, breaker.reason)
        elif breaker.state is State.CLOSED:
            log.warning("%s: answers again", breaker.name)

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


def _policy(slow_after: float) -> Policy:
    return Policy(window=5.0, minimum=3, slow_after=slow_after, open_for=1.0, probes=2)
