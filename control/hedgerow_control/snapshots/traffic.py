"""What each variant of a model takes of its traffic, and what that costs: sums of what servers count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from hedgerow_protos import hedgerow_control_pb2 as pb

#: Not chosen by a route: a request named its version itself, or nobody is answered.
_NOT_CHOSEN = frozenset(("asked", "shadow"))
#: Variants of one version that one server can make us remember.
_MAX_VARIANTS = 8


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers of one variant, summed; cost in the registry's units."""

    requests: int = 0
    predictions: int = 0
    cost_units: float = 0.0
    saved_units: float = 0.0

    def __add__(self, other: Answered) -> Answered:
        return Answered(
            self.requests + other.requests,
            self.predictions + other.predictions,
            self.cost_units + other.cost_units,
            self.saved_units + other.saved_units,
        )


@dataclass(frozen=True, slots=True)
class Mark:
    """Routes that a server took up, and what it had answered as each variant by then."""

    #: (variant, version, weight)
    routes: tuple[tuple[str, str, int], ...]
    answered: Mapping[str, Answered]


def routes_of(model: pb.Model) -> tuple[tuple[str, str, int], ...]:
    """A model's routes as a value."""
    return tuple((route.variant, route.version, route.weight) for route in model.routes)


def read_variants(variants: Iterable[pb.VariantStats]) -> dict[str, Answered]:
    """What a server says of one version; numbers that are none count as nothing."""
    result: dict[str, Answered] = {}
    for one in variants:
        if len(result) < _MAX_VARIANTS and len(one.variant) <= 64:
            cost, saved = (
                units if math.isfinite(units) else 0.0 for units in (one.cost_units, one.saved_units)
            )
            result[one.variant] = Answered(one.requests, one.predictions, cost, saved)
    return result


@dataclass(frozen=True, slots=True)
class Ledger:
    """One server's word on one model."""

    total: Mapping[str, Answered]
    #: None before it has acknowledged routes of the model.
    mark: Mark | None


def variants(
    model: pb.Model, ledgers: Iterable[Ledger], costs: Mapping[str, float | None]
) -> list[pb.VariantStatus]:
    """The variants of a model, those with a route first.

    Args:
        model: as published.
        ledgers: of all servers. Only those that have taken up the published routes tell what part
            of the requests each variant has under them.
        costs: cost units of 1,000 predictions by version, where they are known.
    """
    total: dict[str, Answered] = {}
    since: dict[str, int] = {}
    routes = routes_of(model)
    for ledger in ledgers:
        for variant, answered in ledger.total.items():
            total[variant] = total.get(variant, Answered()) + answered
            if ledger.mark is not None and ledger.mark.routes == routes and variant not in _NOT_CHOSEN:
                before = ledger.mark.answered.get(variant, Answered()).requests
                since[variant] = since.get(variant, 0) + max(0, answered.requests - before)
    routed = sum(since.values())
    known = {route.variant: route for route in model.routes}
    return [
        pb.VariantStatus(
            variant=variant,
            version=known[variant].version if variant in known else "",
            weight=known[variant].weight if variant in known else 0,
            served_share=since.get(variant, 0) / routed if routed and variant not in _NOT_CHOSEN else None,
            cost_per_1k=costs.get(known[variant].version) if variant in known else None,
            **asdict(total.get(variant, Answered())),
        )
        for variant in (*known, *sorted(total.keys() - known.keys()))
    ]
