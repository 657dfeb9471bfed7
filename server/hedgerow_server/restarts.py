"""When a worker that ended is started again."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 10.0
#: A worker that served this long starts with a clean slate.
HEALTHY_SECONDS = 30.0


@dataclass(slots=True)
class Restarts:
    """One worker's failures in a row. No clock of its own: time comes in as an argument."""

    failures: int = 0

    def ended(self, *, served_seconds: float) -> float:
        """Counts one end and tells how long to wait before the next start.

        Args:
            served_seconds: From ready to the end; 0 if the worker never was ready.

        Returns:
            Seconds: 0.1, doubled with each failure in a row, at most 10.
        """
        if served_seconds >= HEALTHY_SECONDS:
            self.failures = 0
        # The exponent is bounded: a worker may fail for years.
        delay = FIRST_SECONDS * 2.0 ** min(self.failures, 32)
        self.failures += 1
        return min(LONGEST_SECONDS, delay)
