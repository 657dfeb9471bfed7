"""Child processes whose start the event loop does not notice.

fork copies the page tables of all that a server has mapped. vfork, which `subprocess` uses, does not, but it
holds the GIL until the new process runs, and that one then keeps the core at the priority of whoever started
it, until the scheduler's next tick: 2 to 5 ms without an answer. Here a thread of low priority calls
posix_spawn, through ctypes, which lets the GIL go, and the process is nice from its first instruction on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from hedgerow_server.scheduling import be_nice

_LIBC = ctypes.CDLL(None)
#: More than any C library's posix_spawn_file_actions_t takes (glibc: 80).
_ACTIONS_BYTES = 1024
#: The new process's standard input, output and error.
Streams = tuple[int, int, int]


async def run(command: Sequence[str], streams: Streams, *, nice: int, idle: bool = False) -> int:
    """Runs a program to its end.

    Args:
        command: the program's path, and its arguments.
        streams: descriptors of its standard input, output and error.
        nice: its priority.
        idle: it runs only when nothing else wants its core (SCHED_IDLE), where the system has that.

    Returns:
        The exit code; of a program that was killed, the signal's number below zero.

    Raises:
        OSError: it cannot be started.
        asyncio.CancelledError: after SIGTERM and its end.
    """
    child = _Child()
    # A thread of its own: it waits for the process, and cannot get back to a higher priority.
    threads = ThreadPoolExecutor(1, thread_name_prefix="child")
    work = partial(child.run, command, streams, nice=nice, idle=idle)
    done = asyncio.get_running_loop().run_in_executor(threads, work)
    threads.shutdown(wait=False)
    try:
        return await asyncio.shield(done)
    finally:
        child.terminate()
        # Its descriptors are the caller's: whoever cancels once more waits as well.
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((done,))


class _Child:
    """A process that one thread starts and waits for, and others may end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unwanted = False
        # As long as the number is nobody else's.
        self._process: int | None = None

    def run(self, command: Sequence[str], streams: Streams, *, nice: int, idle: bool) -> int:
        be_nice(nice)
        process = _spawn(command, streams)
        if idle and hasattr(os, "SCHED_IDLE"):
            # Only now, when it may have begun: posix_spawn(3) refuses the policy, and a thread that had it
            # would be put aside while it holds the GIL.
            with contextlib.suppress(OSError):  # a sandbox may know no policies
                os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))
        with self._lock:
            self._process = process
            if self._unwanted:
                os.kill(process, signal.SIGTERM)
        try:
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return 0  # where SIGCHLD is ignored nobody is told; `subprocess` says so, too
        finally:
            with self._lock:
                self._process = None
        _, status = os.waitpid(process, 0)
        return os.waitstatus_to_exitcode(status)

    def terminate(self) -> None:
        """Sends it SIGTERM; if it has not been started yet, as soon as it is."""
        with self._lock:
            self._unwanted = True
            if self._process is not None:
                os.kill(self._process, signal.SIGTERM)


def _spawn(command: Sequence[str], streams: Streams) -> int:
    """posix_spawn(3) without the GIL; `os.posix_spawn` keeps it."""
    actions = ctypes.create_string_buffer(_ACTIONS_BYTES)
    process = ctypes.c_int()
    _LIBC.posix_spawn_file_actions_init(actions)
    try:
        for target, source in enumerate(streams):
            _LIBC.posix_spawn_file_actions_adddup2(actions, source, target)
        if hasattr(_LIBC, "posix_spawn_file_actions_addclosefrom_np"):
            # The rest that is not closed by itself. Where this does not exist (before glibc 2.34, musl) that
            # stays open in the process, which makes no use of it.
            _LIBC.posix_spawn_file_actions_addclosefrom_np(actions, len(streams))
        error = _LIBC.posix_spawn(
            ctypes.byref(process),
            os.fsencode(command[0]),
            actions,
            None,
            _strings([os.fsencode(word) for word in command]),
            _strings([name + b"=" + value for name, value in os.environb.items()]),
        )
    finally:
        _LIBC.posix_spawn_file_actions_destroy(actions)
    if error:
        raise OSError(error, os.strerror(error), command[0])
    return process.value


def _strings(words: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)
