"""What gives way to the serving has a low priority and a long time slice, and nothing else has."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
import threading

import pytest
from hedgerow_server import scheduling

GETATTR = {"x86_64": 315, "aarch64": 275}.get(platform.machine())
#: struct sched_attr, as sched_setattr(2) describes it.
LAYOUT = struct.Struct("=IIQiIQQQII")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or GETATTR is None, reason="Linux on x86-64 or ARM64 only"
)


def attributes(thread: int = 0) -> tuple[int, int]:
    """The nice value and the time slice in nanoseconds (0 before Linux 6.12) of a thread."""
    buffer = ctypes.create_string_buffer(LAYOUT.size)
    assert ctypes.CDLL(None).syscall(GETATTR, thread, buffer, LAYOUT.size, 0) == 0
    fields = LAYOUT.unpack(buffer.raw[: LAYOUT.size])
    return fields[3], fields[5]


def in_a_thread(nice: int) -> tuple[int, int]:
    found: list[tuple[int, int]] = []

    def work() -> None:
        scheduling.be_nice(nice)
        found.append(attributes())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_gives_way_alone():
    before = attributes()
    nice, time_slice = in_a_thread(max(10, before[0]))
    assert nice == max(10, before[0])
    assert attributes() == before
    if before[1]:  # the system tells slices, so it grants them
        assert time_slice == 100_000_000 > before[1]
