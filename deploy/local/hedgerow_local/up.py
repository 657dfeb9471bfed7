"""`hedgerow up`: the stack in a terminal, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

from hedgerow_local.addresses import Ports, PortTaken
from hedgerow_local.child import ChildFailed
from hedgerow_local.endpoints import Endpoints
from hedgerow_local.lock import AlreadyRunning
from hedgerow_local.stack import Stack

ROOT = Path("var/local")
_NAMES = {
    "mlflow": "MLflow",
    "postgres": "PostgreSQL",
    "valkey": "Valkey",
    "control": "control plane",
    "server": "server",
    "backup": "backup region",
}


def run(*, ports: Ports = "default", root: Path = ROOT, workers: int = 1, as_json: bool = False) -> int:
    """Runs the stack until SIGINT or SIGTERM; a second one ends it at once.

    Args:
        ports: `default` for the documented ports, `free` for any; the ready lines tell.
        root: Where everything is kept.
        workers: Processes of each server.
        as_json: Print the addresses as one JSON document when all is ready, the rest to standard error.

    Returns:
        The exit code: 0 after an orderly stop, 1 if a part could not start or was lost.
    """
    return asyncio.run(_run(ports, root, workers, as_json=as_json))


async def _run(ports: Ports, root: Path, workers: int, *, as_json: bool) -> int:
    console = Console(highlight=False, stderr=as_json)
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    stack = Stack(root, ports=ports, workers=workers, tell=lambda name, line: _tell(console, name, line))

    def stop() -> None:
        if asked.is_set():
            console.print("Ending everything now")
            stack.kill()
        else:
            console.print("\nStopping (Ctrl-C again to end everything now)")
            asked.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)
    console.print(
        "Starting MLflow, PostgreSQL, Valkey, the control plane and two regions (MLflow takes longest)"
    )
    running = asyncio.create_task(_until(stack, asked, console, as_json=as_json))
    try:
        code = await running
    except (ChildFailed, PortTaken, AlreadyRunning) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    console.print("Stopped")
    return code


async def _until(stack: Stack, asked: asyncio.Event, console: Console, *, as_json: bool) -> int:
    """Enters the stack, however far it gets before it is asked to stop."""
    stopping = asyncio.create_task(asked.wait())
    entering = asyncio.create_task(stack.__aenter__())
    try:
        await asyncio.wait((stopping, entering), return_when=asyncio.FIRST_COMPLETED)
        if not entering.done():
            entering.cancel()
            await asyncio.wait((entering,))
            return 0
        await entering
        assert stack.endpoints is not None
        if as_json:
            print(json.dumps(dataclasses.asdict(stack.endpoints)), flush=True)
        else:
            _invite(console, stack.endpoints, stack.root)
        await stopping
        return 1 if not stack.lost.empty() else 0
    finally:
        stopping.cancel()
        await stack.stop()


def _tell(console: Console, name: str, line: str) -> None:
    console.print(f"[bold]{_NAMES[name]:14}[/]", end=" ")
    console.print(line, markup=False, soft_wrap=True)


def _command() -> str:
    """`hedgerow` as the next terminal must type it: `make up` runs one that is not on its PATH."""
    if shutil.which("hedgerow"):
        return "hedgerow"
    path = Path(sys.executable).with_name("hedgerow")
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _invite(console: Console, at: Endpoints, root: Path) -> None:
    hedgerow = _command()
    console.print(
        f"""
Ready; logs are in {root}/log. Try, in another terminal:

  {hedgerow} publish MODEL.onnx NAME --wait   # registers a version as champion, and it is served
  {hedgerow} infer NAME --zeros
  {hedgerow} status --watch

  MLflow {at.mlflow}   metrics http://{at.server_metrics}/metrics   health http://{at.server_http}/health/ready

Ctrl-C stops everything.""",
        markup=False,
        soft_wrap=True,
    )


def main() -> None:
    """`python -m hedgerow_local.up`: the same without the client's command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", choices=("default", "free"), default="default")
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args()
    sys.exit(run(ports=options.ports, root=options.root))


if __name__ == "__main__":
    main()
