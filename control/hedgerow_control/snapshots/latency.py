"""Percentiles of durations that came as counts by bucket (VersionStats.latency_buckets)."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: 88 bounds and one bucket for what is slower than all of them.
BUCKETS = 89


def bound(bucket: int) -> float:
    """The longest duration in a bucket, in seconds."""
    return 1e-5 * math.exp2(bucket / 4)


def percentile(buckets: Sequence[int], fraction: float) -> float:
    """The duration in seconds below which a fraction of the requests lie.

    Within a bucket durations count as spread evenly over the logarithm, so the
    answer is within a factor of 2^(1/4) of the true one. 0 when nothing was counted.
    """
    total = sum(buckets)
    if not total:
        return 0.0
    rank = fraction * total
    below = 0
    for bucket, count in enumerate(buckets):
        if count and below + count >= rank:
            return bound(bucket - 1) * math.exp2((rank - below) / count / 4)
        below += count
    return bound(len(buckets) - 1)
