"""What was counted about features: by view, and by what they are read from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

#: Upper bounds in seconds of hedgerow_feature_age_seconds.
AGE_BOUNDS = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)


class ViewCounts:
    """What was read of one view, and where it came from."""

    __slots__ = (
        "age_buckets",
        "age_sum",
        "cache_hits",
        "cache_misses",
        "corrupt",
        "local",
        "reads",
        "stored",
    )

    def __init__(self) -> None:
        #: Values given to requests, by `Freshness`.
        self.reads = [0, 0, 0]
        #: Ages of the values that were no defaults.
        self.age_buckets = [0] * (len(AGE_BOUNDS) + 1)
        self.age_sum = 0.0
        #: Answered by what this process held.
        self.local = 0
        self.cache_hits = 0
        self.cache_misses = 0
        #: Cache values that were damaged, foreign, or dated too far into the future.
        self.corrupt = 0
        #: Answered by the store, absences included.
        self.stored = 0

    def add_ages(self, ages: Sequence[float]) -> None:
        """Counts the ages, in seconds, of some values that were no defaults."""
        self.age_sum += sum(ages)
        first = bisect_left(AGE_BOUNDS, min(ages))
        # As of values that were read together.
        if first == bisect_left(AGE_BOUNDS, max(ages)):
            self.age_buckets[first] += len(ages)
            return
        for age in ages:
            self.age_buckets[bisect_left(AGE_BOUNDS, age)] += 1


class LaneCounts:
    """How the calls to one dependency went."""

    __slots__ = ("failed", "failed_keys", "ok", "refused_keys", "seconds")

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        #: Keys whose call failed, and keys that were turned away without one.
        self.failed_keys = 0
        self.refused_keys = 0
        #: Time that calls took, whatever their end.
        self.seconds = 0.0
