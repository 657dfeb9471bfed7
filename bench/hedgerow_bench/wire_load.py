"""Runs of the fast generator against a contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hedgerow_bench.contender import Contender
from hedgerow_bench.cores import Cores
from hedgerow_bench.load import Load, Outcome
from hedgerow_bench.wire_plan import WirePlan


def plan(contender: Contender, directory: Path, name: str, cores: Cores, **settings: Any) -> WirePlan:
    """What to do.

    Args:
        contender: A gRPC server.
        directory: For files.
        name: Of the run: NAME.npz keeps its records.
        cores: Of servers and load; the generator polls only on a core of its own.
        settings: Of the plan.
    """
    bodies = directory / "request.bin"
    bodies.write_bytes(contender.body)
    return WirePlan(
        target=contender.url.removeprefix("http://").partition("/")[0],
        bodies=str(bodies),
        records=str(directory / f"{name}.npz"),
        spin=not cores.note,
        **settings,
    )


async def carry_out(planned: WirePlan, cores: Cores) -> Outcome:
    """Runs a plan to its end."""
    async with Load(planned, cores=cores.load) as load:
        return await load.finish()


async def closed_loop(
    contender: Contender,
    *,
    connections: int,
    streams: int,
    seconds: float,
    warm_up: float,
    directory: Path,
    cores: Cores,
) -> Outcome:
    """Keeps connections x streams requests under way; returns what was answered after the warm-up."""
    planned = plan(
        contender,
        directory,
        "closed",
        cores,
        mode="closed",
        callers=connections * streams,
        connections=connections,
        seconds=seconds + warm_up,
    )
    async with Load(planned, cores=cores.load) as load:
        outcome = await load.finish()
        began = load.started + warm_up
    # An answer counts when it comes; so do those of requests from before the window.
    answered = outcome.records.scheduled + outcome.records.latency
    inside = (answered >= began) & (answered < began + seconds)
    return Outcome(outcome.records.where(inside), outcome.cpu)
