"""Metrics of hedges, failover and circuit breakers: what a worker counted, and as Prometheus families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from hedgerow_protos.breaker import Breaker
from hedgerow_protos.hedging import FAILOVER, HEDGE
from prometheus_client.core import Metric

from hedgerow_server.resilience.counts import OBSTACLES, OUTCOMES
from hedgerow_server.resilience.hedger import Hedger
from hedgerow_server.telemetry.families import counter, gauge

_KINDS = (HEDGE, FAILOVER)


class BreakerSums(msgspec.Struct):
    """One circuit breaker: its trips add up, its state is as of now."""

    name: str
    trips: int = 0
    state: int = 0


class HedgeSums(msgspec.Struct):
    """All that is counted about attempts at backups."""

    #: By kind and outcome.
    outcomes: dict[str, dict[str, int]] = {}
    #: Attempts not made, by kind and obstacle.
    suppressed: dict[str, dict[str, int]] = {}
    #: Tokens left in the budget; a gauge.
    tokens: float = 0.0
    #: Whether there are backups at all.
    is_on: bool = False

    def add(self, other: HedgeSums) -> None:
        """Adds what only grows."""
        self.is_on |= other.is_on
        for mine, others in ((self.outcomes, other.outcomes), (self.suppressed, other.suppressed)):
            for kind, counts in others.items():
                kept = mine.setdefault(kind, {})
                for label, count in counts.items():
                    kept[label] = kept.get(label, 0) + count


def hedge_sums(hedger: Hedger | None) -> HedgeSums:
    """What was counted about attempts, as it is now."""
    if hedger is None:
        return HedgeSums()
    counts = hedger.counts
    return HedgeSums(
        outcomes={kind: {end: counts.outcomes[kind, end] for end in OUTCOMES} for kind in _KINDS},
        suppressed={kind: {why: counts.suppressed[kind, why] for why in OBSTACLES} for kind in _KINDS},
        tokens=hedger.budget.tokens,
        is_on=True,
    )


def breaker_sums(breaker: Breaker) -> BreakerSums:
    """A breaker as it is now."""
    return BreakerSums(breaker.name, breaker.trips, int(breaker.state))


def families(total: HedgeSums, live: Mapping[str, HedgeSums]) -> Iterator[Metric]:
    """The page's part on hedges and failover; nothing without backups.

    Args:
        total: Of all workers and their predecessors.
        live: Of each worker that runs.
    """
    if not total.is_on:
        return
    for kind, name, help_text in (
        (HEDGE, "hedges", "Second attempts at a backup while the one here was under way, by how they ended."),
        (FAILOVER, "failovers", "Attempts at a backup after the one here had failed, by how they ended."),
    ):
        yield counter(name, help_text, ("outcome",), _samples(total.outcomes.get(kind, {})))
    for kind, name, help_text in (
        (HEDGE, "hedges_suppressed", "Hedges that were due and not made, by what stood against it."),
        (
            FAILOVER,
            "failovers_suppressed",
            "Failures here that found no way to a backup, by what stood against.",
        ),
    ):
        yield counter(name, help_text, ("reason",), _samples(total.suppressed.get(kind, {})))
    yield gauge(
        "hedge_budget_tokens",
        "Hedges that each worker may make at once.",
        ("worker",),
        [((worker,), sums.tokens) for worker, sums in live.items()],
    )


def breaker_families(
    total: Sequence[BreakerSums], live: Mapping[str, Sequence[BreakerSums]]
) -> Iterator[Metric]:
    """The page's part on circuit breakers: of feature store and cache, backups, and model versions."""
    yield counter(
        "breaker_trips",
        "Times that a circuit breaker opened; a model version's is its quarantine.",
        ("dependency",),
        [((sums.name,), sums.trips) for sums in total],
    )
    yield gauge(
        "breaker_state",
        "A circuit breaker's state: 0 closed, 1 half-open, 2 open.",
        ("worker", "dependency"),
        [((worker, sums.name), sums.state) for worker, all_sums in live.items() for sums in all_sums],
    )


def add_breakers(mine: list[BreakerSums], others: Sequence[BreakerSums]) -> None:
    """Adds the trips of another worker's breakers, by name."""
    known = {sums.name: sums for sums in mine}
    for other in others:
        if other.name not in known:
            known[other.name] = BreakerSums(other.name)
            mine.append(known[other.name])
        known[other.name].trips += other.trips


def _samples(counts: Mapping[str, int]) -> list[tuple[tuple[str], float]]:
    return [((label,), count) for label, count in counts.items()]
