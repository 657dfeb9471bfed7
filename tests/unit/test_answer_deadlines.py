"""The request path when time runs out: before a run, while it waits, while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fakes_engine import THREADED, endless, model, request, table
from hedgerow_server.call import Call
from hedgerow_server.gate.deadlines import Deadlines
from request_paths import Open, check_counts, drained, lanes, opening

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


async def test_a_run_is_stopped_at_the_last_deadline_of_its_calls(start: Open) -> None:
    """All callers get DEADLINE_EXCEEDED, none INTERNAL, and the runner is free again."""
    of = endless(max_batch_size=8)
    path = await start(table(of), inline_below=THREADED, runners=1)
    calls = [path.callers.call(request({"x": [[1.0]]}), remaining=0.01 * (i + 1)) for i in range(3)]
    path.answerer.answer(calls)
    await drained(path, of)
    for call in calls:
        reply = path.callers.of(call)
        assert reply.code is grpc.StatusCode.DEADLINE_EXCEEDED, reply
        assert "deadline" in reply.message
    check_counts(path, calls, of)


async def test_what_runs_out_of_time_while_all_runners_are_busy_is_told_before_a_runner_is_free(
    start: Open,
) -> None:
    """Triton tells a timed-out request only after the running inference ends (its issue 7512)."""
    of = endless(max_batch_size=1)
    path = await start(table(of), inline_below=THREADED, runners=1)
    holds = path.callers.call(request({"x": [[1.0]]}), remaining=60)
    waits = [path.callers.call(request({"x": [[1.0]]}), remaining=0.001) for _ in range(3)]
    path.answerer.answer([holds, *waits])
    async with asyncio.timeout(10):
        while len(path.callers.replies) < 3:  # noqa: ASYNC110  the sink is not told to tell us
            await asyncio.sleep(0.005)
    assert of.running == 1
    for call in waits:
        assert path.callers.of(call).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "not run" in path.callers.of(call).message
    path.answerer.cancel(holds)
    await drained(path, of)
    assert of.statistics.runs == 0
    check_counts(path, [holds, *waits], of)


@lanes
async def test_what_is_late_already_is_refused_before_anything_is_done(
    start: Open, inline_below: float
) -> None:
    of = model("several")
    path = await start(table(of), inline_below=inline_below)
    late = path.callers.call(request({"a": [[1, 2]], "b": [[3, 4]]}), remaining=0.0)
    later = path.callers.call(b"\xff not even a message", remaining=-5.0)
    path.answerer.answer([late])
    assert path.callers.of(late).code is grpc.StatusCode.DEADLINE_EXCEEDED
    path.answerer.answer([later])
    assert path.callers.of(later).code in {grpc.StatusCode.DEADLINE_EXCEEDED, INVALID}
    assert of.statistics.queued == of.statistics.runs == 0
    check_counts(path, [late, later], of)


async def test_the_timeout_parameter_is_a_deadline_in_microseconds(start: Open) -> None:
    """Triton's clients send it as int64; a text, a negative number and a fraction are errors."""
    of = model("several")
    now = [1000.0]
    path = await start(table(of), inline_below=THREADED, clock=lambda: now[0], deadlines=Deadlines(5, 30))

    def call(**parameter: Any) -> Call:
        made = request({"a": [[1, 2]], "b": [[3, 4]]})
        for kind, value in parameter.items():
            setattr(made.parameters["timeout"], kind, value)
        return path.callers.call(made)

    good = [call(int64_param=2_000_000), call(uint64_param=10**18), call(int64_param=0), call()]
    bad = [call(int64_param=-1), call(string_param="1s"), call(double_param=0.5), call(bool_param=True)]
    path.answerer.answer([*good, *bad])
    assert [call.deadline for call in good] == [1002.0, 1030.0, 1005.0, 1005.0]
    for each in bad:
        assert path.callers.of(each).code is INVALID
        assert "'timeout'" in path.callers.of(each).message
    await drained(path, of)
