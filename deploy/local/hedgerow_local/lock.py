"""One process at a time in a directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


class AlreadyRunning(Exception):
    """Another process works in this directory."""


def take(path: Path) -> IO[str]:
    """Locks a file until it is closed or the process ends, however it ends.

    Args:
        path: Made if missing; says which process holds it.

    Raises:
        AlreadyRunning: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise AlreadyRunning(
            f"Process {holder} already works in {path.parent}. Use what it runs, or stop it with Ctrl-C."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
