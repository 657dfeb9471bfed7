"""Metrics of features: what a worker counted, added up over workers, and as Prometheus families."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from prometheus_client.core import HistogramMetricFamily, Metric

from hedgerow_server.features.counts import AGE_BOUNDS, LaneCounts, ViewCounts
from hedgerow_server.features.freshness import Freshness
from hedgerow_server.telemetry.families import counter, cumulative


class ViewSums(msgspec.Struct):
    """Features read of one view; `name@version`."""

    view: str
    #: By freshness: fresh, stale, default.
    reads: list[int] = msgspec.field(default_factory=lambda: [0, 0, 0])
    #: One more than AGE_BOUNDS.
    age_buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(AGE_BOUNDS) + 1))
    age_sum: float = 0.0
    local: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    corrupt: int = 0
    stored: int = 0

    def add(self, other: ViewSums) -> None:
        """Adds another worker's, or an earlier worker's, sums of the same view."""
        self.reads = [a + b for a, b in zip(self.reads, other.reads, strict=True)]
        self.age_buckets = [a + b for a, b in zip(self.age_buckets, other.age_buckets, strict=True)]
        self.age_sum += other.age_sum
        self.local += other.local
        self.cache_hits += other.cache_hits
        self.cache_misses += other.cache_misses
        self.corrupt += other.corrupt
        self.stored += other.stored


class DependencySums(msgspec.Struct):
    """Calls to something the server leans on."""

    name: str
    ok: int = 0
    failed: int = 0
    failed_keys: int = 0
    refused_keys: int = 0
    seconds: float = 0.0

    def add(self, other: DependencySums) -> None:
        """Adds what only grows."""
        self.ok += other.ok
        self.failed += other.failed
        self.failed_keys += other.failed_keys
        self.refused_keys += other.refused_keys
        self.seconds += other.seconds


class FeatureSums(msgspec.Struct):
    """All that is counted about features."""

    views: list[ViewSums] = []
    dependencies: list[DependencySums] = []
    #: Values that the cache took, and that it did not get.
    written: int = 0
    dropped: int = 0

    def add(self, other: FeatureSums) -> None:
        """Adds what only grows."""
        views = {sums.view: sums for sums in self.views}
        for view in other.views:
            if view.view not in views:
                views[view.view] = ViewSums(view.view)
                self.views.append(views[view.view])
            views[view.view].add(view)
        dependencies = {sums.name: sums for sums in self.dependencies}
        for dependency in other.dependencies:
            if dependency.name not in dependencies:
                dependencies[dependency.name] = DependencySums(dependency.name)
                self.dependencies.append(dependencies[dependency.name])
            dependencies[dependency.name].add(dependency)
        self.written += other.written
        self.dropped += other.dropped


def view_sums(view: str, counts: ViewCounts) -> ViewSums:
    """What was counted about a view, as it is now."""
    return ViewSums(
        view=view,
        reads=list(counts.reads),
        age_buckets=list(counts.age_buckets),
        age_sum=counts.age_sum,
        local=counts.local,
        cache_hits=counts.cache_hits,
        cache_misses=counts.cache_misses,
        corrupt=counts.corrupt,
        stored=counts.stored,
    )


def dependency_sums(name: str, counts: LaneCounts) -> DependencySums:
    """How calls to a dependency went until now."""
    return DependencySums(
        name=name,
        ok=counts.ok,
        failed=counts.failed,
        failed_keys=counts.failed_keys,
        refused_keys=counts.refused_keys,
        seconds=counts.seconds,
    )


def families(total: FeatureSums) -> Iterator[Metric]:
    """The page's part on features.

    Args:
        total: Of all workers and their predecessors.
    """
    yield counter(
        "feature_reads",
        "Values given to requests, one for each entity and view, by how good they were.",
        ("view", "freshness"),
        [((v.view, f.label), v.reads[f]) for v in total.views for f in Freshness],
    )
    ages = HistogramMetricFamily(
        "hedgerow_feature_age_seconds",
        "Time since the store was asked for a value that a request got; defaults have none.",
        labels=("view",),
    )
    for v in total.views:
        ages.add_metric((v.view,), cumulative(AGE_BOUNDS, v.age_buckets), sum_value=v.age_sum)
    yield ages
    yield counter(
        "feature_lookups",
        "Keys looked for, by where: held in the process, in the cache or not, answered by the store.",
        ("view", "result"),
        [
            ((v.view, result), count)
            for v in total.views
            for result, count in (
                ("local", v.local),
                ("cache_hit", v.cache_hits),
                ("cache_miss", v.cache_misses),
                ("store", v.stored),
            )
        ],
    )
    yield counter(
        "feature_corrupt_values",
        "Cache values that were damaged, foreign or from the future, counted as misses and written anew.",
        ("view",),
        [((v.view,), v.corrupt) for v in total.views],
    )
    yield counter(
        "feature_cache_writes",
        "Values that the cache took, and those it did not get because it was slow or down.",
        ("result",),
        [(("written",), total.written), (("dropped",), total.dropped)],
    )
    yield from _dependencies(total)


def _dependencies(total: FeatureSums) -> Iterator[Metric]:
    label = ("dependency",)
    yield counter(
        "dependency_calls",
        "Calls: an MGET of the cache, a query of the store.",
        (*label, "result"),
        [
            ((d.name, result), count)
            for d in total.dependencies
            for result, count in (("ok", d.ok), ("failed", d.failed))
        ],
    )
    yield counter(
        "dependency_unanswered_keys",
        "Keys whose call failed, or was not made because of an open breaker or too many that wait.",
        (*label, "reason"),
        [
            ((d.name, reason), count)
            for d in total.dependencies
            for reason, count in (("failed", d.failed_keys), ("refused", d.refused_keys))
        ],
    )
    yield counter(
        "dependency_seconds",
        "Time that calls took, whatever their end.",
        label,
        [((d.name,), d.seconds) for d in total.dependencies],
    )
