"""What every version has done since the stream to the control plane opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from hedgerow_protos.hedgerow_control_pb2 import Stats, VariantStats, VersionStats

from hedgerow_server.engine.costs import Spent
from hedgerow_server.engine.statistics import LATENCY_BOUNDS, VersionStatistics

#: Versions whose sums are kept after they were dropped; they may come back.
MAX_DROPPED = 256


class Counted(Protocol):
    """A version with its counters; `engine.model.Model` is one."""

    name: str
    version: str
    statistics: VersionStatistics


@dataclass(slots=True)
class Counts:
    """Sums of one version; `latency` as in `VersionStatistics`."""

    succeeded: int = 0
    failed: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    variants: dict[str, Spent] = field(default_factory=dict)

    @classmethod
    def of(cls, statistics: VersionStatistics) -> Counts:
        """The counters as they stand."""
        # What had to be answered by others is no success of this version. A hedge says nothing about it.
        rescued = statistics.elsewhere["failover"] + statistics.elsewhere["fallback"]
        succeeded = statistics.requests.get(0, 0) - rescued
        return cls(
            succeeded,
            sum(statistics.requests.values()) - succeeded,
            list(statistics.latency),
            {variant: tally.spent() for variant, tally in statistics.variants.items()},
        )

    def add_growth(self, before: Counts, now: Counts) -> None:
        """Adds what came between two readings of the same counters."""
        self.succeeded += now.succeeded - before.succeeded
        self.failed += now.failed - before.failed
        self.latency = [
            total + new - old
            for total, new, old in zip(self.latency, now.latency, before.latency, strict=True)
        ]
        for variant, spent in now.variants.items():
            grown = spent.growth(before.variants.get(variant, Spent()))
            self.variants[variant] = self.variants.get(variant, Spent()) + grown


class StreamStats:
    """Sums by version that start at 0 with the stream and never go back while it lasts.

    A version that is dropped and loaded again begins with new counters; its
    sums here go on. Holds: the sums, and the last reading of each counter.

    Args:
        versions: what is in memory as the stream opens.
    """

    def __init__(self, versions: Iterable[Counted]) -> None:
        self._sums: dict[tuple[str, str], Counts] = {}
        # By identity: counters have no other name. Each is kept while its
        # version is in memory, so an identity is not given twice.
        self._read: dict[int, tuple[VersionStatistics, Counts]] = {
            id(one.statistics): (one.statistics, Counts.of(one.statistics)) for one in versions
        }

    def read(self, versions: Iterable[Counted]) -> Stats:
        """The message to send now, for the versions in memory."""
        read: dict[int, tuple[VersionStatistics, Counts]] = {}
        present: dict[tuple[str, str], None] = {}
        for one in versions:
            pair = (one.name, one.version)
            present[pair] = None
            now = Counts.of(one.statistics)
            _, before = self._read.get(id(one.statistics), (None, Counts()))
            self._sums.setdefault(pair, Counts()).add_growth(before, now)
            read[id(one.statistics)] = (one.statistics, now)
        self._read = read
        dropped = [pair for pair in self._sums if pair not in present]
        for pair in dropped[:-MAX_DROPPED]:
            del self._sums[pair]
        return Stats(versions=[self._message(pair) for pair in present])

    def _message(self, pair: tuple[str, str]) -> VersionStats:
        counts = self._sums[pair]
        return VersionStats(
            model=pair[0],
            model_version=pair[1],
            succeeded=counts.succeeded,
            failed=counts.failed,
            latency_buckets=counts.latency,
            variants=[
                VariantStats(
                    variant=variant,
                    requests=spent.requests,
                    predictions=spent.predictions,
                    cost_units=spent.cost or 0.0,
                    saved_units=spent.saved - spent.extra,
                )
                for variant, spent in counts.variants.items()
                if spent.requests
            ],
        )
