"""Child processes that a thread starts: what they get, how they end, on both loops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from hedgerow_server import processes

FACTORIES = [asyncio.new_event_loop, uvloop.new_event_loop]
#: Nothing that a test's own priority exceeds.
NICE = max(11, os.getpriority(os.PRIO_PROCESS, 0))


@pytest.fixture(params=FACTORIES, ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return request.param


async def python(script: str, question: bytes = b"", *, idle: bool = False) -> tuple[int, bytes, bytes]:
    """Runs it; what it ended with, wrote and complained about."""
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(question)
        stdin.seek(0)
        streams = (stdin.fileno(), stdout.fileno(), stderr.fileno())
        code = await processes.run([sys.executable, "-c", script], streams, nice=NICE, idle=idle)
        stdout.seek(0)
        stderr.seek(0)
        return code, stdout.read(), stderr.read()


def test_it_reads_and_writes_what_it_was_given_and_its_exit_code_is_told(loop_factory):
    script = "import sys; print(input()[::-1]); sys.stderr.write('oh'); raise SystemExit(3)"
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(python(script, b"asked\n")) == (3, b"deksa\n", b"oh")


def test_several_run_at_once(loop_factory, tmp_path: Path):
    """Each ends when it has seen the two others."""
    meet = "import os, sys, time; os.mkdir('{0}/{1}')\nwhile len(os.listdir('{0}')) < 3: time.sleep(0.01)"

    async def three() -> list[int]:
        async with asyncio.timeout(60):
            met = await asyncio.gather(*(python(meet.format(tmp_path, number)) for number in range(3)))
        return [code for code, _, _ in met]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(three()) == [0, 0, 0]


async def test_one_that_is_killed_ends_with_the_signal():
    code, _, _ = await python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL


async def test_a_program_that_is_not_there_is_told_by_name(tmp_path: Path):
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=missing):
        await processes.run([missing], (0, 1, 2), nice=NICE)


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux priorities are a thread's")
async def test_it_alone_has_the_low_priority():
    before = os.getpriority(os.PRIO_PROCESS, 0)
    _, said, _ = await python(
        "import os; print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))"
    )
    assert [int(word) for word in said.split()] == [NICE, os.SCHED_OTHER]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the system has no SCHED_IDLE")
async def test_one_that_may_only_use_what_is_left_is_told_so_while_it_starts():
    waits = (
        "import os, time; until = time.monotonic() + 30\n"
        "while os.sched_getscheduler(0) != os.SCHED_IDLE and time.monotonic() < until: time.sleep(0.001)\n"
        "print(os.sched_getscheduler(0))"
    )
    code, said, _ = await python(waits, idle=True)
    assert (code, int(said)) == (0, os.SCHED_IDLE)


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.skipif(
    not hasattr(processes._LIBC, "posix_spawn_file_actions_addclosefrom_np"), reason="needs glibc 2.34"
)
async def test_no_descriptor_gets_into_it_or_is_left():
    open_ones = "import os; print(*os.listdir('/proc/self/fd'))"
    await python(open_ones)
    inherited = os.dup(0)
    os.set_inheritable(inherited, True)
    try:
        before = descriptors()
        _, said, _ = await python(open_ones)
        assert descriptors() == before
    finally:
        os.close(inherited)
    # Its own three, and the one that it lists them with.
    assert set(said.split()) == {b"0", b"1", b"2", b"3"}


class Gate:
    """Stands where a process is started, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.started: list[int] = []
        really = processes._spawn

        def spawn(*arguments: object) -> int:
            self.reached.set()
            assert self.open.wait(30)
            self.started.append(really(*arguments))
            return self.started[-1]

        monkeypatch.setattr(processes, "_spawn", spawn)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (a thread tells nothing by itself)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("cancelled", ["before it is started", "while it runs"])
async def test_cancelling_ends_it_first(monkeypatch: pytest.MonkeyPatch, cancelled: str):
    gate = Gate(monkeypatch)
    asked = asyncio.create_task(python("import time; time.sleep(600)"))
    await until(gate.reached.is_set)
    if cancelled == "while it runs":
        gate.open.set()
        await until(lambda: bool(gate.started))
    # Twice, as a server that stops may do: the descriptors are in use as long as the thread has them.
    for _ in range(2):
        asked.cancel()
        await asyncio.sleep(0.05)
    assert gate.started or not asked.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert not is_there(gate.started[0])


def test_where_nobody_is_told_how_children_end_it_ended_well():
    """A process inherits that SIGCHLD is ignored, and the system then keeps no exit codes."""
    script = (
        "import os, signal, sys; from hedgerow_server import processes\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "print(processes._Child().run([sys.executable, '-c', 'exit(3)'], (0, 1, 2), nice=19, idle=False))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"0\n"


async def test_a_number_that_is_nobody_s_child_any_more_is_not_killed(monkeypatch: pytest.MonkeyPatch):
    """It may be another's by now."""
    child = processes._Child()
    assert await asyncio.to_thread(_run_to_its_end, child) == 0
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda number, _: killed.append(number))
    child.terminate()
    assert not killed


def _run_to_its_end(child: processes._Child) -> int:
    with Path(os.devnull).open("r+b") as nothing:
        number = nothing.fileno()
        return child.run([sys.executable, "-c", ""], (number, number, number), nice=NICE, idle=False)
