"""The trial load: every way a model can misbehave ends in a verdict, and in nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop
import zoo
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_server import processes
from hedgerow_server.engine import probe as probing
from hedgerow_server.engine import trial
from hedgerow_server.engine.probe import ProbeLimits, Verdict, probe

#: The first child is not replaced by another while a test looks at it.
PATIENT = ProbeLimits(wall_seconds=600)
COMMAND = [sys.executable, "-m", "hedgerow_server.engine.probe"]


def run_command(path: Path, *flags: str) -> tuple[int, Verdict]:
    done = subprocess.run(
        [*COMMAND, "--directory", path.parent, "--path", path.name, *flags],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.count(b"\n") == 1, done
    return done.returncode, Verdict.from_json(done.stdout)


def children_of(pid: int) -> list[int]:
    """Of each of its threads."""
    return [
        int(child)
        for children in Path(f"/proc/{pid}/task").glob("*/children")
        for child in children.read_text().split()
    ]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


async def until(condition, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (another process tells nothing by itself)
            await asyncio.sleep(0.01)


async def test_a_good_model_passes_with_its_signature(tmp_path: Path):
    zoo.several(tmp_path / "m.onnx")
    verdict = await probe(tmp_path, "m.onnx", ServingSpec())
    assert verdict.ok
    assert verdict.reason == ""
    assert verdict.inputs[0] == {"name": "a", "datatype": "FP32", "shape": [-1, 2]}
    assert [output["datatype"] for output in verdict.outputs] == ["FP32", "FP32", "BOOL"]
    assert (verdict.max_batch_size, verdict.row_independent) == (128, True)
    assert verdict.load_seconds > 0
    assert verdict.warm_seconds > 0


def test_the_command_exits_with_zero_for_a_good_model_and_one_for_a_refused_one(tmp_path: Path):
    (tmp_path / "serving.json").write_text('{"batching": {"maxBatchSize": 5}}')
    code, verdict = run_command(zoo.mlp(tmp_path / "m.onnx"), f"--serving={tmp_path}/serving.json")
    assert (code, verdict.ok, verdict.max_batch_size) == (0, True, 5)
    code, verdict = run_command(zoo.truncated(tmp_path / "t.onnx"))
    assert (code, verdict.ok) == (1, False)
    assert "truncated" in verdict.reason


@pytest.mark.parametrize(
    "flags", [[], ["--directory", "/tmp"], ["--directory=/", "--path=x", "--cpu-seconds=0"]]
)
def test_the_command_exits_with_two_when_asked_wrongly(flags: list[str]):
    assert subprocess.run([*COMMAND, *flags], capture_output=True, check=False).returncode == 2


def test_a_serving_spec_that_is_none_is_a_reason(tmp_path: Path):
    (tmp_path / "serving.json").write_text('{"batch": 1}')
    code, verdict = run_command(zoo.mlp(tmp_path / "m.onnx"), f"--serving={tmp_path}/serving.json")
    assert code == 1
    assert "serving spec is not valid" in verdict.reason


@pytest.mark.parametrize("build", [zoo.allocates_without_end, zoo.allocates_at_once])
async def test_a_model_that_allocates_without_end_is_told_from_others(tmp_path: Path, build):
    build(tmp_path / "m.onnx")
    verdict = await probe(tmp_path, "m.onnx", ServingSpec(), ProbeLimits(memory_bytes=256 << 20))
    assert not verdict.ok
    assert verdict.reason.startswith("the model used more than 256 MiB")


async def test_a_model_that_never_returns_is_stopped_at_its_warm_up(tmp_path: Path):
    zoo.never_returns(tmp_path / "m.onnx")
    verdict = await probe(tmp_path, "m.onnx", ServingSpec(), ProbeLimits(warmup_seconds=0.3))
    assert not verdict.ok
    assert verdict.reason.startswith("the model did not answer its warm-up sample within 0.3 s")


async def test_cpu_time_is_limited(tmp_path: Path):
    zoo.never_returns(tmp_path / "m.onnx")
    verdict = await probe(tmp_path, "m.onnx", ServingSpec(), ProbeLimits(cpu_seconds=1))
    assert verdict.reason.startswith("the model used more than 1 s of CPU time")


async def test_time_is_limited_even_where_the_child_does_nothing_more(tmp_path: Path):
    """A stopped child is like a kernel that hangs: only killing it helps."""
    zoo.never_returns(tmp_path / "m.onnx")
    asked = asyncio.create_task(probe(tmp_path, "m.onnx", ServingSpec(), ProbeLimits(wall_seconds=6)))
    stopped: set[int] = set()
    while not asked.done():
        with contextlib.suppress(OSError):  # it ends while it is looked at
            for child in grandchildren(tmp_path):
                os.kill(child, signal.SIGSTOP)
                stopped.add(child)
        await asyncio.sleep(0.01)
    verdict = await asked
    assert verdict.reason.startswith("the model was not loaded and warm within 6 s, and was stopped")
    assert stopped
    assert not any(map(is_running, stopped))


async def by_command(directory: Path, limits: ProbeLimits) -> Verdict:
    flags = (f"--wall-seconds={limits.wall_seconds}", f"--warmup-seconds={limits.warmup_seconds}")
    _, verdict = await asyncio.to_thread(run_command, directory / "m.onnx", *flags)
    return verdict


async def by_server(directory: Path, limits: ProbeLimits) -> Verdict:
    return await probe(directory, "m.onnx", ServingSpec(), limits)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the system has no SCHED_IDLE")
@pytest.mark.parametrize(("ask", "watcher_policy"), [(by_server, "SCHED_IDLE"), (by_command, "SCHED_OTHER")])
async def test_a_trial_runs_when_nothing_else_does_and_once_more_if_that_was_too_slow(
    tmp_path: Path, ask, watcher_policy: str
):
    """What was too slow may have been starved; the second child is only nice."""
    zoo.never_returns(tmp_path / "m.onnx")
    asked = asyncio.create_task(ask(tmp_path, ProbeLimits(wall_seconds=600, warmup_seconds=1)))
    first = await grandchild(tmp_path)
    assert os.sched_getscheduler(watcher_of(first)) == getattr(os, watcher_policy)
    assert os.sched_getscheduler(first) == os.SCHED_IDLE
    second = await grandchild(tmp_path, but=first)
    assert os.sched_getscheduler(second) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, second) >= trial.NICE
    verdict = await asked
    assert (verdict.ok, verdict.timed_out) == (False, True)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the system has no SCHED_IDLE")
async def test_a_watcher_runs_when_nothing_else_does_even_if_it_was_too_quick_to_be_told(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None)
    zoo.never_returns(tmp_path / "m.onnx")
    asked = asyncio.create_task(by_server(tmp_path, ProbeLimits(wall_seconds=600, warmup_seconds=1)))
    loader = await grandchild(tmp_path)
    assert os.sched_getscheduler(loader) == os.sched_getscheduler(watcher_of(loader)) == os.SCHED_IDLE
    asked.cancel()
    await asyncio.wait((asked,))


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the system has no SCHED_IDLE")
async def test_a_watcher_that_never_gets_the_core_is_replaced_by_one_that_does(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(probing, "_GRACE_SECONDS", 0.5)
    really = processes.run
    given_up: list[bool] = []

    async def run(command, streams, *, nice: int, idle: bool) -> int:
        if not idle:
            return await really(command, streams, nice=nice, idle=idle)
        try:
            await asyncio.sleep(600)
        finally:
            given_up.append(True)
        raise AssertionError

    monkeypatch.setattr(processes, "run", run)
    zoo.mlp(tmp_path / "m.onnx")
    assert (await probe(tmp_path, "m.onnx", ServingSpec(), ProbeLimits(wall_seconds=20))).ok
    assert given_up == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
async def test_a_trial_gets_no_huge_pages(tmp_path: Path):
    """The kernel clears one in milliseconds in which nothing else has the core, whatever the priorities."""
    zoo.never_returns(tmp_path / "m.onnx")
    asked = asyncio.create_task(probe(tmp_path, "m.onnx", ServingSpec(), ProbeLimits(warmup_seconds=1)))
    status = status_of(await grandchild(tmp_path))
    await asked
    if "THP_enabled" not in status:
        pytest.skip("this kernel does not tell which processes get huge pages (before Linux 5.0)")
    assert "THP_enabled:\t0" in status


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGSEGV, "crashed ONNX Runtime (segmentation fault)"),
        (signal.SIGABRT, "crashed ONNX Runtime (abort)"),
        (signal.SIGBUS, "crashed ONNX Runtime (bus error"),
        (signal.SIGKILL, "the system killed the trial load"),
    ],
)
async def test_a_child_that_dies_still_gives_a_verdict(tmp_path: Path, number: signal.Signals, says: str):
    zoo.never_returns(tmp_path / "m.onnx")
    asked = asyncio.create_task(probe(tmp_path, "m.onnx", ServingSpec(), PATIENT))
    child = await grandchild(tmp_path)
    os.kill(child, number)
    verdict = await asked
    assert not verdict.ok
    assert says in verdict.reason


def grandchildren(directory: Path) -> list[int]:
    """The processes that load the model, mostly one; other tests' servers are not it."""
    return [
        loader
        for watcher in children_of(os.getpid())
        if os.fsencode(directory) in Path(f"/proc/{watcher}/cmdline").read_bytes()
        for loader in children_of(watcher)
    ]


def watcher_of(loader: int) -> int:
    return next(watcher for watcher in children_of(os.getpid()) if loader in children_of(watcher))


def status_of(process: int) -> str:
    return Path(f"/proc/{process}/status").read_text()


async def grandchild(directory: Path, but: int = 0) -> int:
    """The process that loads the model, once its limits are set."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [loader for loader in grandchildren(directory) if loader != but]
        return bool(found) and resource.prlimit(found[0], resource.RLIMIT_CORE) == (0, 0)

    # At first it runs only when nothing else does: on a busy machine that takes a while.
    await until(is_there, seconds=60)
    return found[0]


def test_a_server_does_not_fork_for_a_trial(tmp_path: Path):
    """Its page tables would be copied, and each page would fault once more: nothing is served then."""
    zoo.mlp(tmp_path / "m.onnx")
    forks: list[int] = []
    os.register_at_fork(before=lambda: forks.append(os.getpid()))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(probe(tmp_path, "m.onnx", ServingSpec())).ok
    assert not forks


async def test_cancelling_leaves_nothing_running(tmp_path: Path):
    zoo.never_returns(tmp_path / "m.onnx")
    asked = asyncio.create_task(probe(tmp_path, "m.onnx", ServingSpec(), PATIENT))
    child = await grandchild(tmp_path)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await until(lambda: not is_running(child))


async def test_the_child_does_not_outlive_a_killed_watcher(tmp_path: Path):
    """The model would run for 30 s more, and the probe could not tell it to stop."""
    zoo.never_returns(tmp_path / "m.onnx")
    asked = asyncio.create_task(probe(tmp_path, "m.onnx", ServingSpec(), PATIENT))
    child = await grandchild(tmp_path)
    os.kill(watcher_of(child), signal.SIGKILL)
    verdict = await asked
    assert verdict.reason == "the trial load was killed by SIGKILL: no message"
    await until(lambda: not is_running(child), seconds=10)


def test_a_watcher_that_dies_before_it_is_asked_is_told_with_how_it_died(tmp_path: Path, monkeypatch):
    """On the loop of the server's workers, which notices at once when the other end of a pipe is gone."""
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\nkill -KILL $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))

    async def ask_often() -> set[str]:
        return {(await probe(tmp_path, "m.onnx", ServingSpec())).reason for _ in range(60)}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask_often()) == {"the trial load was killed by SIGKILL: no message"}


def test_the_limits_are_really_set():
    """Tried in a process of its own, since limits cannot be raised again."""
    script = (
        "import json, resource; from hedgerow_server.engine import trial;"
        "trial._limit(trial.ProbeLimits(memory_bytes=1 << 30, cpu_seconds=7));"
        "print(json.dumps([resource.getrlimit(getattr(resource, 'RLIMIT_' + kind)) for kind in"
        " ('FSIZE', 'CORE', 'NOFILE', 'CPU', 'AS')]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    files, core, descriptors, cpu, memory = json.loads(done.stdout)
    assert (files, core, descriptors) == ([0, 0], [0, 0], [256, 256])
    assert 7 < cpu[0] < 12
    assert 1 << 30 < memory[1] < 2 << 30
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0, "the test's own process keeps its limits"


def test_the_watcher_imports_nothing_heavy():
    script = "import sys; import hedgerow_server.engine.probe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert not {"numpy", "onnxruntime", "google.protobuf", "asyncio"} & set(done.stdout.split())


def test_an_exit_without_a_verdict_is_told_with_its_last_words():
    status = os.waitstatus_to_exitcode(0x0300) << 8
    reason = trial._why_it_ended(status, b"noise\nImportError: no onnxruntime\n", ProbeLimits())
    assert reason == "the trial load failed with exit code 3: ImportError: no onnxruntime"


def test_an_allocation_failure_that_aborts_counts_as_memory():
    reason = trial._why_it_ended(signal.SIGABRT, b"terminate called: std::bad_alloc", ProbeLimits())
    assert reason.startswith("the model used more than 4096 MiB")
