"""Prometheus families from plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Samples = Iterable[tuple[Sequence[str], float]]


def counter(name: str, help_text: str, labels: Sequence[str], samples: Samples) -> Metric:
    """A counter, `hedgerow_NAME_total`, from label values and numbers."""
    family = CounterMetricFamily(f"hedgerow_{name}", help_text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def gauge(name: str, help_text: str, labels: Sequence[str], samples: Samples) -> Metric:
    """A gauge, `hedgerow_NAME`, from label values and numbers."""
    family = GaugeMetricFamily(f"hedgerow_{name}", help_text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def cumulative(bounds: Sequence[float], buckets: Sequence[int]) -> list[tuple[str, float]]:
    """Counts per bucket as Prometheus wants a histogram: up to each bound, the last is +Inf."""
    count = 0
    summed: list[tuple[str, float]] = []
    for bound, bucket in zip((*map(repr, bounds), "+Inf"), buckets, strict=True):
        count += bucket
        summed.append((bound, count))
    return summed
