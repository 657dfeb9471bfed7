"""Metrics: plain numbers in the workers, Prometheus text in the supervisor.

A worker's `dump` adds up what its versions counted; the supervisor merges the
dumps of all workers, keeps those of workers that died, so that no counter goes
back, and `render`s one page.

Label values are bounded: models and versions are those that were loaded, and
requests that named anything else count under the model `unknown`.
"""

from __future__ import annotations

import os
import resource
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from hedgerow_server.engine.costs import Spent
from hedgerow_server.engine.statistics import LATENCY_BOUNDS, VersionStatistics
from hedgerow_server.telemetry.feature_metrics import FeatureSums
from hedgerow_server.telemetry.hedge_metrics import BreakerSums, HedgeSums, add_breakers
from hedgerow_server.telemetry.overload_metrics import OverloadSums, Shed

#: The model label of requests that named no loaded model.
UNKNOWN_MODEL = "unknown"
#: The version label of versions dropped so long ago that only their sum is kept.
OLDER_VERSIONS = "older"
#: Dropped versions that keep their own series.
RETIRED_VERSIONS = 256

#: Upper bounds in seconds of hedgerow_request_seconds: every fourth of the fine ones, 10 µs doubled 21 times.
REQUEST_BOUNDS: tuple[float, ...] = LATENCY_BOUNDS[::4]
#: Upper bounds in rows of hedgerow_batch_rows.
BATCH_BOUNDS: tuple[int, ...] = tuple(2**i for i in range(11))


class VersionSums(msgspec.Struct):
    """Sums of one version; bucket lists have one more entry than bounds."""

    model: str
    version: str
    #: Requests by gRPC status number.
    requests: dict[int, int] = {}
    request_ns: int = 0
    request_buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(REQUEST_BOUNDS) + 1))
    queue_ns: int = 0
    join_ns: int = 0
    input_ns: int = 0
    run_ns: int = 0
    output_ns: int = 0
    rows: int = 0
    #: By rule, requests of which it answered rows, and rows for which it failed.
    fallbacks: dict[str, int] = {}
    rule_failures: dict[str, int] = {}
    batch_buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BATCH_BOUNDS) + 1))
    variants: dict[str, Spent] = {}
    shed: Shed = msgspec.field(default_factory=Shed)

    def add(self, other: VersionSums) -> None:
        """Adds another worker's, or an earlier worker's, sums of the same version."""
        for code, count in other.requests.items():
            self.requests[code] = self.requests.get(code, 0) + count
        self.request_ns += other.request_ns
        self.request_buckets = _add(self.request_buckets, other.request_buckets)
        self.queue_ns += other.queue_ns
        self.join_ns += other.join_ns
        self.input_ns += other.input_ns
        self.run_ns += other.run_ns
        self.output_ns += other.output_ns
        self.rows += other.rows
        for mine, others in (
            (self.fallbacks, other.fallbacks),
            (self.rule_failures, other.rule_failures),
        ):
            for rule, count in others.items():
                mine[rule] = mine.get(rule, 0) + count
        self.batch_buckets = _add(self.batch_buckets, other.batch_buckets)
        for variant, spent in other.variants.items():
            self.variants[variant] = self.variants.get(variant, Spent()) + spent
        self.shed.add(other.shed)


class RouteWeight(msgspec.Struct, frozen=True):
    """One route's share of the traffic that asks for no version."""

    model: str
    version: str
    variant: str
    weight: int


class ModelGear(msgspec.Struct, frozen=True):
    """How one version's weights are held."""

    model: str
    version: str
    gear: str


class Process(msgspec.Struct):
    """What the kernel says about a process."""

    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    open_fds: int = 0


class Dump(msgspec.Struct):
    """All that one worker, or several added up, have counted; and gauges as of now."""

    versions: list[VersionSums] = []
    swaps: int = 0
    log_lines_dropped: int = 0
    packing_failures: int = 0
    in_flight: int = 0
    queue_depth: int = 0
    snapshot_version: int = 0
    routes: list[RouteWeight] = []
    gears: list[ModelGear] = []
    features: FeatureSums = msgspec.field(default_factory=FeatureSums)
    hedging: HedgeSums = msgspec.field(default_factory=HedgeSums)
    breakers: list[BreakerSums] = []
    overload: OverloadSums = msgspec.field(default_factory=OverloadSums)
    process: Process = msgspec.field(default_factory=Process)

    def add_counters(self, other: Dump) -> None:
        """Adds what only grows, gauges stay as they are."""
        mine = {(sums.model, sums.version): sums for sums in self.versions}
        for sums in other.versions:
            key = (sums.model, sums.version)
            if key not in mine:
                mine[key] = VersionSums(sums.model, sums.version)
                self.versions.append(mine[key])
            mine[key].add(sums)
        self.features.add(other.features)
        self.hedging.add(other.hedging)
        add_breakers(self.breakers, other.breakers)
        self.swaps += other.swaps
        self.log_lines_dropped += other.log_lines_dropped
        self.packing_failures += other.packing_failures
        self.process.cpu_seconds += other.process.cpu_seconds


class Retired:
    """Sums of the versions that a worker dropped: the last 256 by name, the others added up by model."""

    def __init__(self, *, keep: int = RETIRED_VERSIONS) -> None:
        self._keep = keep
        self._versions: dict[tuple[str, str], VersionSums] = {}

    def add(self, model: str, version: str, statistics: VersionStatistics) -> None:
        """Takes over what a version counted, when it is dropped and nothing counts on it any more."""
        self._merge(sums_of(model, version, statistics))
        while len(self._named()) > self._keep:
            oldest = self._versions.pop(self._named()[0])
            oldest.version = OLDER_VERSIONS
            self._merge(oldest)

    def sums(self) -> Iterable[VersionSums]:
        """One for each version kept by name, and one for each model's older versions."""
        return self._versions.values()

    def _merge(self, sums: VersionSums) -> None:
        # Taken out and put in again: the order is that of the last drop.
        known = self._versions.pop((sums.model, sums.version), None)
        if known is not None:
            sums.add(known)
        self._versions[sums.model, sums.version] = sums

    def _named(self) -> list[tuple[str, str]]:
        return [key for key in self._versions if key[1] != OLDER_VERSIONS]


def dump(
    *,
    versions: Iterable[tuple[str, str, VersionStatistics]],
    retired: Retired,
    in_flight: int,
    queue_depth: int,
    snapshot_version: int = 0,
    routes: Sequence[RouteWeight] = (),
    swaps: int = 0,
    log_lines_dropped: int = 0,
    gears: Sequence[ModelGear] = (),
    packing_failures: int = 0,
    features: FeatureSums | None = None,
    hedging: HedgeSums | None = None,
    breakers: Sequence[BreakerSums] = (),
    overload: OverloadSums | None = None,
) -> bytes:
    """A worker's metrics, for `WorkerLink.answer_metrics`.

    Args:
        versions: Model, version and counters of all that is in memory, and
            `(UNKNOWN_MODEL, "", …)` for requests that chose none.
        retired: Of versions that are no longer in memory.
        in_flight: Requests admitted and not yet answered.
        queue_depth: Of those, how many wait for a runner.
        snapshot_version: Of the snapshot that is routed; 0 without a control plane.
        routes: As routed now.
        swaps: Route tables published since the start, but for the first.
        log_lines_dropped: Of the request log.
        gears: Of all that is in memory.
        packing_failures: Times that a version's weights could not be packed.
        features: Of what models are bound to.
        hedging: Of attempts at backups.
        breakers: All that there are.
        overload: How full the worker is.
    """
    found = Dump(
        swaps=swaps,
        log_lines_dropped=log_lines_dropped,
        packing_failures=packing_failures,
        gears=list(gears),
        in_flight=in_flight,
        queue_depth=queue_depth,
        snapshot_version=snapshot_version,
        routes=list(routes),
        features=features or FeatureSums(),
        hedging=hedging or HedgeSums(),
        breakers=list(breakers),
        overload=overload or OverloadSums(),
    )
    found.add_counters(
        Dump(versions=[*retired.sums(), *(sums_of(model, version, s) for model, version, s in versions)])
    )
    found.process = process_usage()
    return msgspec.json.encode(found)


def parse(text: bytes) -> Dump | None:
    """The inverse of `dump`; None for a worker that has no metrics yet."""
    return msgspec.json.decode(text, type=Dump | None)


def sums_of(model: str, version: str, statistics: VersionStatistics) -> VersionSums:
    """The coarser sums that the page shows."""
    batches = [0] * (len(BATCH_BOUNDS) + 1)
    for rows, (runs, *_) in statistics.batches.items():
        batches[bisect_left(BATCH_BOUNDS, rows)] += runs
    return VersionSums(
        model=model,
        version=version,
        requests=dict(statistics.requests),
        request_ns=statistics.success_ns + statistics.fail_ns,
        request_buckets=_every_fourth(statistics.latency),
        queue_ns=statistics.queue_ns,
        join_ns=statistics.join_ns,
        input_ns=statistics.input_ns,
        run_ns=statistics.run_ns,
        output_ns=statistics.output_ns,
        rows=statistics.rows,
        fallbacks=dict(statistics.rules.answered),
        rule_failures=dict(statistics.rules.failed),
        batch_buckets=batches,
        variants={variant: tally.spent() for variant, tally in statistics.variants.items()},
        shed=Shed(dict(statistics.sheds), statistics.moved_to_economy),
    )


def process_usage() -> Process:
    """This process's CPU time, resident memory and open files."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return Process(
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        resident_bytes=resident_pages * os.sysconf("SC_PAGE_SIZE"),
        open_fds=sum(1 for _ in Path("/proc/self/fd").iterdir()),
    )


def _every_fourth(latency: Sequence[int]) -> list[int]:
    """Fine buckets to coarse: coarse bucket i ends where fine bucket 4i does."""
    coarse = [latency[0]]
    coarse += [sum(latency[4 * i - 3 : 4 * i + 1]) for i in range(1, len(REQUEST_BOUNDS))]
    coarse.append(sum(latency[4 * (len(REQUEST_BOUNDS) - 1) + 1 :]))
    return coarse


def _add(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]
