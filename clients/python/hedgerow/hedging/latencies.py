"""How long a model's requests take, and what follows from it."""

from __future__ import annotations

from hedgerow_protos.hedging import Percentiles, bucket

#: Upper bounds in seconds of the histogram's buckets, up to 84 s.
BOUNDS = tuple(1e-4 * 1.3**step for step in range(53))
#: A call that takes so many times the median of its model at its target is slow, but none below the floor.
SLOW_TIMES, SLOW_AT_LEAST = 10.0, 0.25


class Latencies:
    """Holds: how long answers took in the last ten seconds in which there were any."""

    __slots__ = ("_counts", "_percentiles", "median")

    #: Fewer say nothing.
    ENOUGH = 5

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._percentiles = Percentiles(BOUNDS)
        #: Seconds that half of them took at most; None while there were too few.
        self.median: float | None = None

    def add(self, now: float, seconds: float) -> Percentiles | None:
        """Takes one more; returns the percentiles if they have changed."""
        self._counts[bucket(BOUNDS, seconds)] += 1
        percentiles = self._percentiles
        if not percentiles.update(now, self._counts):
            return None
        if percentiles.samples >= self.ENOUGH:
            self.median = percentiles.at(0.5)
        return percentiles

    def begin_anew(self, median: float) -> None:
        """Forgets how it was before."""
        self._counts = [0] * len(self._counts)
        self._percentiles = Percentiles(BOUNDS)
        self.median = median


class ModelRecord:
    """Holds: how long a model's requests take, as a whole and at each target, and what follows from it."""

    __slots__ = ("at", "delay", "requests")

    def __init__(self, targets: int, delay: float) -> None:
        self.requests = Latencies()
        self.at = tuple(Latencies() for _ in range(targets))
        #: Seconds until a hedge.
        self.delay = delay

    def slow_after(self, index: int, timeout: float) -> float:
        """Seconds after which an attempt at a target is slow.

        A model that is slow by nature is not; and a caller that has only so much time must be able to go
        elsewhere with half of it left, unless that is what the model needs.
        """
        median = self.at[index].median
        if median is None:
            return timeout / 2
        return min(max(SLOW_AT_LEAST, SLOW_TIMES * median), max(timeout / 2, 2 * median))

    def probe_slow_after(self, index: int, timeout: float) -> float:
        """The same for a target that was left, and is tried: it is as well as it was, or as any other is now.

        So a model that takes longer everywhere does not keep its requests from the primary for ever.
        """
        others = [one.median or 0.0 for i, one in enumerate(self.at) if i != index]
        return max(self.slow_after(index, timeout), 2 * min(others, default=0.0))
