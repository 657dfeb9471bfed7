"""Mapped and packed: when a model has both, that they answer alike, and what keeps it from being packed."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zoo
from google.protobuf import json_format
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_server.engine import gears, memory, packing
from hedgerow_server.engine.gears import Gear
from hedgerow_server.engine.loader_threads import NICE, LoaderThreads, TooManyHang
from hedgerow_server.engine.loading import LoadedModel, load
from hedgerow_server.engine.packing import pack
from hedgerow_server.engine.refusal import LoadRefused, OutOfMemory

linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
SPEC = ServingSpec()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model with weights worth mapping: x FP32 [batch, 64] -> y FP32 [batch, 20480]."""
    return zoo.external(tmp_path / "m.onnx", mebibytes=5)


def mapped(path: Path, serving: ServingSpec = SPEC) -> LoadedModel:
    return load(path.parent, path.name, serving, mapped=True)


def test_large_external_weights_are_mapped_and_everything_else_is_packed_at_once(large: Path, tmp_path: Path):
    model = mapped(large)
    assert (model.gear, model.source is None) == (Gear.MAPPED, False)
    options = model.session.get_session_options()
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    for small in (zoo.external(tmp_path / "s.onnx", "s.bin"), zoo.mlp(tmp_path / "e.onnx")):
        model = mapped(small)
        assert (model.gear, model.source) == (Gear.PACKED, None)
    assert load(large.parent, large.name, SPEC).gear is Gear.PACKED  # as the trial load asks


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_both_gears_answer_alike(large: Path, rows: int):
    model = mapped(large)
    packed = pack(model, SPEC)
    x = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)
    one, other = (session.run(None, {"x": x})[0] for session in (model.session, packed.session))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(one).max())
    assert 0 < packed.run_seconds < packed.seconds
    options = packed.session.get_session_options()
    with pytest.raises(RuntimeError, match="disable_prepacking"):
        options.get_session_config_entry("session.disable_prepacking")


def test_a_batch_that_one_gear_takes_the_other_takes_too(large: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows are checked in both; where packed kernels mix them, the version stays mapped."""
    model = mapped(large, json_format.ParseDict({"batching": {"max_batch_size": 9}}, ServingSpec()))
    assert model.row_independent
    assert model.signature.max_batch_size == 9
    real = packing.warmup.warm

    def mixes_rows(*arguments):
        found = real(*arguments)
        return packing.warmup.Warmed(found.signature, False, found.seconds, found.feeds)

    monkeypatch.setattr(packing.warmup, "warm", mixes_rows)
    with pytest.raises(LoadRefused, match="behave differently in a batch"):
        pack(model, SPEC)


def test_packed_weights_that_answer_otherwise_do_not_take_over(large: Path, monkeypatch: pytest.MonkeyPatch):
    other = zoo.external(large.parent / "other" / "m.onnx", mebibytes=5)
    weights = other.with_name("weights.bin")
    weights.write_bytes((np.frombuffer(weights.read_bytes(), np.float32) * 1.05).tobytes())
    model = mapped(large)
    open_session = packing.loading.open_session
    monkeypatch.setattr(
        packing.loading, "open_session", lambda file, *more, **options: open_session(other, *more, **options)
    )
    with pytest.raises(LoadRefused, match="change its answers"):
        pack(model, SPEC)


@pytest.mark.parametrize("replaced", ["m.onnx", "weights.bin"])
def test_files_that_were_replaced_are_not_packed(large: Path, replaced: str):
    """The mapped session goes on with the old ones, whose pages it holds."""
    model = mapped(large)
    copy = large.with_name("copy")
    copy.write_bytes((large.parent / replaced).read_bytes())
    copy.replace(large.parent / replaced)
    with pytest.raises(LoadRefused, match="have changed since it was loaded; load it again"):
        pack(model, SPEC)


def test_without_memory_nothing_is_packed(large: Path):
    with pytest.raises(OutOfMemory, match="packing needs about 6 MiB of memory, 1 MiB are available"):
        pack(mapped(large), SPEC, available=lambda: 1 << 20)
    assert pack(mapped(large), SPEC, available=lambda: None)


# Memory.


def _resident(kind: str) -> int:
    """Bytes of memory of one kind, as the kernel counts them for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(kind)


@linux
def test_pages_of_mapped_weights_are_let_go_and_come_back(large: Path):
    model = mapped(large)
    x = np.ones((1, 64), np.float32)
    before = model.session.run(None, {"x": x})[0]
    held = _resident("RssFile")
    assert model.source is not None
    memory.unmap_pages(model.source.weights())
    assert held - _resident("RssFile") > 4 << 20
    np.testing.assert_array_equal(model.session.run(None, {"x": x})[0], before)


#: Prints the resident bytes of a process after each of three rounds.
ROUNDS = """
import gc, json, resource, sys
from pathlib import Path
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_server.engine import loading, memory, packing

path, spec, rounds = Path(sys.argv[1]), ServingSpec(), []
for _ in range(3):
    held = [loading.load(path.parent, path.name, spec, mapped=True)]
    weights = held[0].source.weights()
    held.append(packing.pack(held[0], spec))
    memory.let_go(held, weights)
    gc.collect()
    memory.give_back()
    rounds.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
print(json.dumps(rounds))
"""


def like_a_worker(script: str, *arguments: Path) -> list[int]:
    """What it prints in a process like a worker; in this one whatever another test left comes and goes."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"GLIBC_TUNABLES": memory.TUNABLES},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return json.loads(done.stdout)


@linux
def test_a_dropped_model_leaves_nothing(tmp_path: Path):
    rounds = like_a_worker(ROUNDS, zoo.external(tmp_path / "m.onnx", mebibytes=64))
    assert rounds[-1] - rounds[0] < 16 << 20


#: Prints the resident bytes before 45 MB are taken in another thread, with them, and after giving back.
IN_A_THREAD = """
import json, resource, threading
from pathlib import Path
import numpy as np
from hedgerow_server.engine import memory

class Owner:
    def take(self):
        memory.anchor(self)
        self.blocks = [np.ones(15_000_000, np.uint8) for _ in range(3)]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

owner, seen = Owner(), [resident()]
thread = threading.Thread(target=owner.take)
thread.start()
thread.join()
seen.append(resident())
del thread, owner
memory.give_back()
print(json.dumps([*seen, resident()]))
"""


@pytest.mark.skipif(not hasattr(memory._LIBC, "malloc_trim"), reason="glibc only")
def test_what_was_taken_last_in_a_thread_is_given_back_too():
    """It is free at the end of that thread's arena, which malloc_trim leaves as it is."""
    before, held, after = like_a_worker(IN_A_THREAD)
    assert held - before > 40 << 20
    assert after - before < 8 << 20


def test_sessions_and_the_threads_that_load_them_have_anchors(monkeypatch: pytest.MonkeyPatch, large: Path):
    owners: list[object] = []
    monkeypatch.setattr(memory, "anchor", owners.append)
    model = mapped(large)
    packed = pack(model, SPEC)
    assert owners == [model.session, packed.session]
    thread = LoaderThreads().submit(threading.current_thread).result(10)
    assert owners[2:] == [thread]


def test_the_memory_left_is_the_smaller_of_machine_and_group(tmp_path: Path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert memory._of_machine(tmp_path / "meminfo") == 2 << 20
    assert memory._of_group(tmp_path) is None
    for name, text in (("max", "1000\n"), ("current", "900\n"), ("stat", "anon 700\ninactive_file 150\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory._of_group(tmp_path) == 250
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._of_group(tmp_path) is None
    found = memory.available()
    assert found is None or found > 0


# Threads.


def test_a_load_that_hangs_keeps_no_place_and_too_many_are_refused():
    threads = LoaderThreads(most=2)
    go_on = threading.Event()
    hung = threads.submit(go_on.wait)
    assert threads.submit(lambda: 3).result(10) == 3
    threads.submit(go_on.wait)
    with pytest.raises(TooManyHang, match="2 earlier loads have not returned"):
        threads.submit(lambda: 3)
    go_on.set()
    assert hung.result(10)
    assert threads.submit(lambda: 3).result(10) == 3


class Stuck(memory.GivingBack):
    """Where nobody comes away from asking until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def ask(self) -> None:
        assert self.go_on.wait(10)


def test_a_load_that_has_returned_keeps_no_place_while_its_memory_is_given_back():
    """A server with nine models did not start where the threads of eight got no core for that."""
    giving_back = Stuck()
    threads = LoaderThreads(most=1, giving_back=giving_back)
    try:
        for _ in range(3):
            assert threads.submit(lambda: 3).result(10) == 3
        with pytest.raises(ZeroDivisionError):
            threads.submit(lambda: 1 / 0).result(10)
        assert threads.submit(lambda: 3).result(10) == 3
    finally:
        giving_back.go_on.set()


def test_a_failed_load_holds_nothing_of_itself():
    gone = threading.Event()

    class Session:
        def __del__(self) -> None:
            gone.set()

    def fail() -> None:
        session = Session()
        raise ValueError(session is None)

    gc.disable()
    try:
        with pytest.raises(ValueError, match="False"):
            LoaderThreads().submit(fail).result(10)
        assert gone.wait(10)
    finally:
        gc.enable()


class Giver:
    """Stands in for `malloc_trim`: says when it is called, and returns when it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self) -> None:
        self.begun.release()
        assert self.go_on.acquire(timeout=10)


def test_memory_is_given_back_once_for_all_who_ask_meanwhile():
    give = Giver()
    giving_back = memory.GivingBack(give, after=0.0, patience=10.0)
    with giving_back.at_work():
        for _ in range(20):
            giving_back.ask()
    give.go_on.release()
    assert give.begun.acquire(timeout=10)
    assert not give.begun.acquire(timeout=0.3)
    giving_back.ask()
    assert give.begun.acquire(timeout=10)
    give.go_on.release()


def test_memory_is_given_back_when_no_load_is_at_work_and_a_load_waits_for_its_end():
    give = Giver()
    giving_back = memory.GivingBack(give, after=0.0, patience=10.0)
    with giving_back.at_work(), giving_back.at_work():
        giving_back.ask()
        assert not give.begun.acquire(timeout=0.1)
    assert give.begun.acquire(timeout=10)
    loaded = LoaderThreads(giving_back=giving_back).submit(lambda: 3)
    with pytest.raises(TimeoutError):
        loaded.result(0.1)
    give.go_on.release(2)
    assert loaded.result(10) == 3


def test_a_load_that_hangs_holds_back_memory_for_a_while_only():
    give = Giver()
    giving_back = memory.GivingBack(give, after=0.0, patience=0.05)
    give.go_on.release()
    with giving_back.at_work():
        giving_back.ask()
        assert give.begun.acquire(timeout=10)


def test_a_drop_has_its_memory_given_back(monkeypatch: pytest.MonkeyPatch):
    give = Giver()
    give.go_on.release()
    monkeypatch.setattr(memory, "GIVING_BACK", memory.GivingBack(give, after=0.0))
    sessions: list[object] = [object()]
    memory.let_go(sessions, ())
    assert not sessions
    assert give.begun.acquire(timeout=10)


def test_a_failed_load_says_so():
    threads = LoaderThreads()
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(10)


def test_a_load_that_nobody_wants_any_more_is_not_begun():
    give = Giver()
    giving_back = memory.GivingBack(give, after=0.0)
    giving_back.ask()
    assert give.begun.acquire(timeout=10)
    began = threading.Event()
    waiting = LoaderThreads(giving_back=giving_back).submit(began.set)
    assert waiting.cancel()
    give.go_on.release(2)
    assert not began.wait(0.2)


@linux
def test_loader_threads_stand_back_and_nobody_else_does():
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    threads = LoaderThreads()
    theirs = threads.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result(10)
    assert theirs == max(mine, NICE)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


def test_what_is_worth_two_gears_counts_external_weights_alone(large: Path, tmp_path: Path):
    assert gears.has_two(gears.ModelFile(external_bytes=gears.PAYS_BYTES))
    assert not gears.has_two(gears.ModelFile(external_bytes=gears.PAYS_BYTES - 1))
