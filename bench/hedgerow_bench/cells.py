"""A table and what its cells say: numbers, spreads and shares as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

#: Percentiles of latency by their names in reports, and their headings.
POINTS = {"p50": "p50 ms", "p90": "p90 ms", "p99": "p99 ms", "p99_9": "p99.9 ms", "max": "max ms"}


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, one heading for each column; the first column names the row."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: float | None) -> str:
    """Three digits that matter, thousands with commas; `-` for nothing."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_spread(spread: Mapping[str, Any] | None, *, ratio: bool = False) -> str:
    """Median, and lowest and highest round in brackets."""
    if spread is None:
        return "-"
    write: Callable[[float], str] = (
        (lambda value: f"{value:.2f}" if value < 10 else f"{value:.1f}") if (ratio) else number
    )
    text = write(spread["median"])
    if len(spread["rounds"]) > 1:
        text += f" ({write(spread['lowest'])}-{write(spread['highest'])})"
    return text


def taken(row: Row) -> str:
    """Processor time of a server for each answer; reports from before it was measured have none."""
    spread = row.get("server_us")
    return number(spread["median"]) if spread and spread["median"] else "-"


def points(latency: Row) -> tuple[str, ...]:
    """A cell for each of `POINTS`, in milliseconds."""
    return tuple(number(latency.get(point)) for point in POINTS)


def share(part: float | None) -> str:
    """A part as a percentage; `-` for nothing."""
    return "-" if part is None else f"{part:.0%}"


def quotient(latency: Row, above: str, below: str) -> float | None:
    """One percentile through another; None where that says nothing."""
    return latency[above] / latency[below] if latency.get(below) else None
