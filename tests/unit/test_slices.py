"""Short time slices: what the kernel says of them, in threads that end with the test."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hedgerow_server import slices


def in_thread(work: Callable[[], object]) -> list[object]:
    """What work returns in a thread of its own, so that no slice outlives the test."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found


def slice_of(thread: int) -> int:
    """In nanoseconds, as /proc tells."""
    for line in Path(f"/proc/self/task/{thread}/sched").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "se.slice":
            return int(value)
    pytest.skip("this kernel does not tell slices")


needs_slices = pytest.mark.skipif(
    in_thread(slices.shorten) != [True], reason="this kernel has no slices for threads (Linux 6.12 has)"
)


@needs_slices
def test_a_thread_gets_the_shortest_slice_and_what_it_starts_the_usual_one():
    def work() -> tuple[int, int, int]:
        me = threading.get_native_id()
        usual = slice_of(me)
        assert slices.shorten()
        (below,) = in_thread(lambda: slice_of(threading.get_native_id()))
        assert isinstance(below, int)
        return usual, slice_of(me), below

    ((usual, mine, below),) = in_thread(work)  # type: ignore[misc]
    assert mine == slices.SHORT_NS < usual
    assert below == usual


@needs_slices
def test_priority_stays_as_it_is():
    def work() -> int:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
        assert slices.shorten()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert in_thread(work) == [7]


@needs_slices
def test_another_thread_is_found_by_its_name():
    leave, ready = threading.Event(), threading.Event()

    def work() -> None:
        Path("/proc/self/task", str(threading.get_native_id()), "comm").write_text("a-slice-test")
        ready.set()
        leave.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(30)
        (found,) = slices.threads_named("a-slice")
        assert found == thread.native_id
        assert slices.shorten(found)
        assert slice_of(found) == slices.SHORT_NS
    finally:
        leave.set()
        thread.join()
    assert slices.threads_named("a-slice") == []


def test_a_thread_scheduled_in_another_way_is_left_alone():
    """SCHED_BATCH here, which needs no privilege; operators use SCHED_FIFO (`chrt`)."""
    if sys.platform != "linux":
        pytest.skip("Linux only")

    def work() -> bool:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        shortened = slices.shorten()
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        return shortened

    assert in_thread(work) == [False]


@pytest.mark.parametrize("machine", ["riscv128", ""])
def test_where_the_call_is_not_known_nothing_happens(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert not slices.shorten()


def test_a_thread_that_is_not_there_has_none():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not slices.shorten(ended.pid)
