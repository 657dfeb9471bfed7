"""Child processes that the event loop did not start."""

from __future__ import annotations

import asyncio
import os
import subprocess

#: Seconds between two looks at a process where the system has nothing to wait for it with (before Linux 5.3).
_LOOK_EVERY = 0.02


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Waits for a process and returns its exit code, as `Popen.wait`; may be cancelled and called again."""
    known: int | None = process.returncode
    if known is not None:
        return known  # the process's number may be another's by now
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        # No such call: another system, or a filter that does not know it.
        while process.poll() is None:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(_LOOK_EVERY)
        return process.returncode
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    try:
        loop.add_reader(descriptor, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)
    return process.wait()
