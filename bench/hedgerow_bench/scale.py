"""What grows: workers, models in memory with traffic on all, and what an idle server uses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hedgerow_bench import counters, mlp, procfs, throughput
from hedgerow_bench.contender import Contender, checked, over_grpc
from hedgerow_bench.cores import Cores, available, divide
from hedgerow_bench.h2load import Shot
from hedgerow_bench.pair import HEDGEROW, ROW
from hedgerow_bench.reports import Report, Rows, tell
from hedgerow_bench.spread import interleaved, ratios, spread
from hedgerow_bench.subject import MLP_SEED, own_server
from hedgerow_bench.throughput import BUSY

#: Requests under way.
CONCURRENCY = 64
#: Connections for each worker: a worker is chosen by connection, so few would land unevenly.
CONNECTIONS = 16


async def workers(counts: Sequence[int], loop: throughput.Loop, transport: str, report: Report) -> Rows:
    """A row for each number of workers: answers per second, and each worker's share of the work."""
    rows = []
    for count in counts:
        cores = divide(available(), count)
        if cores.note:
            report.note(f"{count} workers: {cores.note}")
        directory = loop.directory / f"workers-{count}"
        async with own_server(directory, transport=transport, workers=count, cores=cores.server) as subject:
            contender = await checked(
                over_grpc(HEDGEROW, subject.target, "mlp", {mlp.INPUT: ROW}, metrics=subject.metrics),
                mlp.answer(ROW, MLP_SEED),
            )
            before = await counters.read(subject.metrics)
            (row,) = await throughput.measure(
                [contender],
                [throughput.split(CONCURRENCY, CONNECTIONS * count)],
                throughput.Loop(loop.rounds, loop.seconds, loop.warm_up, directory, cores),
                tell,
            )
            after = await counters.read(subject.metrics)
        rows.append(
            {"workers": count, "shares": _shares(before, after), "shared_cores": bool(cores.note)} | row
        )
    return rows


def _shares(before: counters.Counters, after: counters.Counters) -> dict[str, Any]:
    """Each worker's part of the requests; of the CPU time where the server does not count them by worker."""
    by: str = "requests" if after.workers else "cpu"
    earlier: Any = before.workers if after.workers else before.cpu_seconds
    later: Any = after.workers or after.cpu_seconds
    grown = {name: value - earlier.get(name, 0) for name, value in later.items() if name != "supervisor"}
    total = sum(grown.values()) or 1
    return {"by": by, "of_workers": {name: value / total for name, value in grown.items()}}


async def models(
    counts: Sequence[int], callers: Sequence[int], loop: throughput.Loop, transport: str
) -> Rows:
    """A row for each number of models and of requests under way; servers up together, interleaved.

    All models are loaded and asked in turn. Requests of different models share no run, so the fewer are under
    way for each, the smaller the runs.
    """
    async with AsyncExitStack() as stack:
        contenders: dict[int, Contender] = {}
        for count in counts:
            contenders[count] = await _serving(count, loop, transport, stack)
            tell(f"a server with {count} models is ready")
        kinds = [(under_way, count) for under_way in callers for count in counts]
        shots: dict[tuple[int, int], list[Shot]] = {kind: [] for kind in kinds}
        for number, kind in interleaved(loop.rounds, kinds):
            under_way, count = kind
            shot = await throughput.shoot_varied(contenders[count], loop, *throughput.split(under_way))
            shots[kind].append(shot)
            tell(
                f"round {number + 1}/{loop.rounds}, {under_way} under way, {count} models: "
                f"{shot.per_second:,.0f}/s"
            )
    rates = {kind: [shot.per_second for shot in each] for kind, each in shots.items()}
    taken = {kind: [shot.server_us for shot in each] for kind, each in shots.items()}
    cpu = {kind: max(shot.cpu for shot in each) for kind, each in shots.items()}
    return [
        {
            "models": kind[1],
            "concurrency": kind[0],
            "per_second": spread(rates[kind]),
            "to_first": ratios(rates[kind], rates[kind[0], counts[0]]),
            # What is left of one model's speed where the server's core is the only limit.
            "server_us": spread(taken[kind]),
            "server_to_first": ratios(taken[kind[0], counts[0]], taken[kind]),
            "requests": sum(shot.requests for shot in each),
            "failed": sum(shot.failed for shot in each),
            "generator_cpu": cpu[kind],
            "generator_was_the_limit": cpu[kind] > BUSY,
        }
        for kind, each in shots.items()
    ]


async def _serving(count: int, loop: throughput.Loop, transport: str, stack: AsyncExitStack) -> Contender:
    """A server with so many models; the contender's body holds a request for each, in no order."""
    directory = loop.directory / f"models-{count}"
    names = [f"mlp-{number:02}" for number in range(count)]
    files: dict[str, Path] = {}
    for seed, name in enumerate(names):
        files[name] = directory / name / "model.onnx"
        mlp.write(files[name], seed)
    subject = await stack.enter_async_context(
        own_server(directory, transport=transport, workers=1, models=files, cores=loop.cores.server)
    )
    bodies = []
    for seed, name in enumerate(names):
        asked = over_grpc(name, subject.target, name, {mlp.INPUT: ROW})
        bodies.append((await checked(asked, mlp.answer(ROW, seed))).body)
    order = np.random.default_rng(0).permutation(count)
    return Contender(
        f"{count}-models",
        asked.url,
        asked.headers,
        b"".join(bodies[place] for place in order),
        metrics=subject.metrics,
        pid=subject.pid,
    )


async def idle(seconds: float, directory: Path, cores: Cores, transport: str) -> dict[str, float]:
    """CPU time of a server without requests, in parts of one core: of its supervisor and its worker."""
    async with own_server(directory, transport=transport, workers=1, cores=cores.server) as subject:
        contender = over_grpc(HEDGEROW, subject.target, "mlp", {mlp.INPUT: ROW})
        await checked(contender, mlp.answer(ROW, MLP_SEED))
        await asyncio.sleep(1)
        processes = [process.pid for process in procfs.family(subject.pid)]
        before = {pid: procfs.cpu_seconds(pid) for pid in processes}
        await asyncio.sleep(seconds)
        used = {pid: (procfs.cpu_seconds(pid) - before[pid]) / seconds for pid in processes}
    supervisor = used.pop(subject.pid)
    tell(f"idle: worker {sum(used.values()):.3%} of a core, supervisor {supervisor:.3%}")
    return {"seconds": seconds, "supervisor": supervisor, "worker": sum(used.values())}
