"""Joining features: Hedgerow's join, its server, and Feast's Python SDK, on one Valkey and the same data."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hedgerow_local import valkey_server

from hedgerow_bench import features_data as data
from hedgerow_bench import latency, models, throughput
from hedgerow_bench.contender import Contender, checked, over_grpc
from hedgerow_bench.features_reader import Reader, reading
from hedgerow_bench.peers import catalog
from hedgerow_bench.peers.install import NotInstalled, install
from hedgerow_bench.peers.measure import free_ports
from hedgerow_bench.process import NotReady, running
from hedgerow_bench.records import curve_ms, percentiles_ms
from hedgerow_bench.reports import Report, Rows, tell
from hedgerow_bench.spread import interleaved, ratios, spread
from hedgerow_bench.subject import own_server

HEDGEROW, FEAST = "hedgerow", "feast"
#: p99 of the join in milliseconds, by entities in a request; and how much faster than Feast it must be.
TARGETS_MS = {1: 1.5, 100: 8.0}
TARGET_RATIO = 5.0
#: A reader that is asked for so many seconds is given these on top.
_WITHIN = 60.0
#: Different requests to the whole server.
_BODIES = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        entities: In one request; each is measured.
        rates: Requests per second in open loop; each is measured.
        seconds: Of each open loop.
        loop: Rounds and seconds of the closed loops; directory and cores.
        transport: Of the whole server.
        feast: Whether Feast is installed and asked, too.
    """

    entities: Sequence[int]
    rates: Sequence[float]
    seconds: float
    loop: throughput.Loop
    transport: str
    feast: bool = True


async def measure(plan: Plan, report: Report) -> Rows:
    """Rows of three kinds (`what`): `read`, ours and Feast's in turn; `join` and `server`, open loop."""
    loop = plan.loop
    python = await _feast(loop.directory, report) if plan.feast else None
    async with valkey(loop) as port, AsyncExitStack() as stack:
        cache = f"redis://127.0.0.1:{port}/0"
        numbers = data.values()
        await data.fill(cache, numbers)
        command = (sys.executable, "-m", "hedgerow_bench.features_join", cache)
        ours = await stack.enter_async_context(
            reading(HEDGEROW, command, loop.directory / "features-join.log", loop.cores.server, os.environ)
        )
        readers = [ours]
        if python is not None:
            try:
                readers.append(await stack.enter_async_context(_reading_feast(python, port, numbers, loop)))
            except NotReady as error:
                _leave_out(report, str(error))
        rows = [await _in_turn(readers, entities, plan, report) for entities in plan.entities]
        rows += [
            await _open_loop(ours, entities, rate, plan) for entities in plan.entities for rate in plan.rates
        ]
        # Only now: its processes would share the readers' core.
        await stack.aclose()
        rows += await _whole_server(cache, numbers, plan)
    return rows


@asynccontextmanager
async def valkey(loop: throughput.Loop) -> AsyncIterator[int]:
    """A Valkey of its own, beside the load; yields its port: Feast connects by TCP alone, so all do."""
    (port,) = free_ports(1)
    log = loop.directory / "valkey.log"

    def ready() -> bool | None:
        return valkey_server.READY in log.read_text(errors="replace") or None

    # Short, for the socket in it.
    with tempfile.TemporaryDirectory(prefix="hedgerow-") as directory:
        command = (*valkey_server.command(Path(directory)), "--port", str(port), "--bind", "127.0.0.1")
        async with running(command, log, ready, within=30, cores=loop.cores.load):
            yield port


async def _feast(directory: Path, report: Report) -> Path | None:
    requirements = catalog.pins()[FEAST]
    tell(f"installing {requirements[0]}")
    try:
        return await install(directory / "peers" / FEAST, requirements)
    except (NotInstalled, OSError) as error:
        _leave_out(report, str(error))
        return None


def _leave_out(report: Report, why: str) -> None:
    line = f"Feast is left out: {' '.join(why.split())}"
    tell(line)
    report.note(line)


@asynccontextmanager
async def _reading_feast(
    python: Path, port: int, numbers: np.ndarray[Any, Any], loop: throughput.Loop
) -> AsyncIterator[Reader]:
    directory = python.parents[2]
    np.save(directory / "values.npy", numbers)
    (directory / "repository" / "registry.db").unlink(missing_ok=True)
    command = (
        str(python),
        str(catalog.SERVERS / "feast_reader.py"),
        str(directory / "values.npy"),
        str(port),
        str(directory / "repository"),
    )
    environment = {**os.environ, "HOME": str(directory), "FEAST_USAGE": "False", "OMP_NUM_THREADS": "1"}
    async with reading(FEAST, command, directory / "feast.log", loop.cores.server, environment) as reader:
        yield reader


async def _in_turn(readers: Sequence[Reader], entities: int, plan: Plan, report: Report) -> dict[str, Any]:
    """One request at a time, each reader in turn."""
    loop = plan.loop
    runs: dict[str, list[Mapping[str, Any]]] = {reader.name: [] for reader in readers}
    for reader in readers:
        await reader.carry_out(_WITHIN, entities=entities, seconds=loop.warm_up, seed=99)
    try:
        for number, reader in interleaved(loop.rounds, readers):
            answer = await reader.carry_out(_WITHIN, entities=entities, seconds=loop.seconds, seed=number)
            runs[reader.name].append(answer)
            tell(
                f"round {number + 1}/{loop.rounds}, {entities} entities: {reader.name} "
                f"p50 {np.median(answer['latency']) * 1e3:.3f} ms"
            )
    except NotReady as error:
        if reader.name == HEDGEROW:
            raise
        _leave_out(report, str(error))
        del runs[FEAST]
    return in_turn_row(entities, runs)


def in_turn_row(entities: int, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The row of readers that were asked in turn.

    Args:
        entities: In each request.
        runs: By reader, ours first, what each round answered: `latency` in seconds, `failed`, `cpu`, and
            of Feast `before_dict`, its latencies without to_dict().
    """
    ours = runs[HEDGEROW]
    middles = {name: [_ms(run["latency"]) for run in each] for name, each in runs.items()}
    row: dict[str, Any] = {
        "what": "read",
        "entities": entities,
        "features": data.FEATURES,
        "readers": {
            name: {
                "p50_ms": spread(middles[name]),
                "p99_ms": spread([float(np.quantile(run["latency"], 0.99)) * 1e3 for run in each]),
                "requests": sum(len(run["latency"]) for run in each),
                "cpu": float(np.mean([run["cpu"] for run in each])),
            }
            for name, each in runs.items()
        },
        "failed": sum(run["failed"] for each in runs.values() for run in each),
    }
    theirs = runs.get(FEAST, ())
    if len(theirs) == len(ours):
        before_dict = [_ms(run["before_dict"]) for run in theirs]
        row["times_faster"] = ratios(middles[FEAST], middles[HEDGEROW])
        row["times_faster_before_dict"] = ratios(before_dict, middles[HEDGEROW])
        row["target"] = TARGET_RATIO
    return row


def _ms(seconds: Sequence[float]) -> float:
    return float(np.median(seconds)) * 1e3


async def _open_loop(ours: Reader, entities: int, rate: float, plan: Plan) -> dict[str, Any]:
    order = {"entities": entities, "seconds": plan.seconds, "rate": rate, "seed": 1}
    answer = await ours.carry_out(_WITHIN, **order, pacer=list(plan.loop.cores.load))
    row = open_loop_row(entities, rate, answer)
    tell(
        f"join, {entities} entities, {rate:,.0f} a second: p50 {row['latency_ms']['p50']:.3f} ms, "
        f"p99 {row['latency_ms']['p99']:.3f} ms"
    )
    return row


def open_loop_row(entities: int, rate: float, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the join in open loop; `answer` as `features_join` gives it."""
    waited, lag = np.asarray(answer["latency"]), np.asarray(answer["lag"])
    return {
        "what": "join",
        "entities": entities,
        "features": data.FEATURES,
        "rate": rate,
        "requests": len(waited),
        "failed": answer["failed"],
        "latency_ms": percentiles_ms(waited),
        "curve_ms": curve_ms(waited),
        "cpu": answer["cpu"],
        "generator_lag_ms": percentiles_ms(lag),
        "generator_was_the_limit": latency.was_late(waited, lag),
        "target_p99_ms": TARGETS_MS.get(entities),
    }


async def _whole_server(cache: str, numbers: np.ndarray[Any, Any], plan: Plan) -> Rows:
    """The server by gRPC: ids in, and for comparison the same rows in place of ids."""
    loop = plan.loop
    path = data.write_model(loop.directory)
    settings = {
        "HEDGEROW_FEATURES__CACHE": cache,
        "HEDGEROW_FEATURES__LOCAL_TTL_MS": "0",
        "HEDGEROW_FEATURES__BUDGET_MS": "1000",
        "HEDGEROW_FEATURES__CACHE_TIMEOUT_MS": "1000",
    }
    rows: Rows = []
    async with own_server(
        loop.directory,
        transport=plan.transport,
        workers=1,
        models={"features": path},
        cores=loop.cores.server,
        settings=settings,
    ) as subject:
        for entities in plan.entities:
            asked = data.questions(entities, _BODIES, 7)
            for sent, inputs in (
                ("ids", [{data.KEY: ids} for ids in asked]),
                ("rows", [{models.INPUT: numbers[ids]} for ids in asked]),
            ):
                # The model answers each row's first number.
                each = [
                    over_grpc(HEDGEROW, subject.target, "features", one, metrics=subject.metrics)
                    for one in inputs
                ]
                first: Contender = await checked(each[0], numbers[asked[0], 0])
                together = replace(first, body=b"".join(one.body for one in each))
                for rate in plan.rates:
                    row = await latency.at_rate(together, rate, plan.seconds, loop.directory, loop.cores)
                    rows.append({"what": "server", "sent": sent, "entities": entities} | row)
    return rows
