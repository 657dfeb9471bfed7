"""Processes of the local stack: started, heard, stopped, and never left behind."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

import pytest
from hedgerow_local.addresses import PortTaken, listen
from hedgerow_local.child import Child, ChildFailed

WAIT = 30.0


def python(name, code, tmp_path, **settings):
    return Child(name, (sys.executable, "-c", code), log=tmp_path / f"{name}.log", **settings)


def alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(*pids):
    async with asyncio.timeout(WAIT):
        while any(alive(pid) for pid in pids):  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.02)


async def test_the_ready_line_is_read_and_everything_is_logged(tmp_path):
    child = python("part", "print('hello'); print('part ready grpc=127.0.0.1:7 pid=1 (go)')", tmp_path)
    await child.start()
    assert await child.ready(WAIT) == {"grpc": "127.0.0.1:7", "pid": "1"}
    assert await child.ended() == 0
    assert (tmp_path / "part.log").read_text().startswith("hello\n")


async def test_a_process_that_ends_before_it_is_ready_is_quoted(tmp_path):
    child = python("part", "raise SystemExit('port 7 is taken')", tmp_path)
    await child.start()
    with pytest.raises(ChildFailed, match=r"part ended with exit code 1(.|\n)*port 7 is taken"):
        await child.ready(WAIT)


async def test_a_process_that_says_nothing_in_time_is_reported(tmp_path):
    child = python("part", "import time; time.sleep(600)", tmp_path)
    await child.start()
    with pytest.raises(ChildFailed, match="not ready after 0 s"):
        await child.ready(0.2)
    await child.stop()
    assert not child.running


async def test_stop_lets_a_process_finish_in_order(tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('drained'), sys.exit(0)))\n"
        "print('part ready', flush=True)\n"
        "time.sleep(600)"
    )
    child = python("part", code, tmp_path)
    await child.start()
    await child.ready(WAIT)
    await child.stop()
    assert await child.ended() == 0
    assert "drained" in (tmp_path / "part.log").read_text()


DEAF = (
    "import os, signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "own = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(f'part ready pid={os.getpid()} own={own.pid}', flush=True)\n"
    "time.sleep(600)"
)


async def test_a_process_deaf_to_sigterm_is_killed_with_all_it_started(tmp_path):
    child = python("part", DEAF, tmp_path, grace=1)
    await child.start()
    said = await child.ready(WAIT)
    await child.stop()
    await gone(int(said["pid"]), int(said["own"]))
    assert await child.ended() == 128 + signal.SIGKILL


async def test_kill_does_not_wait_for_a_stop_under_way(tmp_path):
    child = python("part", DEAF, tmp_path, grace=3600)
    await child.start()
    await child.ready(WAIT)
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0)
    child.kill()
    await asyncio.wait_for(stopping, WAIT)


async def test_nothing_outlives_a_stack_that_is_killed(tmp_path):
    """SIGKILL gives the stack's own process no chance to clean up; the kernel tells the tether."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from hedgerow_local.child import Child\n"
        "async def main():\n"
        f"    command, log = (sys.executable, '-c', {DEAF!r}), Path({str(tmp_path / 'part.log')!r})\n"
        "    child = Child('part', command, log=log, grace=1)\n"
        "    await child.start()\n"
        "    said = await child.ready(30)\n"
        "    print(said['pid'], said['own'], flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    stack = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    line = await asyncio.wait_for(stack.stdout.readline(), WAIT)
    pids = [int(word) for word in line.split()]
    assert all(alive(pid) for pid in pids)
    stack.kill()
    await stack.wait()
    await gone(*pids)


def test_a_taken_port_is_named_with_what_to_do():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"Port {port}, meant for MLflow, is taken.*--ports free"):
            listen(port, "MLflow")
