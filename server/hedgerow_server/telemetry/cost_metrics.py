"""The families of variants: what each answers, what that costs and what it saves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric

from hedgerow_server.telemetry.families import counter
from hedgerow_server.telemetry.metrics import VersionSums

_BY_VARIANT = ("model", "version", "variant")


def families(versions: Iterable[VersionSums]) -> Iterator[Metric]:
    """Counters all: a saving that turns into its contrary grows as `extra`, since none may fall."""
    variants = [
        ((v.model, v.version, variant), spent) for v in versions for variant, spent in v.variants.items()
    ]
    yield counter(
        "variant_requests",
        "Requests that a version's own model answered, by the variant that was chosen.",
        _BY_VARIANT,
        [(labels, spent.requests) for labels, spent in variants],
    )
    priced = [(labels, spent, spent.cost) for labels, spent in variants if spent.cost is not None]
    yield counter(
        "cost_units",
        "Predictions times the version's cost_per_1k / 1000, where the registry has one.",
        _BY_VARIANT,
        [(labels, cost) for labels, _, cost in priced],
    )
    # Zeros too: a series that is there from the start has a rate.
    saved: defaultdict[str, float] = defaultdict(float)
    extra: defaultdict[str, float] = defaultdict(float)
    for (model, *_), spent, _ in priced:
        saved[model] += spent.saved
        extra[model] += spent.extra
    yield counter(
        "cost_saved_units",
        "What cheaper variants answered would have cost so much more at the champion's price.",
        ("model",),
        [((model,), units) for model, units in saved.items()],
    )
    yield counter(
        "cost_extra_units",
        "What dearer variants answered would have cost so much less at the champion's price.",
        ("model",),
        [((model,), units) for model, units in extra.items()],
    )
