"""Two regions, each the other's backup, under several times the load that they can answer, and afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from hedgerow_bench import counters, models, throughput, wire_load
from hedgerow_bench.contender import Contender, checked, over_grpc
from hedgerow_bench.load import Load, Outcome
from hedgerow_bench.peers.measure import free_ports
from hedgerow_bench.records import OK, Records, percentiles_ms
from hedgerow_bench.reports import Rows, tell
from hedgerow_bench.subject import own_server

_EAST, _WEST = "east", "west"
_MODEL = "matrices"
#: One row.
_ROW = np.ones((1, models.WIDTH), np.float32)
#: Rows in one run, so that capacity is a matter of the model alone.
_BATCH = 1
#: Requests under way at each region when the peak is looked for.
_PEAK_CALLERS = 16
#: Of the peak, the load after the overload.
_AFTER_LOAD = 0.5
#: A second of the load after is as usual when so much of it is answered in time.
_AS_USUAL = 0.99


@dataclass(frozen=True, slots=True)
class Flood:
    """What is done to the regions.

    Attributes:
        times: The overload, in multiples of the peak.
        seconds: For which it lasts.
        after: Seconds of ordinary load behind it.
        deadline: Seconds, of every request.
        transport: Of the servers.
        megabytes: Of the model's weights; 128 take a run about 4 ms. Being refused costs the server some
            90 µs a request here, four times for each that is answered: what is left for runs is the more,
            the longer they are.
    """

    times: float
    seconds: float
    after: float
    deadline: float
    transport: str
    megabytes: int = 128


async def measure(flood: Flood, loop: throughput.Loop) -> Rows:
    """A row for each phase: peak, overload, and the load after it. Both regions together."""
    model = loop.directory / "overload" / "model.onnx"
    models.write_large(model, flood.megabytes, external=False)
    async with AsyncExitStack() as exits:
        regions = await _start(exits, model, flood, loop)
        peak = await _peak(regions, flood, loop)
        rate = peak * flood.times
        tell(f"peak of both regions: {peak:,.0f} a second; now {rate:,.0f} for {flood.seconds:g} s")
        before = await _hedges(regions)
        began = time.monotonic()
        hot = await _open_loop(regions, rate, flood.seconds, "flood", flood, loop)
        hedges = await _hedges(regions) - before
        calm = await _open_loop(regions, peak * _AFTER_LOAD, flood.after, "after", flood, loop)
        ended = time.monotonic()
        logs = [
            line
            for name in regions
            for line in _log_lines(loop.directory / f"overload-{name}" / "requests.log", began, ended)
        ]
    return [
        {"phase": "peak", "offered": None, "goodput": peak},
        _row("overload", hot, flood, peak)
        | {
            "hedges": hedges,
            "hedge_percent": 100 * hedges / sum(len(outcome.records) for outcome in hot),
            "runs_after_deadline": _late_runs(logs, flood.deadline),
            "timeline": _timeline(hot, flood),
        },
        _row("after", calm, flood, peak)
        | {"as_usual_after_seconds": _as_usual(calm, flood), "timeline": _timeline(calm, flood)},
    ]


async def _start(
    exits: AsyncExitStack, model: Path, flood: Flood, loop: throughput.Loop
) -> dict[str, Contender]:
    """Both regions; each is told where the other is, so their ports are chosen beforehand."""
    ports = dict(zip((_EAST, _WEST), free_ports(2), strict=True))
    found = {}
    for name, other in ((_EAST, _WEST), (_WEST, _EAST)):
        directory = loop.directory / f"overload-{name}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "requests.log").unlink(missing_ok=True)
        subject = await exits.enter_async_context(
            own_server(
                directory,
                transport=flood.transport,
                workers=1,
                models={_MODEL: model},
                cores=loop.cores.server,
                grpc_port=ports[name],
                settings={
                    "HEDGEROW_SERVER__REGION": name,
                    "HEDGEROW_ENGINE__MAX_BATCH_SIZE": str(_BATCH),
                    "HEDGEROW_HEDGE__BACKUPS": f"127.0.0.1:{ports[other]}",
                    "HEDGEROW_LOG__REQUESTS": str(directory / "requests.log"),
                },
            )
        )
        contender = over_grpc(
            name, subject.target, _MODEL, {models.INPUT: _ROW}, metrics=subject.metrics, pid=subject.pid
        )
        found[name] = await checked(contender, None)
    return found


async def _peak(regions: Mapping[str, Contender], flood: Flood, loop: throughput.Loop) -> float:
    """The most answers in time a second that both regions give together, in closed loop."""
    best = 0.0
    for callers in (4, _PEAK_CALLERS, 4 * _PEAK_CALLERS):
        outcomes = await asyncio.gather(
            *(
                wire_load.carry_out(
                    wire_load.plan(
                        contender,
                        loop.directory / f"overload-{name}",
                        "peak",
                        loop.cores,
                        mode="closed",
                        callers=callers,
                        seconds=loop.seconds,
                        deadline=flood.deadline,
                    ),
                    loop.cores,
                )
                for name, contender in regions.items()
            )
        )
        good = sum(int(np.count_nonzero(_in_time(outcome.records, flood))) for outcome in outcomes)
        tell(f"{callers} requests under way at each region: {good / loop.seconds:,.0f} a second in time")
        best = max(best, good / loop.seconds)
    return best


async def _open_loop(
    regions: Mapping[str, Contender],
    rate: float,
    seconds: float,
    name: str,
    flood: Flood,
    loop: throughput.Loop,
) -> list[Outcome]:
    async def one(number: int, region: str, contender: Contender) -> Outcome:
        planned = wire_load.plan(
            contender,
            loop.directory / f"overload-{region}",
            name,
            loop.cores,
            rate=rate / len(regions),
            seconds=seconds,
            deadline=flood.deadline,
            seed=number,
        )
        async with Load(planned, cores=loop.cores.load) as load:
            return await load.finish()

    return list(await asyncio.gather(*(one(number, *pair) for number, pair in enumerate(regions.items()))))


def _in_time(records: Records, flood: Flood) -> npt.NDArray[np.bool_]:
    good: npt.NDArray[np.bool_] = (records.status == OK) & (records.latency <= flood.deadline)
    return good


def _row(phase: str, outcomes: list[Outcome], flood: Flood, peak: float) -> dict[str, Any]:
    records = [outcome.records for outcome in outcomes]
    seconds = flood.seconds if phase == "overload" else flood.after
    good = sum(int(np.count_nonzero(_in_time(each, flood))) for each in records)
    accepted = np.concatenate([each.latency[each.status == OK] for each in records])
    statuses: dict[str, int] = {}
    for each in records:
        for status, count in each.summary()["statuses"].items():
            statuses[_named(status)] = statuses.get(_named(status), 0) + count
    return {
        "phase": phase,
        "offered": sum(len(each) for each in records) / seconds,
        "goodput": good / seconds,
        "of_peak": good / seconds / peak,
        "accepted_ms": percentiles_ms(accepted),
        "deadline_ms": flood.deadline * 1000,
        "statuses": statuses,
        # Being refused is what overload is about; only an answer of another kind is a failure.
        "failed": sum(count for status, count in statuses.items() if status in _FAILURES),
        "generator_cpu": max(outcome.cpu for outcome in outcomes),
    }


def _named(status: str) -> str:
    """A status as gRPC names it, from the number on the wire."""
    number = status.removeprefix("grpc-status ")
    return _STATUSES.get(number, status)


_STATUSES = {str(code.value[0]): code.name for code in grpc.StatusCode}
#: What neither an overloaded server nor a deadline explains.
_FAILURES = ("INTERNAL", "UNKNOWN", "WRONG", "INVALID_ARGUMENT", "NOT_FOUND")


async def _hedges(regions: Mapping[str, Contender]) -> int:
    """Hedges that both have made since they started."""
    pages = await asyncio.gather(*(counters.page(contender.metrics) for contender in regions.values()))
    return int(sum(counters.total(page, "hedgerow_hedges_total") for page in pages))


def _log_lines(path: Path, began: float, ended: float) -> list[dict[str, Any]]:
    offset = time.time() - time.monotonic()
    lines: list[dict[str, Any]] = []
    for file in (path.with_name(path.name + ".1"), path):
        if file.exists():
            lines += [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if began <= line["time"] - offset <= ended]


def _late_runs(lines: list[dict[str, Any]], deadline: float) -> int:
    """Answers that a server gave after the deadline, by its own clock: work for nobody."""
    return sum(1 for line in lines if line["code"] == "OK" and line["total_ms"] > deadline * 1000)


def _timeline(outcomes: list[Outcome], flood: Flood) -> list[dict[str, float]]:
    """Second by second: what was offered, answered in time, and refused."""
    scheduled = np.concatenate([outcome.records.scheduled for outcome in outcomes])
    good = np.concatenate([_in_time(outcome.records, flood) for outcome in outcomes])
    seconds = np.floor(scheduled - scheduled.min()).astype(int)
    return [
        {
            "second": int(second),
            "offered": int(np.count_nonzero(seconds == second)),
            "in_time": int(np.count_nonzero(good & (seconds == second))),
        }
        for second in range(int(seconds.max()) + 1)
    ]


def _as_usual(outcomes: list[Outcome], flood: Flood) -> float | None:
    """Seconds from the end of the overload until all seconds that follow are as usual; None: never."""
    timeline = _timeline(outcomes, flood)
    bad = [entry["second"] for entry in timeline if entry["in_time"] < _AS_USUAL * entry["offered"]]
    last = max(bad, default=-1) + 1
    return None if last >= len(timeline) else float(last)
