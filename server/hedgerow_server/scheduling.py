"""How work beside the serving gives way to it, where they share a core (Linux).

A nice value is a share of the core, not who goes first: a thread of nice 10 that is at work keeps the
core until its time slice ends, which is seen at the scheduler's next tick, 4 ms later where the kernel
counts 250 of them a second. Since Linux 6.12 a thread may ask for a slice of its own, and one that wakes
up takes the core at once from one whose slice is longer (PREEMPT_SHORT). So what gives way asks for the
longest; it gets no less of the core for it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

#: 3 % of a busy core beside a thread of nice 0. That is also the part of the time in which it has the core
#: while others want it: who serves has run ahead of its share then, and waits for milliseconds. It shows in
#: p90 of a server at half of a core with nice 10, not with this. Not SCHED_IDLE: a thread that is put aside
#: while it holds the GIL stops the event loop until its turn, 90 ms later beside a process that computes.
NICE = 16
#: Nanoseconds, the longest slice that Linux grants.
_LONGEST_SLICE = 100_000_000
#: The number of sched_setattr(2), for which the C library has no function.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
#: struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, and two more.
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")


def be_nice(nice: int = NICE) -> None:
    """Makes this thread give way to others, for good: without privileges it cannot be raised again.

    What it starts inherits that. Linux only; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    nice = max(nice, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    if _SCHED_SETATTR is not None:
        # A seccomp filter may refuse it, and an older kernel ignores it: then the nice value is all.
        ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, _attributes(nice), 0)


def _attributes(nice: int) -> bytes:
    return _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, _LONGEST_SLICE, 0, 0, 0, 0)
