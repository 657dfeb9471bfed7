"""Runs one command and does not let it outlive whoever asked for it.

    python -I -S tether.py PARENT-PID SECONDS SIGNAL COMMAND [ARGUMENT ...]

The command gets that signal when this process gets SIGTERM, or when the parent
dies, even by SIGKILL (prctl's parent-death signal). What is left of its process group
after that many seconds, at SIGQUIT, or once it has ended by itself, is killed.
Exits as the command did. A script of its own, with nothing but the standard
library: it starts in milliseconds and stays small.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
_PASSED_ON = {signal.SIGTERM, signal.SIGQUIT}


def die_with_parent(signum: int) -> None:
    """Asks the kernel for a signal when the process that started this one ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)


def main(parent: int, grace: int, stop_signal: int, command: list[str]) -> int:
    """Runs the command to its end; returns its exit code, or 128 and the signal's number."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        child.send_signal(stop_signal)
        signal.alarm(grace)

    def kill(*_: object) -> None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # Nothing is left.

    # Until the command runs, a signal must wait: there is nothing to pass it to.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return 1  # It died before the line above.

    def prepare() -> None:
        die_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)

    # preexec_fn is safe here: this process has one thread. A group of its own
    # lets `kill` reach what the command itself started.
    child = subprocess.Popen(command, close_fds=False, process_group=0, preexec_fn=prepare)  # noqa: PLW1509, S603
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGQUIT, kill)
    signal.signal(signal.SIGALRM, kill)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    code = child.wait()
    kill()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
