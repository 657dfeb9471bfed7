"""Metrics of admission: what was refused because there was too much to do, and how much is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from prometheus_client.core import Metric

from hedgerow_server.gate.admission import REASONS
from hedgerow_server.telemetry.families import counter, gauge

if TYPE_CHECKING:  # The supervisor, which shows the page, holds no model.
    from hedgerow_server.engine.model import Model


class Limit(msgspec.Struct, frozen=True):
    """How many requests of a version one worker takes at once, as of now."""

    model: str
    version: str
    requests: int


class OverloadSums(msgspec.Struct):
    """How full a worker is; gauges."""

    limits: list[Limit] = []
    utilization: float = 0.0


class Shed(msgspec.Struct):
    """What one version could not take."""

    #: Requests refused, by reason.
    refused: dict[str, int] = {}
    #: Requests that went to the economy variant instead.
    moved: int = 0

    def add(self, other: Shed) -> None:
        """Adds another worker's, or an earlier worker's."""
        for reason, count in other.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        self.moved += other.moved


def overload_sums(models: Iterable[Model], utilization: float) -> OverloadSums:
    """How full this worker is now."""
    return OverloadSums(
        [Limit(model.name, model.version, model.limit.value) for model in models], utilization
    )


def families(shed: Sequence[tuple[str, str, Shed]], live: Mapping[str, OverloadSums]) -> Iterator[Metric]:
    """The page's part on overload.

    Args:
        shed: Model, version and what it could not take, of all workers and their predecessors.
        live: Of each worker that runs.
    """
    refused: Counter[tuple[str, str]] = Counter()
    for model, _, each in shed:
        for reason in REASONS:
            refused[model, reason] += each.refused.get(reason, 0)
    yield counter(
        "sheds",
        "Requests refused because there was too much to do, by what stood against them.",
        ("model", "reason"),
        refused.items(),
    )
    yield counter(
        "moved_to_economy",
        "Requests that the economy variant got because there was no room for them here.",
        ("model", "version"),
        [((model, version), each.moved) for model, version, each in shed],
    )
    limits: Counter[tuple[str, str]] = Counter()
    for sums in live.values():
        for limit in sums.limits:
            limits[limit.model, limit.version] += limit.requests
    yield gauge(
        "concurrency_limit",
        "Requests of a version that may be under way at once, over all workers.",
        ("model", "version"),
        limits.items(),
    )
    yield gauge(
        "utilization",
        "How much of what it can do each worker does; above 1 it is asked for more.",
        ("worker",),
        [((worker,), sums.utilization) for worker, sums in live.items()],
    )
