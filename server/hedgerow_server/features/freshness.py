"""How old a value may be: the rule, as pure functions of ages and bounds.

    age of a value = now - the moment the store was asked for it and answered

    0 ────────────── ttl ─────────────────── stale_ttl ──────────▶ age
      fresh            stale, if the store     the view's default
                       cannot be asked

The age counts from when the question was sent, so it never looks younger than
it is. All ages are in seconds on the process's monotonic clock; only what comes
out of the cache was dated by another clock, and `since` brings it over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

#: Seconds that the clocks of two servers may differ. A value dated further into the future has an
#: age that nobody knows, and is not used.
MAX_SKEW = 1.0


class Freshness(IntEnum):
    """How good a value is; the worst of a request's values is the request's."""

    FRESH = 0
    STALE = 1
    DEFAULT = 2

    @property
    def label(self) -> str:
        """As replies, metrics and the log spell it."""
        return _LABELS[self]


_LABELS = ("fresh", "stale", "default")


@dataclass(frozen=True, slots=True)
class Bounds:
    """A view's bounds, in seconds.

    Attributes:
        ttl: Up to this age a value is fresh.
        stale_ttl: Up to this age it may be served while the store cannot be asked.
        max_age: A value whose event is longer ago counts as missing; infinite for none.
    """

    ttl: float
    stale_ttl: float
    max_age: float = math.inf


class Known:
    """What is known of one entity; never changed once made. Times are on the monotonic clock.

    Attributes:
        row: The packed fields; None for an entity that the store does not have.
        confirmed: When the store was asked for it.
        event: When it came about, as its source says.
        read: When this process got it, from the store or from the cache.
        refresh: From here on the store is asked again, though the value is still fresh.
    """

    __slots__ = ("confirmed", "event", "read", "refresh", "row")

    def __init__(
        self, row: bytes | None, confirmed: float, event: float, read: float, refresh: float = math.inf
    ) -> None:
        self.row = row
        self.confirmed = confirmed
        self.event = event
        self.read = read
        self.refresh = refresh

    def __repr__(self) -> str:
        size = "absent" if self.row is None else f"{len(self.row)} bytes"
        return f"<Known {size}, confirmed at {self.confirmed:.3f}>"


def is_current(known: Known, bounds: Bounds, now: float) -> bool:
    """Whether what is known (also that there is nothing) needs no question to the store."""
    return now - known.confirmed <= bounds.ttl


def judge(known: Known | None, bounds: Bounds, now: float) -> Freshness:
    """What may be said of the value as it is known now; DEFAULT means that its row must not be served."""
    if known is None or known.row is None or now - known.event > bounds.max_age:
        return Freshness.DEFAULT
    age = now - known.confirmed
    if age <= bounds.ttl:
        return Freshness.FRESH
    return Freshness.STALE if age <= bounds.stale_ttl else Freshness.DEFAULT


def since(moment: float, wall: float, monotonic: float) -> float | None:
    """A moment by some server's wall clock, on this process's monotonic clock.

    Args:
        moment: Seconds since the epoch.
        wall: This server's wall clock now.
        monotonic: The monotonic clock now.

    Returns:
        The monotonic time; never later than now. None if the moment lies further in the future
        than clocks may differ.
    """
    age = wall - moment
    if age < -MAX_SKEW:
        return None
    return monotonic - max(age, 0.0)
