"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Exponential backoff with full jitter: uniform between 0 and a bound that doubles.

    Full jitter spreads a fleet that lost its control plane at one moment best
    (Brooker, "Exponential Backoff And Jitter", 2015). A plain object: it gives
    numbers, the caller sleeps.

    Args:
        first: bound of the first wait in seconds.
        cap: bound that is never exceeded, in seconds.
        uniform: gives numbers in [0, 1).
    """

    def __init__(
        self, *, first: float = 0.1, cap: float = 5.0, uniform: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._cap = cap
        self._uniform = uniform
        self._bound = first

    def wait(self) -> float:
        """Seconds until the next try."""
        seconds = self._uniform() * self._bound
        self._bound = min(self._cap, self._bound * 2)
        return seconds

    def reset(self) -> None:
        """The last try went well."""
        self._bound = self._first
