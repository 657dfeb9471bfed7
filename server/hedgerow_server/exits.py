"""How a process ended, in words."""

from __future__ import annotations

import signal


def ending(code: int) -> str:
    """What to say behind a process's name.

    Args:
        code: As `subprocess` gives it: the exit code, or the signal's number below zero.

    Returns:
        `exited with code 3`, or `was killed by SIGKILL`.
    """
    return f"was killed by {signal_name(-code)}" if code < 0 else f"exited with code {code}"


def signal_name(number: int) -> str:
    """`SIGKILL`; `signal 40` for one without a name, as most real-time signals are."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
