"""`hedgerow bench`: measures this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cyclopts
import numpy as np
from cyclopts import Parameter, validators

from hedgerow_bench import (
    cores,
    features,
    h2load,
    hedge,
    latency,
    loads,
    overload,
    reports,
    scale,
    tensors,
    throughput,
)
from hedgerow_bench import swap as swaps
from hedgerow_bench.contender import Contender, checked, over_grpc
from hedgerow_bench.options import (
    DEFAULT_OUT,
    AsJson,
    Model,
    Out,
    Percent,
    Rounds,
    Seconds,
    Smoke,
    Target,
    Transport,
)
from hedgerow_bench.pair import pair
from hedgerow_bench.peers import measure as peers
from hedgerow_bench.peers.catalog import PEERS
from hedgerow_bench.reports import Report, Rows, tell
from hedgerow_bench.subject import own_stack, running_server

app = cyclopts.App(
    name="hedgerow bench",
    help="Measures this machine.",
    help_epilogue="Exit codes: 0 done; 1 a request failed; 2 nothing could be measured; 130 stopped.",
    help_prologue="""Examples:
  hedgerow bench                                  everything but features and peers
  hedgerow bench throughput --callers 1 --callers 64
  hedgerow bench latency --rate 300 --load 50% --seconds 20
  hedgerow bench latency --target 127.0.0.1:8001 --model arrival-delay
  hedgerow bench swap --moves 20 --seconds 60
  hedgerow bench features --entities 1
  hedgerow bench hedge --rate 500 --seconds 20
  hedgerow bench peers mosec mlserver""",
    help_format="plaintext",
)


@app.command(name="throughput")
def throughput_command(
    *,
    callers: Annotated[tuple[int, ...], Parameter(help="Requests under way at any time; repeatable.")] = (
        1,
        16,
        64,
        256,
    ),
    connections: Annotated[
        tuple[int, ...], Parameter(help="To spread them over, if so many; repeatable.")
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
        callers, connections, rounds, seconds = callers[:2], connections[:1], 1, 0.5
    splits = list(
        dict.fromkeys(throughput.split(count, wanted) for count in callers for wanted in connections)
    )

    async def run(report: Report) -> Rows:
        loop = _loop(report, rounds, seconds, out)
        report.facts["generator"] = h2load.version() or "hedgerow_bench.wire"
        async with _contenders(target, model, transport, loop) as contenders:
            return await throughput.measure(contenders, splits, loop, tell)

    return _report("throughput", run, out, as_json=as_json)


@app.command(name="latency")
def latency_command(
    *,
    rate: Annotated[tuple[float, ...], Parameter(help="Requests per second; repeatable.")] = (300.0, 1000.0),
    load: Annotated[
        tuple[Percent, ...], Parameter(help="Of each server's measured capacity; repeatable.")
    ] = (0.5,),
    rounds: Rounds = 5,
    seconds: Seconds = 10.0,
    target: Target = None,
    model: Model = "mlp",
    transport: Transport = "auto",
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Latency one at a time and at fixed rates (open loop, from when each request was due)."""
    if smoke:
        rate, rounds, seconds = rate[:1], 1, 0.5

    async def run(report: Report) -> Rows:
        loop = _loop(report, rounds, min(seconds, 2.0), out)
        rows = []
        async with _contenders(target, model, transport, loop) as contenders:
            report.facts["alone"] = await latency.alone(contenders, rounds, loop.seconds, out, loop.cores)
            for each in rate:
                rows += [await latency.at_rate(one, each, seconds, out, loop.cores) for one in contenders]
            for share in load:
                for one in contenders:
                    capacity = await latency.capacity(one, loop.seconds, out, loop.cores)
                    row = await latency.at_rate(one, capacity * share, seconds, out, loop.cores)
                    rows.append(row | {"load": share, "capacity": round(capacity, 1)})
        return rows

    return _report("latency", run, out, as_json=as_json)


@app.command
def swap(
    *,
    moves: Annotated[int, Parameter(help="How often the alias champion moves.")] = 20,
    seconds: Seconds = 60.0,
    rate: Annotated[float, Parameter(help="Requests per second meanwhile.")] = 300.0,
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Latency while an alias moves, on a local stack of its own."""
    if smoke:
        moves, seconds, rate = 2, 6.0, 50.0

    async def run(report: Report) -> Rows:
        report.note(cores.divide(cores.available(), 0).note)
        tell("starting MLflow, control plane and servers")
        async with own_stack(out) as at:
            return [await swaps.swap(at["server"], at["mlflow"], moves, seconds, rate, out, tell)]

    return _report("swap", run, out, as_json=as_json)


@app.command(name="loads")
def loads_command(
    *,
    times: Annotated[int, Parameter(help="How often the large model is loaded and dropped.")] = 20,
    megabytes: Annotated[int, Parameter(help="Of its weights.")] = 200,
    load: Annotated[Percent, Parameter(help="Of capacity, that the small model serves meanwhile.")] = 0.5,
    rate: Annotated[
        float | None,
        Parameter(validator=validators.Number(gt=0), help="Requests a second, in place of --load."),
    ] = None,
    quiet: Annotated[float, Parameter(help="Seconds without loading, before and after.")] = 8.0,
    transport: Transport = "auto",
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """A small model's latency while a large one is loaded and dropped; memory before and after."""
    if smoke:
        times, megabytes, quiet = 1, 8, 0.5

    async def run(report: Report) -> Rows:
        cores = _loop(report, 1, quiet, out).cores
        cycle = loads.Cycle(times, megabytes, quiet, load, out, cores, transport, rate)
        return await loads.measure(cycle)

    return _report("loads", run, out, as_json=as_json)


@app.command(name="tensors")
def tensors_command(
    *,
    size: Annotated[tuple[str, ...], Parameter(help=f"Of {', '.join(tensors.SHAPES)}; repeatable.")] = tuple(
        tensors.SHAPES
    ),
    rounds: Rounds = 5,
    seconds: Seconds = 1.0,
    transport: Transport = "auto",
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Megabytes a second by size of the input, beside the hand-written handler."""
    if smoke:
        size, rounds, seconds = size[:1], 1, 0.3

    async def run(report: Report) -> Rows:
        return await tensors.measure(_loop(report, rounds, seconds, out), size, transport)

    return _report("tensors", run, out, as_json=as_json)


@app.command(name="scale")
def scale_command(
    *,
    workers: Annotated[
        tuple[int, ...], Parameter(help="Worker processes; repeatable. Without it, 1 to the cores.")
    ] = (),
    models: Annotated[tuple[int, ...], Parameter(help="Models loaded and asked; repeatable.")] = (1, 8, 64),
    callers: Annotated[tuple[int, ...], Parameter(help="Requests under way over all models; repeatable.")] = (
        64,
        256,
    ),
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    idle: Annotated[float, Parameter(help="Seconds for which a server without requests is watched.")] = 15.0,
    transport: Transport = "auto",
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """1 to N workers, 1 to 64 models with traffic on all, and the CPU use of an idle server."""
    if smoke:
        workers, models, callers, rounds, seconds, idle = (1,), (1, 2), (64,), 1, 0.3, 1.0

    async def run(report: Report) -> Rows:
        loop = _loop(report, rounds, seconds, out)
        report.facts["idle"] = await scale.idle(idle, out, loop.cores, transport)
        counts = workers or tuple(range(1, len(cores.available() or (0,)) + 1))
        return [
            *await scale.models(models, callers, loop, transport),
            *await scale.workers(counts, loop, transport, report),
        ]

    return _report("scale", run, out, as_json=as_json)


@app.command(name="features")
def features_command(
    *,
    entities: Annotated[tuple[int, ...], Parameter(help="In one request; repeatable.")] = (1, 100),
    rate: Annotated[tuple[float, ...], Parameter(help="Requests per second, in open loop; repeatable.")] = (
        100.0,
        500.0,
    ),
    feast: Annotated[bool, Parameter(help="Install and ask Feast, too.")] = True,
    rounds: Rounds = 5,
    seconds: Seconds = 10.0,
    transport: Transport = "auto",
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Joining 250 features from a Valkey, beside Feast's Python SDK on the same Valkey."""
    if smoke:
        entities, rate, rounds, seconds = entities[:1], rate[:1], 1, 0.5

    async def run(report: Report) -> Rows:
        loop = _loop(report, rounds, min(seconds, 2.0), out)
        return await features.measure(features.Plan(entities, rate, seconds, loop, transport, feast), report)

    return _report("features", run, out, as_json=as_json)


@app.command(name="hedge")
def hedge_command(
    *,
    percent: Annotated[float, Parameter(help="Of the primary's calls stall.")] = 1.0,
    stall: Annotated[float, Parameter(help="Milliseconds that they stall for.")] = 500.0,
    rate: Annotated[float, Parameter(help="Requests per second, in open loop.")] = 500.0,
    rounds: Rounds = 3,
    seconds: Seconds = 15.0,
    transport: Transport = "auto",
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """The tail of a server that stalls now and then: alone, and hedged to a backup region."""
    if smoke:
        rate, rounds, seconds = 200.0, 1, 2.0

    async def run(report: Report) -> Rows:
        loop = replace(_loop(report, rounds, seconds, out), warm_up=min(3.0, seconds))
        return await hedge.measure(hedge.Stalls(percent, stall, rate, transport), loop)

    return _report("hedge", run, out, as_json=as_json)


@app.command(name="overload")
def overload_command(
    *,
    times: Annotated[float, Parameter(help="The overload, in multiples of the peak.")] = 5.0,
    seconds: Annotated[float, Parameter(help="For which the overload lasts.")] = 60.0,
    after: Annotated[float, Parameter(help="Seconds of ordinary load behind it.")] = 15.0,
    deadline: Annotated[float, Parameter(help="Milliseconds, of every request.")] = 250.0,
    megabytes: Annotated[int, Parameter(help="Of the model's weights; 128 take about 4 ms a run.")] = 128,
    transport: Transport = "auto",
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Two regions, each the other's backup, under several times the load they can answer."""
    if smoke:
        seconds, after = 2.0, 2.0

    async def run(report: Report) -> Rows:
        loop = _loop(report, 1, min(4.0, seconds), out)
        flood = overload.Flood(times, seconds, after, deadline / 1000, transport, megabytes)
        return await overload.measure(flood, loop)

    return _report("overload", run, out, as_json=as_json)


@app.command(name="peers")
def peers_command(
    *names: Annotated[str, Parameter(help=f"Of {', '.join(peer.name for peer in PEERS)}; all without.")],
    callers: Annotated[tuple[int, ...], Parameter(help="Requests under way at any time; repeatable.")] = (
        1,
        16,
        64,
    ),
    rounds: Rounds = 3,
    seconds: Seconds = 1.5,
    smoke: Smoke = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """The same model on servers that others wrote, each installed into an environment of its own."""
    if smoke:
        callers, rounds, seconds = callers[:1], 1, 0.3

    async def run(report: Report) -> Rows:
        chosen = peers.choose(names)
        loop = _loop(report, rounds, seconds, out)
        report.facts["generator"] = h2load.version() or "hedgerow_bench.wire"
        pythons = await peers.prepare(chosen, out / "peers")
        return await peers.measure(chosen, pythons, callers, loop, report)

    return _report("peers", run, out, as_json=as_json)


@app.command(name="report")
def report_command(*, out: Out = DEFAULT_OUT) -> int:
    """Makes report.html anew from the JSON files beside it."""
    return reports.show_page(out)


#: What `hedgerow bench` without a name runs.
ALL: tuple[Callable[..., int], ...] = (
    throughput_command,
    latency_command,
    tensors_command,
    scale_command,
    loads_command,
    swap,
    hedge_command,
    overload_command,
)


@app.default
def everything(
    *,
    smoke: Smoke = False,
    and_peers: Annotated[bool, Parameter(name="--peers", negative="", help="Peers, too.")] = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> int:
    """Everything, one after the other; peers only if asked for."""
    worst = reports.DONE
    for one in (*ALL, peers_command) if and_peers else ALL:
        code = one(smoke=smoke, out=out, as_json=as_json)
        if code == reports.STOPPED:
            return code
        worst = max(worst, code)
    return worst


def _loop(report: Report, rounds: int, seconds: float, out: Path) -> throughput.Loop:
    divided = cores.divide(cores.available())
    report.note(divided.note)
    return throughput.Loop(rounds, seconds, min(0.5, seconds), out, divided)


@asynccontextmanager
async def _contenders(
    target: str | None, model: str, transport: str, loop: throughput.Loop
) -> AsyncIterator[list[Contender]]:
    """Hedgerow and the hand-written handler, or the running server alone."""
    if target is None:
        async with pair(loop.directory, loop.cores, transport=transport) as contenders:
            yield contenders
        return
    subject = await running_server(target, model, loop.directory)
    with np.load(subject.inputs) as rows:
        inputs = {name: rows[name][:1] for name in rows.files}
    yield [await checked(over_grpc(target, target, model, inputs), None)]


def _report(name: str, run: Callable[[Report], Awaitable[Rows]], out: Path, *, as_json: bool) -> int:
    return reports.run(name, run, out, command=f"hedgerow bench {shlex.join(_arguments)}", as_json=as_json)


#: Of this call; `run` sets them.
_arguments: list[str] = []


def run(arguments: list[str] | None = None) -> int:
    """Returns 0, 1 if a request failed, 2 if nothing could be measured, 130 if it was stopped."""
    _arguments[:] = sys.argv[1:] if arguments is None else arguments
    return int(app(list(_arguments), result_action="return_value") or 0)


def main() -> None:
    """Exits as `run` returns."""
    sys.exit(run())
