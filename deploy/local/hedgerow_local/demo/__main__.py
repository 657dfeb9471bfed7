"""`python -m hedgerow_local.demo`, which is `make demo`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

from hedgerow_bench import machine
from rich.console import Console
from rich.table import Table

from hedgerow_local.addresses import around_proxies
from hedgerow_local.demo.account import Account
from hedgerow_local.demo.fallback import Fallback
from hedgerow_local.demo.hedging import Hedging
from hedgerow_local.demo.outage import Outage
from hedgerow_local.demo.prepare import LoadFeatures, PublishFirst, Start, Train
from hedgerow_local.demo.stage import Scene, SceneFailed, Stage, play
from hedgerow_local.demo.traffic import Rollback, StartLoad, Swap
from hedgerow_local.lock import AlreadyRunning, take

ROOT = Path("var/demo")
SCENES: tuple[Scene, ...] = (
    Train(),
    Start(),
    LoadFeatures(),
    PublishFirst(),
    StartLoad(),
    Swap(),
    Rollback(),
    Outage(),
    Account(),
    Hedging(),
    Fallback(),
)


async def perform(root: Path) -> int:
    """Plays all scenes.

    Args:
        root: Emptied first; holds report.json, latency.png, features.png, hedging.png, requests.npz with
            the record of every request, the models and the stack's logs.

    Returns:
        0 if nothing failed, else 1; 130 after Ctrl-C.
    """
    console = Console(highlight=False)
    try:
        lock = take(root.with_name(root.name + ".lock"))
    except AlreadyRunning as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    with lock:
        return await _perform(root, console)


async def _perform(root: Path, console: Console) -> int:
    os.environ.update(around_proxies())
    quiet = await asyncio.to_thread(_prepare, root)
    interrupted = asyncio.Event()
    acting = asyncio.current_task()
    assert acting is not None

    def interrupt() -> None:
        interrupted.set()
        acting.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, interrupt)
    try:
        async with AsyncExitStack() as exits:
            stage = Stage(root, console, exits)
            stage.report["environment"] = machine.describe() | {"noise": quiet.note}
            try:
                await play(SCENES, stage)
            except SceneFailed as error:
                stage.complaints.append(str(error))
                console.print(f"[bold red]{type(error).__name__}[/] ", end="")
                console.print(str(error), markup=False, soft_wrap=True)
            console.print("\nStopping everything")
    except asyncio.CancelledError:
        if not interrupted.is_set():
            raise
        console.print("Interrupted")
        return 130
    stage.report["complaints"] = stage.complaints
    stage.report["ok"] = not stage.complaints
    (root / "report.json").write_text(json.dumps(stage.report, indent=2) + "\n")
    _summarise(console, stage, quiet.note)
    return 1 if stage.complaints else 0


def _prepare(root: Path) -> machine.Quiet:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return machine.listen()


def _summarise(console: Console, stage: Stage, noise: str) -> None:
    report = stage.report
    if "swap" in report and "fallback" in report:
        swap, rollback, scores = report["swap"], report["rollback"], report["model"]["versions"]
        outage, hedging = report["features"]["outage"], report["hedging"]
        table = Table(show_header=False, box=None, padding=(0, 2))
        rows = {
            "requests": f"{report['requests']:,} checked, {report['failed']} failed",
            "mean error of the model": " -> ".join(f"v{s['version']} {s['mae']:.2f} min" for s in scores),
            "alias moved to first reply of v2": f"{swap['alias_to_served_ms']:,.0f} ms",
            "p99 before, during the swap": f"{swap['p99_ms_before']:.1f} ms, {swap['p99_ms_during']:.1f} ms",
            "rollback command to last reply of v2": f"{rollback['ms']:.0f} ms",
            "PostgreSQL killed to first stale reply": f"{outage['first_stale_seconds']:.2f} s",
            "replies during the outage": ", ".join(f"{n:,} {age}" for age, n in outage["during"].items()),
            "both back to as fresh as before": f"{outage['fresh_again_seconds']:.2f} s",
            "p99.9 with 1 % stalled": (
                f"{hedging['latency_ms']['without']['p99_9']:.0f} ms; hedged"
                f" {hedging['latency_ms']['with']['p99_9']:.0f} ms,"
                f" for {hedging['extra_percent']:.1f} % more requests"
            ),
            "a failing version's requests": ", ".join(
                f"{count:,} {outcome}" for outcome, count in report["fallback"]["outcomes"].items()
            ),
            "all of it": f"{time.monotonic() - stage.began:.0f} s",
        }
        for name, value in rows.items():
            table.add_row(name, f"[bold]{value}[/]")
        console.print("\n[bold]Summary[/]")
        console.print(table, soft_wrap=True)
    for complaint in stage.complaints:
        console.print("[red]failed:[/] ", end="")
        console.print(complaint, markup=False, soft_wrap=True)
    if noise:
        console.print(f"[yellow]{noise}[/]", soft_wrap=True)
    files = ("report.json", "latency.png", "features.png", "hedging.png", "stack/log/")
    console.print("  ".join(f"{stage.root}/{name}" for name in files), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(perform(ROOT)))
