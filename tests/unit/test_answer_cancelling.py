"""The request path when calls are cancelled or abandoned: before, while and after they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from fakes_engine import INLINE, THREADED, RequestPath, endless, model, request, table
from hedgerow_server.call import Call
from hypothesis import given, settings
from hypothesis import strategies as st
from request_paths import Open, check_counts, drained, good, opening

OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED

#: When a call is cancelled: never, or after so many turns of the loop from its group's arrival.
cancels = st.one_of(st.none(), st.none(), st.integers(0, 6))
#: A group arrives in one turn: rows of each call and its cancellation.
groups = st.lists(st.tuples(st.integers(1, 5), cancels), min_size=1, max_size=9)


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


@pytest.mark.parametrize("inline_below", [INLINE, THREADED], ids=["inline", "threaded"])
@pytest.mark.parametrize("kind", ["several", "slow", "batch_mean"])
@settings(max_examples=40, deadline=None)
@given(plan=st.lists(groups, min_size=1, max_size=4), runners=st.integers(1, 3))
def test_cancelling_any_of_a_batch_leaves_the_others_answers_right(
    kind: str, inline_below: float, plan: list[list[tuple[int, int | None]]], runners: int
) -> None:
    """Whoever was not cancelled gets exactly its own numbers, in both lanes; nobody is counted twice."""
    of = {
        "several": lambda: model("several", max_batch_size=8),
        "slow": lambda: model("slow", max_batch_size=8, milliseconds=1.0),
        "batch_mean": lambda: model("batch_mean"),
    }[kind]()
    source = np.random.default_rng(0)

    def tensors_of(rows: int) -> dict[str, np.ndarray]:
        width = 1 if kind == "slow" else 2
        names = ("a", "b") if kind == "several" else ("x",)
        return {name: source.standard_normal((rows, width)).astype(np.float32) for name in names}

    def is_right(sent: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> bool:
        if kind == "several":
            a, b = sent["a"], sent["b"]
            wanted = {"sum": a + b, "difference": a - b, "larger": a > b}
        elif kind == "slow":
            wanted = {"y": sent["x"]}
        else:
            x = sent["x"]
            wanted = {"y": x - x.mean(axis=0, keepdims=True)}
        return got.keys() == wanted.keys() and all(
            got[name].shape == wanted[name].shape and np.allclose(got[name], wanted[name], atol=1e-6)
            for name in wanted
        )

    async def scenario() -> None:
        path = await RequestPath.open(table(of), inline_below=inline_below, runners=runners)
        sent: dict[Call, dict[str, np.ndarray]] = {}
        cancelled: set[Call] = set()

        async def give_up(call: Call, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            if call.token not in path.callers.replies:
                cancelled.add(call)
            path.answerer.cancel(call)

        async with asyncio.TaskGroup() as givers:
            for group in plan:
                calls = []
                for rows, turns in group:
                    inputs = tensors_of(rows)
                    call = path.callers.call(request(inputs))
                    sent[call] = inputs
                    calls.append((call, turns))
                path.answerer.answer([call for call, _ in calls])
                for call, turns in calls:
                    if turns is not None:
                        givers.create_task(give_up(call, turns))
                await asyncio.sleep(0)
        await drained(path, of)
        for call, inputs in sent.items():
            if call in cancelled:
                assert call.token not in path.callers.replies
            else:
                assert is_right(inputs, path.callers.of(call).tensors), call
        check_counts(path, list(sent), of)
        assert of.statistics.requests.get(CANCELLED.value[0], 0) == len(cancelled)
        await path.engine.close()

    asyncio.run(scenario())


async def test_abandoning_ends_what_runs_and_what_waits(start: Open) -> None:
    """When a drain's time is over, each call gets one UNAVAILABLE, and a run that nobody waits for stops."""
    of = endless(max_batch_size=2)
    path = await start(table(of), inline_below=THREADED, runners=1)
    calls = [path.callers.call(request({"x": [[float(i)]]})) for i in range(5)]
    path.answerer.answer(calls)
    path.answerer.abandon()
    assert {path.callers.of(call).code for call in calls} == {grpc.StatusCode.UNAVAILABLE}
    await drained(path, of)
    check_counts(path, calls, of)


async def test_a_call_that_is_cancelled_while_it_waits_is_never_run(start: Open) -> None:
    """Triton runs what nobody waits for any more; the queue drops it before a batch forms."""
    of = model("slow", max_batch_size=1, milliseconds=5)
    path = await start(table(of), inline_below=THREADED, runners=1)
    first, second = (path.callers.call(request({"x": [[float(i)]]})) for i in range(2))
    path.answerer.answer([first, second])
    path.answerer.cancel(second)
    await drained(path, of)
    assert of.statistics.runs == 1
    assert path.callers.of(first).tensors["y"].tolist() == [[0.0]]
    check_counts(path, [first, second], of)


async def test_cancelling_twice_or_after_the_answer_changes_nothing(start: Open) -> None:
    of = model("several")
    path = await start(table(of))
    call = path.callers.call(request({"a": [[1, 2]], "b": [[3, 4]]}))
    path.answerer.answer([call])
    for _ in range(3):
        path.answerer.cancel(call)
    assert path.callers.of(call).code is OK
    check_counts(path, [call], of)


async def test_a_run_stops_when_its_last_call_is_cancelled(start: Open) -> None:
    """A model that would run for ages is stopped by ONNX Runtime's terminate flag, not waited for."""
    of = endless(max_batch_size=8)
    path = await start(table(of), inline_below=THREADED, runners=2)
    calls = [path.callers.call(request({"x": [[float(i)]]})) for i in range(3)]
    path.answerer.answer(calls)
    for call in calls[:2]:
        path.answerer.cancel(call)
    await asyncio.sleep(0.01)
    assert of.running == 1
    path.answerer.cancel(calls[2])
    await drained(path, of)
    assert path.callers.replies == {}
    check_counts(path, calls, of)


async def test_a_run_stops_even_if_its_calls_are_cancelled_before_its_thread_has_begun(start: Open) -> None:
    """Between the hand-over to a thread and the thread's first instruction there is time for a cancel."""
    of = endless(max_batch_size=8)
    path = await start(table(of), inline_below=THREADED, runners=2)
    held: list[Callable[[], Any]] = []
    submit = path.engine._threads.submit
    path.engine._threads.submit = lambda *work: held.append(lambda: submit(*work))  # type: ignore[assignment,method-assign,misc,return-value]
    call = path.callers.call(request({"x": [[1.0]]}))
    path.answerer.answer([call])
    path.answerer.cancel(call)
    held[0]()
    await drained(path, of)
    check_counts(path, [call], of)


async def test_a_call_given_up_before_it_was_handed_over_is_counted_and_logged_as_cancelled(
    start: Open,
) -> None:
    """One request, one outcome, one log line: also for who left in the same turn of the loop."""
    of = model("several")
    path = await start(table(of))
    gone, stays = path.callers.call(good(), metadata=[("x-request-id", "gone")]), path.callers.call(good())
    gone.ended = True
    path.answerer.answer([gone, stays])
    assert path.callers.replies.keys() == {stays.token}
    check_counts(path, [gone, stays], of)
    assert {(line.request_id == "gone", line.code) for line in path.log.lines} == {
        (True, "CANCELLED"),
        (False, "OK"),
    }
