"""When a request that could reach nobody is tried again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import grpc

from hedgerow.errors import HedgerowError
from hedgerow.hedging.attempt import Attempt
from hedgerow.hedging.regions import Regions

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

#: Seconds before the first repetition, give or take a fifth; each further one waits three times as long.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5

Errors = Sequence[tuple[Attempt, HedgerowError]]


class Repetition:
    """Holds: how often a request was tried again, and when it will be the next time.

    Args:
        regions: What is known of the targets.
        deadline: Of the request.
    """

    __slots__ = ("_deadline", "_pause", "_regions", "at", "count")

    def __init__(self, regions: Regions, deadline: float) -> None:
        self._regions = regions
        self._deadline = deadline
        self._pause = FIRST_PAUSE
        self.at = math.inf
        self.count = 0

    def plan(self, now: float, errors: Errors) -> bool:
        """Sets when to try again those that could not be reached; False: not at all."""
        regions = self._regions
        unreached = self._unreached(errors)
        if self.count >= regions.retries or regions.budget.tokens < 1 or not unreached:
            return False
        if not any(error.code is UNAVAILABLE for _, error in errors):
            return False
        pause = self._pause * (0.8 + 0.4 * regions.chance())
        self._pause = min(3 * self._pause, LONGEST_PAUSE)
        self.at = max(now + pause, min(regions.targets[index].pushed_back_until for index in unreached))
        return self.at < self._deadline

    def take(self, now: float, errors: Errors) -> list[int]:
        """Its time has come: the targets to choose from, and a token is taken; empty: it cannot be."""
        self.at = math.inf
        targets = self._regions.targets
        ready = [index for index in self._unreached(errors) if now >= targets[index].pushed_back_until]
        if not ready or not self._regions.budget.withdraw():
            return []
        self.count += 1
        return ready

    def _unreached(self, errors: Errors) -> list[int]:
        """The targets that have not answered with an error of their own, those that were not tried first."""
        codes = {attempt.target: error.code for attempt, error in errors}
        unreached = [index for index in self._regions.order if codes.get(index, UNAVAILABLE) is UNAVAILABLE]
        unreached.sort(key=codes.__contains__)
        return unreached
