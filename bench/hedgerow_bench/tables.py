"""What a report's rows look like to a reader: the same words in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, one heading for each column."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table(measurement: str, rows: Sequence[Row]) -> Table:
    """The table of a measurement's rows.

    Raises:
        KeyError: There is no such measurement, or its rows are of another release.
    """
    return _TABLES[measurement](rows)


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


def _throughput(rows: Sequence[Row]) -> Table:
    servers = list(rows[0]["servers"])
    others = servers[1:]
    return Table(
        (
            "under way",
            *(f"{name}/s" for name in servers),
            *(f"/ {name}" for name in others),
            "failed",
        ),
        tuple(
            (
                f"{number(row['concurrency'])} ({row['connections']} x {row['streams']})",
                *(with_spread(row["servers"][name]["per_second"]) for name in servers),
                *(with_spread(row["ratios"].get(name), ratio=True) for name in others),
                number(row["failed"]),
            )
            for row in rows
        ),
    )


def _latency(rows: Sequence[Row]) -> Table:
    return Table(
        ("rate", "requests", "failed", *_POINTS.values()),
        tuple(
            (
                number(row["rate"]),
                number(row["requests"]),
                number(row["failed"]),
                *(number(row["latency_ms"].get(point)) for point in _POINTS),
            )
            for row in rows
        ),
    )


def _swap(rows: Sequence[Row]) -> Table:
    return Table(
        ("moves", "served", "alias to served p50 ms", "p99 ms", "requests", "failed", *_POINTS.values()),
        tuple(
            (
                number(row["moves"]),
                number(row["moves_served"]),
                number(row["alias_to_served_ms"].get("p50")),
                number(row["alias_to_served_ms"].get("p99")),
                number(row["requests"]),
                number(row["failed"]),
                *(number(row["latency_ms"].get(point)) for point in _POINTS),
            )
            for row in rows
        ),
    )


_POINTS = {"p50": "p50 ms", "p90": "p90 ms", "p99": "p99 ms", "p99_9": "p99.9 ms", "max": "max ms"}

_TABLES: dict[str, Callable[[Sequence[Row]], Table]] = {
    "throughput": _throughput,
    "latency": _latency,
    "swap": _swap,
}
