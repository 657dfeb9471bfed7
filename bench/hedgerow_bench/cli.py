"""`hedgerow bench`: measures this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import cyclopts
import numpy as np

from hedgerow_bench import cores, h2load, measure, reports, throughput
from hedgerow_bench.contender import Contender, checked, over_grpc
from hedgerow_bench.options import (
    DEFAULT_OUT,
    AsJson,
    Model,
    Out,
    Rounds,
    Seconds,
    Smoke,
    Target,
    Transport,
)
from hedgerow_bench.pair import pair
from hedgerow_bench.reports import Notes, Rows, tell
from hedgerow_bench.subject import Subject, own_server, own_stack, running_server

app = cyclopts.App(
    name="hedgerow bench",
    help="Measures this machine.",
    help_epilogue="Exit codes: 0 done; 1 a request failed; 2 nothing could be measured; 130 stopped.",
    help_prologue="""Examples:
  hedgerow bench throughput --callers 1 --callers 64
  hedgerow bench latency --rate 300 --rate 1000 --seconds 20
  hedgerow bench latency --target 127.0.0.1:8001 --model arrival-delay
  hedgerow bench swap --moves 20 --seconds 60""",
    help_format="plaintext",
)


@app.command(name="throughput")
def throughput_command(
    *,
    callers: Annotated[
        tuple[int, ...], cyclopts.Parameter(help="Requests under way at any time; repeatable.")
    ] = (1, 16, 64, 256),
    connections: Annotated[
        tuple[int, ...], cyclopts.Parameter(help="To spread them over, if so many; repeatable.")
    ] = (throughput.CONNECTIONS,),
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    target: Target = None,
    model: Model = "mlp",
    transport: Transport = "auto",
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Answers per second, beside a hand-written grpc.aio handler (closed loop)."""
    if smoke:
        callers, connections, rounds, seconds = callers[:2], connections[:1], 1, 0.3
    splits = list(
        dict.fromkeys(throughput.split(count, wanted) for count in callers for wanted in connections)
    )

    async def run(notes: Notes) -> Rows:
        divided = cores.divide(cores.available())
        notes.add(divided.note)
        loop = throughput.Loop(rounds, seconds, min(0.5, seconds), out, divided)
        async with _contenders(target, model, out, transport, divided) as contenders:
            return await throughput.measure(contenders, splits, loop, tell)

    facts = {"generator": h2load.version()}
    return reports.run("throughput", run, out, command=_command(), as_json=as_json, facts=facts)


@asynccontextmanager
async def _contenders(
    target: str | None, model: str, out: Path, transport: str, divided: cores.Cores
) -> AsyncIterator[list[Contender]]:
    """Hedgerow and the hand-written handler, or the running server alone."""
    if target is None:
        async with pair(out, divided, transport=transport) as contenders:
            yield contenders
        return
    subject = await running_server(target, model, out)
    with np.load(subject.inputs) as rows:
        inputs = {name: rows[name][:1] for name in rows.files}
    yield [await checked(over_grpc(target, target, model, inputs), None)]


@app.command
def latency(
    *,
    rate: Annotated[tuple[float, ...], cyclopts.Parameter(help="Requests per second; repeatable.")] = (
        300.0,
        1000.0,
    ),
    seconds: Seconds = 10.0,
    target: Target = None,
    model: Model = "mlp",
    transport: Transport = "auto",
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Latency at fixed rates (open loop, counted from when each request was due)."""

    async def run(notes: Notes) -> Rows:
        del notes
        async with _subject(target, model, out, transport) as subject:
            return await measure.latency(subject, rate, seconds, out, tell)

    return reports.run("latency", run, out, command=_command(), as_json=as_json)


@app.command
def swap(
    *,
    moves: Annotated[int, cyclopts.Parameter(help="How often the alias champion moves.")] = 20,
    seconds: Seconds = 60.0,
    rate: Annotated[float, cyclopts.Parameter(help="Requests per second meanwhile.")] = 300.0,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Alias moves under load, on a local stack of its own."""

    async def run(notes: Notes) -> Rows:
        del notes
        tell("starting MLflow, control plane and servers")
        async with own_stack(out) as at:
            return [await measure.swap(at["server"], at["mlflow"], moves, seconds, rate, out, tell)]

    return reports.run("swap", run, out, command=_command(), as_json=as_json)


@app.default
def everything(*, smoke: Smoke = False, out: Out = DEFAULT_OUT, as_json: AsJson = False) -> int:
    """Throughput, latency and swap, one after the other."""
    del smoke
    return max(one(out=out, as_json=as_json) for one in (throughput_command, latency, swap))


@asynccontextmanager
async def _subject(target: str | None, model: str, out: Path, transport: str) -> AsyncIterator[Subject]:
    if target is not None:
        yield await running_server(target, model, out)
        return
    async with own_server(out, transport=transport, workers=1) as subject:
        yield subject


def _command() -> str:
    """What was typed, for the report."""
    return "hedgerow bench " + shlex.join(_arguments)


#: Of this call; `run` sets them.
_arguments: list[str] = []


def run(arguments: list[str] | None = None) -> int:
    """Returns 0, 1 if a request failed, 2 if nothing could be measured."""
    _arguments[:] = sys.argv[1:] if arguments is None else arguments
    return int(app(_arguments, result_action="return_value") or 0)


def main() -> None:
    """Exits as `run` returns."""
    sys.exit(run())
