"""Who may join a model's queue, and who is refused at the door.

A refusal costs microseconds, an answer that comes too late costs a run. So a request is
refused at once, with the time after which trying again makes sense, if

- as many requests are under way as its class may fill the model's limit with (`ConcurrencyLimit`).
  The classes differ in their shares, so the lowest is refused first: hedges from other regions, then mirrored
  requests (shadow), then the lower priorities, and priority 1 last: what still waits of a lower
  priority even makes room for it (`BatchQueue.displace`); or
- what waits before it, and its own run, take longer than it has.

An idle model takes any request whose time is not over: what is expected of its runs may be out of date, and
somebody has to find out.

Refusal is a value, as in Netflix's concurrency-limits: it is part of the plan, not an error. There is no
token: the request's own count in its model, which it leaves once however it ends, is what is held.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from hedgerow_server.gate.busy import Busy, processors_of_each
from hedgerow_server.gate.concurrency import DEFAULT_BOUNDS, Bounds, ConcurrencyLimit

#: Why a request was shed; the closed set of the metric's label `reason`.
LIMIT, PRIORITY, SHADOW, HEDGE, DEADLINE, BYTES, FEATURES = REASONS = (
    "limit",
    "priority",
    "shadow",
    "hedge",
    "deadline",
    "bytes",
    "features",
)

#: A wait may turn out longer than it looks, by so much: else all that is taken just in time is answered
#: just too late.
WAIT_MARGIN = 1.25

#: Seconds that a refused caller is asked to wait at least; an idle loop takes that for a few hundred others.
SHORTEST_RETRY = 0.01
#: And at most; by then much may have changed.
LONGEST_RETRY = 10.0


class Admitted(Protocol):
    """What is read of a model version."""

    name: str
    in_flight: int
    limit: ConcurrencyLimit


@dataclass(frozen=True, slots=True)
class Class:
    """Requests that are shed together.

    Attributes:
        reason: What a refusal counts as.
        share: Of the limit that must be free for it.
        retries: Whether a refused caller may try again here.
    """

    reason: str
    share: float
    retries: bool = True


#: A hedge's first attempt is still under way elsewhere: nothing is lost with it.
HEDGES = Class(HEDGE, 0.4, retries=False)
#: Nobody waits for the answer.
SHADOWS = Class(SHADOW, 0.5)
ORDINARY = Class(LIMIT, 1.0)
#: What the lowest of several priorities may fill. The steps are wide enough for bursts of the class above:
#: with 0.8 for the lowest, one in twenty of the highest was refused beside as much again of the others.
LOWEST_PRIORITY_SHARE = 0.6


@lru_cache(maxsize=256)
def class_of_priority(priority: int, levels: int) -> Class:
    """The class of Triton's priority 1 (the highest) to `levels`."""
    if priority <= 1 or levels <= 1:
        return ORDINARY
    lower = (min(priority, levels) - 1) / (levels - 1)
    return Class(PRIORITY, 1.0 - lower * (1.0 - LOWEST_PRIORITY_SHARE))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not taken.

    Attributes:
        reason: One of REASONS.
        retry_after: Seconds until trying again makes sense; None: not here.
        message: For the caller.
    """

    reason: str
    retry_after: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a request finds before it.

    Attributes:
        wait: Seconds until its run could begin.
        run: Seconds that its run takes.
    """

    wait: float
    run: float


def backlog(runs_ahead: int, free: float, slots: float, run: float) -> Backlog:
    """Reckons what a request finds before it.

    Args:
        runs_ahead: that what waits before it fills.
        free: runs that can begin now.
        slots: runs of the model that go on at once.
        run: seconds that one takes.
    """
    # In the time of a run one ends in each slot; perhaps all at the end of it.
    behind = runs_ahead + 1 - max(0.0, free)
    return Backlog(math.ceil(max(0.0, behind) / slots) * run, run)


class Admission:
    """Decides who may join a queue. Holds: the models, to know how much is going on in all of them.

    Args:
        bounds: of every model's limit.
        busy: tells how busy the processors are.
        spread: from 0 to 1, at random; keeps refused callers from coming back all at once.
    """

    def __init__(
        self,
        bounds: Bounds = DEFAULT_BOUNDS,
        busy: Busy | None = None,
        *,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._bounds = bounds
        self._busy = busy or Busy(processors_of_each(1))
        self._spread = spread
        self._models: tuple[Admitted, ...] = ()

    def follow(self, models: Iterable[Admitted]) -> None:
        """These are the models that requests may be for from now on."""
        before = self._models
        self._models = tuple(models)
        for model in self._models:
            if model not in before:
                model.limit.bound(self._bounds)

    def full(self, model: Admitted, of: Class) -> Refusal | None:
        """Whether there is no room for a request of a class.

        Args:
            model: that it is for.
            of: its class.

        Returns:
            None if there is room.
        """
        in_flight, limit = model.in_flight, model.limit
        if not in_flight or in_flight < limit.value * of.share:
            return None
        retry = self._retry(limit.drain(in_flight)) if of.retries else None
        return Refusal(
            of.reason,
            retry,
            f"model {model.name!r} has {in_flight} requests under way and takes at most "
            f"{int(limit.value * of.share)} of this kind at present; {_advice(retry)}",
        )

    def displaced(self, model: Admitted) -> Refusal:
        """What a request is told that waited and has to make room for one of higher priority."""
        retry = self._retry(model.limit.drain(model.in_flight))
        return Refusal(
            PRIORITY,
            retry,
            f"model {model.name!r} has more requests of higher priority than it can take; {_advice(retry)}",
        )

    def late(self, model: Admitted, of: Class, found: Backlog, left: float) -> Refusal | None:
        """Whether a request would be answered too late.

        Args:
            model: that it is for.
            of: its class.
            found: what it finds before it.
            left: seconds until its deadline.

        Returns:
            None if there is time enough.
        """
        if not model.in_flight or found.wait * WAIT_MARGIN + found.run <= left:
            return None
        retry = self._retry(found.wait) if of.retries else None
        return Refusal(
            DEADLINE,
            retry,
            f"the request has {left * 1e3:.0f} ms left; model {model.name!r} would answer in about "
            f"{(found.wait + found.run) * 1e3:.0f} ms; {_advice(retry)}, or give it more time",
        )

    def _retry(self, wait: float) -> float:
        return min(max(wait, SHORTEST_RETRY), LONGEST_RETRY) * (1.0 + self._spread())

    def utilization(self, now: float) -> float:
        """How much of what this server can do is in use; 1 is all of it, more is asked for where it is above.

        That of its processors, or that of the model whose callers wait longest, whichever is more.
        """
        models = [model.limit.utilization(now, model.in_flight) for model in self._models]
        return max(self._busy.share(now), *models) if models else self._busy.share(now)


def _advice(retry: float | None) -> str:
    return "do not retry here" if retry is None else f"try again in {retry * 1e3:.0f} ms"
