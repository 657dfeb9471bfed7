"""Latency: alone on the server beside the hand-written handler, and in open loop at fixed rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hedgerow_bench import procfs, throughput, wire_load
from hedgerow_bench.contender import Contender
from hedgerow_bench.cores import Cores
from hedgerow_bench.load import Outcome
from hedgerow_bench.records import Records, curve_ms, percentiles_ms
from hedgerow_bench.reports import Rows, tell
from hedgerow_bench.spread import interleaved, ratios, spread

#: Requests under way when the upper bound of a server's capacity is measured.
CAPACITY_CONCURRENCY = 64
#: Seconds that nine tenths of the requests wait at most while a server keeps up. In a second of 5 % too
#: many, 50 ms worth of them gather.
_STANDING_QUEUE = 0.01
#: A generator that is late by more than this part of what it measures measured itself.
_LATE = 0.5


async def alone(
    contenders: Sequence[Contender], rounds: int, seconds: float, directory: Path, cores: Cores
) -> Rows:
    """One request at a time, interleaved: the whole latency of a call on an idle server.

    Returns:
        A row for each server: spreads of its rounds' p50 and p99, all rounds together as
        `latency_ms`, and for the first the `ratios` to each other.
    """
    runs: dict[str, list[Records]] = {contender.name: [] for contender in contenders}
    for number, contender in interleaved(rounds, contenders):
        settings = {"mode": "closed", "callers": 1, "connections": 1, "seconds": seconds}
        outcome = await wire_load.carry_out(
            wire_load.plan(contender, directory, "alone", cores, **settings), cores
        )
        runs[contender.name].append(outcome.records)
        tell(
            f"round {number + 1}/{rounds}, one at a time: {contender.name} "
            f"p50 {outcome.records.percentiles_ms().get('p50', 0):.3f} ms"
        )
    rows = []
    points = {
        name: {
            point: [records.percentiles_ms().get(point, 0.0) for records in each] for point in ("p50", "p99")
        }
        for name, each in runs.items()
    }
    first, *others = runs
    for name, each in runs.items():
        latencies = np.concatenate([records.latency for records in each])
        row: dict[str, Any] = {
            "server": name,
            "requests": len(latencies),
            "failed": sum(records.failed for records in each),
            "p50_ms": spread(points[name]["p50"]),
            "p99_ms": spread(points[name]["p99"]),
            "latency_ms": percentiles_ms(latencies),
        }
        if name == first:
            row["ratios"] = {
                other: {point: ratios(points[first][point], points[other][point]) for point in ("p50", "p99")}
                for other in others
            }
        rows.append(row)
    return rows


async def capacity(contender: Contender, seconds: float, directory: Path, cores: Cores) -> float:
    """Requests per second that a server keeps up with in open loop.

    Less than it answers in closed loop, which is asked for an upper bound first: there its requests come
    in batches. Found by halving the range, to 3 % of that.
    """
    loop = throughput.Loop(3, seconds, min(0.5, seconds), directory, cores)
    (row,) = await throughput.measure([contender], [throughput.split(CAPACITY_CONCURRENCY)], loop, tell)
    low, high = 0.0, float(row["servers"][contender.name]["per_second"]["median"])
    smallest = high / 32
    while high - low > smallest:
        rate = (low + high) / 2
        outcome = await wire_load.carry_out(
            wire_load.plan(contender, directory, "capacity", cores, rate=rate, seconds=seconds), cores
        )
        if keeps_up(outcome.records):
            low = rate
        else:
            high = rate
        tell(f"{contender.name} {'keeps' if low == rate else 'does not keep'} up with {rate:,.0f} a second")
    return low or smallest


def keeps_up(records: Records) -> bool:
    """Whether a server answered as fast as it was asked: else its queue grows, and nearly all wait in it."""
    return not records.failed and float(np.quantile(records.latency, 0.9)) < _STANDING_QUEUE


async def at_rate(
    contender: Contender, rate: float, seconds: float, directory: Path, cores: Cores
) -> dict[str, Any]:
    """Open loop with Poisson arrivals; a row.

    With the part of a core that the server used: half of the requests that it can answer may take nearly all
    of its core, since the fewer come at once, the more each costs.
    """
    name = f"latency-{contender.name.replace(':', '-')}-{rate:.0f}"
    before = procfs.cpu_seconds_of_family(contender.pid) if contender.pid else 0.0
    outcome = await wire_load.carry_out(
        wire_load.plan(contender, directory, name, cores, rate=rate, seconds=seconds), cores
    )
    row: dict[str, Any] = {"server": contender.name, "rate": round(rate, 1)} | facts(outcome)
    if contender.pid and len(outcome.records):
        # Outside of the run it does next to nothing; one that does not keep up is at it for longer.
        records = outcome.records
        lasted = float(np.max(records.scheduled + records.latency) - np.min(records.scheduled))
        row["server_cpu"] = (procfs.cpu_seconds_of_family(contender.pid) - before) / max(seconds, lasted)
    tell(
        f"{contender.name}, {rate:,.0f} a second: p50 {row['latency_ms'].get('p50', 0):.3f} ms, "
        f"p99.9 {row['latency_ms'].get('p99_9', 0):.3f} ms"
    )
    return row


def facts(outcome: Outcome) -> dict[str, Any]:
    """What a run in open loop says."""
    records = outcome.records
    return (
        records.summary()
        | {"curve_ms": curve_ms(records.latency), "generator_cpu": outcome.cpu}
        | {"generator_was_the_limit": was_late(records.latency, records.lag)}
    )


def was_late(latency: npt.NDArray[np.float64], lag: npt.NDArray[np.float64]) -> bool:
    """Whether the generator's own delay makes up much of the measured tail."""
    if not len(latency):
        return False
    return bool(np.quantile(lag, 0.99) > _LATE * np.quantile(latency, 0.99))
