"""Another program for the length of a measurement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from hedgerow_bench import procfs
from hedgerow_bench.cores import pinned

T = TypeVar("T")
_GRACE = 20.0


class NotReady(Exception):
    """The program ended or was silent; the message names its log."""


@asynccontextmanager
async def running(
    command: Sequence[str],
    log: Path,
    ready: Callable[[], T | None],
    *,
    within: float,
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
    started: Callable[[int], None] = lambda _pid: None,
) -> AsyncIterator[T]:
    """Runs a program, waits until it is ready, and ends it and all that it started.

    Args:
        command: Program and arguments.
        log: Its stdout and stderr.
        ready: Asked every tenth of a second; None until the program is ready.
        within: Seconds in which it must be.
        environment: Added to this process's own.
        cores: Where it runs; None: anywhere.
        started: Told its process id.

    Yields:
        What `ready` found.

    Raises:
        NotReady: It ended first or took too long.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file, pinned(cores):
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        started(process.pid)
        yield await _wait(process, ready, within, f"{command[0]} (see {log})")
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the program, SIGKILL after a grace, and SIGKILL to what it leaves behind."""
    known = procfs.family(process.pid)
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _GRACE)
        except TimeoutError:
            known += procfs.family(process.pid)
            process.kill()
            await process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in known:  # daemons in sessions of their own
        now = procfs.read(one.pid)
        if now is not None and now.birth == one.birth:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, signal.SIGKILL)


async def _wait(
    process: asyncio.subprocess.Process, ready: Callable[[], T | None], within: float, name: str
) -> T:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while (found := ready()) is None:
        if process.returncode is not None:
            raise NotReady(f"{name} ended with exit code {process.returncode}")
        if loop.time() > deadline:
            raise NotReady(f"{name} was not ready within {within:.0f} s")
        await asyncio.sleep(0.1)
    return found
