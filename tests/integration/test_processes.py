"""Waiting for a child process that the loop did not start, on both loops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from hedgerow_server.processes import ended

DESCRIPTORS = Path("/proc/self/fd")


def start(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script])


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return request.param


@pytest.fixture(params=[True, False], ids=["pidfd", "looking"])
def pidfd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not hasattr(os, "pidfd_open"):
        pytest.skip("the system has no pidfd_open")
    if not request.param:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    return request.param


def test_the_exit_code_is_told(loop_factory, pidfd):
    async def both() -> list[int]:
        quick, slow = start("raise SystemExit(3)"), start("import time; time.sleep(0.3)")
        return await asyncio.gather(ended(quick), ended(slow))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(both()) == [3, 0]


def test_a_wait_may_be_given_up_and_begun_again(loop_factory, pidfd):
    async def twice() -> int:
        process = start("import time; time.sleep(60)")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ended(process)
        assert process.poll() is None
        process.kill()
        code = await ended(process)
        assert await ended(process) == code
        return code

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(twice()) == -signal.SIGKILL


async def test_the_number_of_a_process_that_has_ended_is_not_asked_for_again():
    """It may be another's by now, and that one may run for ever."""
    process, other = start("raise SystemExit(3)"), start("import time; time.sleep(60)")
    try:
        await ended(process)
        process.pid = other.pid
        async with asyncio.timeout(20):
            assert await ended(process) == 3
    finally:
        other.kill()
        await ended(other)


def open_ones() -> int:
    return len(list(DESCRIPTORS.iterdir()))


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="the system does not tell its descriptors")
def test_no_descriptor_is_left(loop_factory):
    async def wait() -> tuple[int, int]:
        await ended(start(""))
        before = open_ones()
        for _ in range(3):
            await ended(start(""))
        return before, open_ones()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        before, after = runner.run(wait())
    assert after == before
