"""Where runs happen, how models share the runners, and what becomes of runs that fail."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import zoo
from fakes_engine import INLINE, THREADED, RequestPath, endless, model, request, table
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_server.engine import loading
from hedgerow_server.engine.batching import BatchQueue, Wait
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.runners import Engine
from hedgerow_server.engine.work import Work
from onnx import TensorProto, helper

lanes = pytest.mark.parametrize("inline_below", [INLINE, THREADED], ids=["inline", "threaded"])


@pytest.fixture
async def paths() -> AsyncIterator[list[RequestPath]]:
    """Request paths whose threads end with the test."""
    opened: list[RequestPath] = []
    yield opened
    for path in opened:
        await path.engine.close()


async def idle(path: RequestPath, *models: Model) -> None:
    async with asyncio.timeout(20):
        await path.answerer.idle()
        for each in models:
            await each.drained()


def watched(of: Model) -> list[tuple[bool, int]]:
    """Notes of each run whether it was on this thread, and its rows."""
    runs: list[tuple[bool, int]] = []
    here, run = threading.get_ident(), of.run

    def note(outputs: list[str], feeds: dict[str, np.ndarray], options: Any) -> list[np.ndarray]:
        runs.append((threading.get_ident() == here, len(next(iter(feeds.values())))))
        return run(outputs, feeds, options)

    of.run = note  # type: ignore[method-assign]
    of.bound = None  # Its runs would pass by.
    return runs


async def test_a_model_faster_than_the_limit_runs_on_the_loop_and_a_slower_one_in_a_thread(
    paths: list[RequestPath],
) -> None:
    """The measured run time decides, and what was learned is used at the next request."""
    quick, slow = model("several", "quick"), model("slow", "slow", milliseconds=3)
    path = await RequestPath.open(table(quick, slow), inline_below=1e-3)
    paths.append(path)
    runs = {"quick": watched(quick), "slow": watched(slow)}
    quick.latency.observe(1, 1e-6)
    for _ in range(3):
        path.answerer.answer(
            [
                path.callers.call(request({"a": [[1, 2]], "b": [[3, 4]]}, name="quick")),
                path.callers.call(request({"x": [[1.0]]}, name="slow")),
            ]
        )
        await idle(path, quick, slow)
    assert runs["quick"] == [(True, 1)] * 3
    assert runs["slow"] == [(False, 1)] * 3


async def test_a_fast_model_comes_back_from_the_threads_whatever_it_waits_for_there(
    paths: list[RequestPath],
) -> None:
    """On a busy core a run in a thread waits for a processor, and for the GIL; on the loop it would not."""
    of = model("several")
    path = await RequestPath.open(table(of), inline_below=2e-3)
    paths.append(path)
    for _ in range(200):
        of.latency.observe(1, 0.01)
    here, run = threading.get_ident(), of.run

    def wait_in_threads(outputs: list[str], feeds: dict[str, np.ndarray], options: Any) -> list[np.ndarray]:
        if threading.get_ident() != here:
            time.sleep(0.01)
        return run(outputs, feeds, options)

    of.run = wait_in_threads  # type: ignore[method-assign]
    runs = watched(of)
    for _ in range(40):
        path.answerer.answer([path.callers.call(request({"a": [[1, 2]], "b": [[3, 4]]}))])
        await idle(path, of)
    assert runs[0] == (False, 1)
    assert runs[-1] == (True, 1)


async def test_a_large_request_to_a_fast_model_does_not_stop_the_loop(paths: list[RequestPath]) -> None:
    """Its rows decide, not that it is one request."""
    of = model("several")
    path = await RequestPath.open(table(of), inline_below=100e-6)
    paths.append(path)
    runs = watched(of)
    of.latency.observe(1, 5e-6)
    many = np.ones((20_000, 2), np.float32)
    path.answerer.answer([path.callers.call(request({"a": many, "b": many}))])
    assert runs == [] or not runs[0][0]
    await idle(path, of)
    assert runs == [(False, 20_000)]


async def test_a_model_with_a_loop_never_runs_on_the_event_loop(paths: list[RequestPath]) -> None:
    """However fast it was so far: one request's values may make it go on for ever, and nobody can stop it."""
    of = model("hangs")
    path = await RequestPath.open(table(of), inline_below=INLINE)
    paths.append(path)
    runs = watched(of)
    path.answerer.answer([path.callers.call(request({"x": [[1.0]]}))])
    await idle(path, of)
    hanging = path.callers.call(request({"x": [[2000.0]]}), remaining=0.1)
    path.answerer.answer([hanging])
    await idle(path, of)
    assert path.callers.of(hanging).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert runs == [(False, 1)] * 2


async def test_a_long_queue_of_inline_runs_lets_the_loop_turn(paths: list[RequestPath]) -> None:
    """Between inline runs that together take long, everything else on the loop gets its turn."""
    slow = model("slow", "slow", max_batch_size=1, milliseconds=4)
    path = await RequestPath.open(table(slow), inline_below=INLINE)
    paths.append(path)
    turns: list[int] = []

    async def others() -> None:
        while path.answerer.in_flight:
            turns.append(path.answerer.in_flight)
            await asyncio.sleep(0)

    calls = [path.callers.call(request({"x": [[1.0]]}, name="slow")) for _ in range(12)]
    path.answerer.answer(calls)
    await others()
    await idle(path, slow)
    assert len(set(turns)) >= 3, turns


async def test_the_limit_is_measured_when_none_is_given() -> None:
    engine = Engine(runners=1)
    await engine.start(lambda *_: None, lambda *_: None)
    assert 1e-6 < engine.inline_below < 1.0
    await engine.close()


async def test_a_busy_model_leaves_a_runner_to_the_others(paths: list[RequestPath]) -> None:
    """With many slow requests of one model under way, another model's request is run at once."""
    hog = model("slow", "hog", max_batch_size=1, milliseconds=30)
    other = model("slow", "other", max_batch_size=1, milliseconds=1)
    path = await RequestPath.open(table(hog, other), inline_below=THREADED, runners=3)
    paths.append(path)
    first = path.callers.call(request({"x": [[0.0]]}, name="other"))
    hogs = [path.callers.call(request({"x": [[float(i)]]}, name="hog")) for i in range(8)]
    path.answerer.answer([first, *hogs])
    await asyncio.sleep(0)
    second = path.callers.call(request({"x": [[7.0]]}, name="other"))
    path.answerer.answer([second])
    async with asyncio.timeout(20):
        while second.token not in path.callers.replies:  # noqa: ASYNC110  the sink is not told to tell us
            await asyncio.sleep(0.001)
    assert sum(call.token in path.callers.replies for call in hogs) < 8
    await idle(path, hog, other)
    assert all(path.callers.of(call).code is grpc.StatusCode.OK for call in [first, second, *hogs])


async def test_a_model_has_no_more_runs_at_once_than_instances(
    paths: list[RequestPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another go on beside them, and its own that wait come next."""
    hog = model("slow", "hog", max_batch_size=1, milliseconds=5)
    other = model("slow", "other", max_batch_size=1, milliseconds=5)
    path = await RequestPath.open(table(hog, other), inline_below=THREADED, runners=5, instances=2)
    paths.append(path)
    started: list[tuple[int, int]] = []
    start = path.engine._start_run

    def note(of: Model, batch: list[Work]) -> None:
        start(of, batch)
        started.append((hog.running, other.running))

    monkeypatch.setattr(path.engine, "_start_run", note)
    calls = [
        path.callers.call(request({"x": [[float(i)]]}, name=name))
        for i in range(12)
        for name in ("hog", "other")
    ]
    path.answerer.answer(calls)
    await idle(path, hog, other)
    assert all(path.callers.of(call).code is grpc.StatusCode.OK for call in calls)
    assert len(started) == len(calls)
    assert max(started) == (2, 2)
    assert max(of_other for _, of_other in started) == 2


@pytest.mark.parametrize("runners", [1, 2, 5])
async def test_models_that_wait_for_runners_all_get_their_turn(
    paths: list[RequestPath], runners: int
) -> None:
    """Many models, few runners, all at once: nothing stalls and nothing is lost."""
    models = [model("slow", f"m{i}", max_batch_size=2, milliseconds=1) for i in range(6)]
    path = await RequestPath.open(table(*models), inline_below=THREADED, runners=runners)
    paths.append(path)
    calls = [path.callers.call(request({"x": [[float(i)]]}, name=f"m{i % 6}")) for i in range(60)]
    path.answerer.answer(calls)
    await idle(path, *models)
    for i, call in enumerate(calls):
        assert path.callers.of(call).tensors["y"].tolist() == [[float(i)]]
    assert path.engine._busy == 0
    assert not path.engine._runs


def positive_rows(path: Path) -> Path:
    """Gives only those elements of x FP32 [batch] that are above 0: sometimes as many, sometimes fewer."""
    return zoo.save(
        path,
        [
            helper.make_node("Greater", ["x", "zero"], ["keep"]),
            helper.make_node("Compress", ["x", "keep"], ["y"], axis=0),
        ],
        [zoo.tensor("x", ["batch"], TensorProto.FLOAT)],
        [zoo.tensor("y", ["batch"], TensorProto.FLOAT)],
        {"zero": np.float32(0)},
    )


@lanes
async def test_a_model_that_gives_fewer_rows_than_it_got_is_found_out_and_not_batched_again(
    tmp_path: Path, inline_below: float, paths: list[RequestPath], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets another's row: the batch is run again one by one, and later ones too."""
    file = positive_rows(tmp_path / "model.onnx")
    loaded = loading.load(file.parent, file.name, ServingSpec())
    # As if the check at loading had not noticed.
    signature = replace(loaded.signature, max_batch_size=8)
    of = Model("m", "1", "d", replace(loaded, signature=signature, row_independent=True), ServingSpec())
    assert of.batches
    path = await RequestPath.open(table(of), inline_below=inline_below)
    paths.append(path)
    values = [1.0, -2.0, 3.0, 4.0]
    for _ in range(2):
        calls = [path.callers.call(request({"x": [value]})) for value in values]
        path.answerer.answer(calls)
        await idle(path, of)
        got = [path.callers.of(call).tensors["y"].tolist() for call in calls]
        assert got == [[1.0], [], [3.0], [4.0]]
    assert not of.batches
    assert caplog.text.count("one by one") == 1
    runs = watched(of)
    path.answerer.answer([path.callers.call(request({"x": [value]})) for value in values])
    await idle(path, of)
    assert [rows for _, rows in runs] == [1, 1, 1, 1], "also those whose heads were known before"


async def test_what_runs_at_close_is_terminated() -> None:
    """Closing does not wait for a model that never returns."""
    of = endless()
    path = await RequestPath.open(table(of), inline_below=THREADED)
    call = path.callers.call(request({"x": [[1.0]]}))
    path.answerer.answer([call])
    await asyncio.sleep(0.01)
    async with asyncio.timeout(20):
        await path.engine.close()


async def test_a_version_is_drained_only_when_its_last_run_has_ended(paths: list[RequestPath]) -> None:
    """A call that was cancelled is gone, but its run still holds the session."""
    of = model("slow", milliseconds=20)
    path = await RequestPath.open(table(of), inline_below=THREADED)
    paths.append(path)
    call = path.callers.call(request({"x": [[1.0]]}))
    path.answerer.answer([call])
    path.answerer.cancel(call)
    assert (of.in_flight, of.running) == (0, 1)
    waits = asyncio.create_task(of.drained())
    await asyncio.sleep(0)
    assert not waits.done()
    async with asyncio.timeout(20):
        await waits
    assert of.running == 0


async def test_requests_wait_for_company_as_long_as_their_model_wants(paths: list[RequestPath]) -> None:
    """A full batch runs at once; fewer when the time is over; one whose deadline is near before that."""
    of = model("several", max_batch_size=4)
    of.queue = BatchQueue(4, Wait(0.05))
    path = await RequestPath.open(table(of), inline_below=INLINE)
    paths.append(path)
    runs = watched(of)
    ask = request({"a": [[1, 2]], "b": [[3, 4]]})
    path.answerer.answer([path.callers.call(ask) for _ in range(3)])
    assert runs == []
    path.answerer.answer([path.callers.call(ask)])
    assert runs == [(True, 4)]
    path.answerer.answer([path.callers.call(ask) for _ in range(2)])
    assert len(runs) == 1
    await idle(path, of)
    assert runs[1:] == [(True, 2)]
    # A wait longer than the test: only the deadline can end it, or the company.
    of.queue = BatchQueue(4, Wait(3600.0))
    of.latency.observe(1, 1e-6)
    gone, stays = path.callers.call(ask), path.callers.call(ask)
    path.answerer.answer([gone, stays])
    path.answerer.cancel(gone)
    path.answerer.answer([path.callers.call(ask) for _ in range(2)])
    assert len(runs) == 2, "three wait, and one that is gone"
    path.answerer.answer([path.callers.call(ask)])
    assert runs[2:] == [(True, 4)]
    last = path.callers.call(ask)
    path.answerer.answer([last])
    assert [work.ended for work in path.engine.give_up()] == [False], "found at the end of a drain"
