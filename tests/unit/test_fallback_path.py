"""Fallback rules on the request path: real answerer, engine and rules; only the sockets are missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from fakes_engine import THREADED, endless, model, request, table
from fallback_rules import ask, broken, with_rules
from hedgerow_protos.hedging import ATTEMPT
from hedgerow_server.errors import Internal
from hedgerow_server.gate.deadlines import Deadlines
from hedgerow_server.resilience.rules import Rules
from request_paths import Open, opening

OK, INTERNAL, LATE = grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


async def test_rules_answer_for_a_model_that_fails_row_by_row(start: Open) -> None:
    """Each row gets the first rule that is true of it; the reply, the log and the counts say so."""
    version = broken()
    path = await start(table(version))
    reply = await ask(path, [[3.0], [11.0], [12.5]], id="seven")
    np.testing.assert_array_equal(reply.tensors["y"], np.float32([[-1], [22], [25]]))
    said = {name: value.string_param for name, value in reply.response.parameters.items()}
    assert said == {"hedgerow_outcome": "fallback", "hedgerow_rule": "high,otherwise"}
    assert reply.response.id == "seven"
    (line,) = path.log.lines
    assert (line.code, line.outcome, line.rule) == ("OK", "fallback", "high,otherwise")
    assert version.statistics.rules.answered == {"high": 1, "otherwise": 1}
    assert version.statistics.elsewhere == {"fallback": 1}
    assert version.in_flight == 0


async def test_a_version_that_keeps_failing_is_not_run_and_its_rules_go_on_answering(start: Open) -> None:
    """After some failures the version is in quarantine: no more runs, every answer from the rules."""
    version = broken()
    runs = 0
    fail = version.run

    def counted(*args: Any) -> Any:
        nonlocal runs
        runs += 1
        return fail(*args)

    version.run = counted  # type: ignore[method-assign]
    path = await start(table(version))
    for _ in range(50):
        reply = await ask(path, [[1.0]])
        assert reply.code is OK
        assert reply.response.parameters["hedgerow_outcome"].string_param == "fallback"
    assert version.breaker.trips == 1
    assert runs == 5


async def test_rules_answer_shortly_before_the_deadline_of_a_run_that_does_not_end(start: Open) -> None:
    """The answer comes in time, and the run is stopped."""
    version = with_rules(endless())
    path = await start(table(version), inline_below=THREADED, deadlines=Deadlines(0.3, 0.3))
    began = asyncio.get_running_loop().time()
    reply = await ask(path, [[20.0]])
    assert reply.code is OK
    np.testing.assert_array_equal(reply.tensors["y"], np.float32([[40]]))
    assert asyncio.get_running_loop().time() - began < 5
    async with asyncio.timeout(20):
        await version.drained()


async def test_a_request_of_many_rows_is_answered_in_turns(start: Open) -> None:
    """More rows than a turn of the loop takes: the loop goes on meanwhile, the answer is the same."""
    version = broken()
    assert version.rules is not None
    rows = 3 * version.rules.turn_rows + 1
    version.signature = model("slow", max_batch_size=rows, milliseconds=1).signature
    path = await start(table(version))
    reply = await ask(path, [[float(row)] for row in range(rows)])
    expected = [[2.0 * row if row > 10 else -1.0] for row in range(rows)]
    np.testing.assert_array_equal(reply.tensors["y"], np.float32(expected))


async def test_another_regions_attempt_gets_the_failure_not_the_rules(start: Open) -> None:
    """Who sent it has rules of its own, and perhaps a real answer under way."""
    path = await start(table(broken()))
    call = path.callers.call(request({"x": [[1.0]]}), metadata=((ATTEMPT, "hedge"),))
    path.answerer.answer([call])
    async with asyncio.timeout(20):
        await path.answerer.idle()
    assert path.callers.of(call).code is INTERNAL


async def test_a_wrong_request_is_refused_whatever_rules_there_are(start: Open) -> None:
    """Rules answer for the model's faults, not for the caller's."""
    path = await start(table(broken()))
    assert (await ask(path, [[1.0, 2.0]])).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_rule_that_fails_leaves_the_first_error_to_the_caller(start: Open) -> None:
    """An expression that cannot be evaluated for a row: the caller hears of the model's failure."""
    version = broken()
    version.serving.fallback.rules[0].outputs["y"] = "double(int(x) / 0)"
    version.serving.fallback.rules[1].outputs["y"] = "double(1 / int(x))"
    version.rules = Rules.compile(version.serving, version.signature)
    path = await start(table(version))
    reply = await ask(path, [[0.0]])
    assert reply.code is INTERNAL
    assert version.statistics.rules.failed == {"otherwise": 1}
    assert not version.statistics.rules.answered


async def test_no_timer_is_left_of_calls_that_ended(start: Open) -> None:
    """A caller who gives up, and one who is answered, leave nothing behind."""
    version = with_rules(model("slow", max_batch_size=8, milliseconds=20))
    path = await start(table(version), inline_below=THREADED)
    calls = [path.callers.call(request({"x": [[1.0]]})) for _ in range(3)]
    path.answerer.answer(calls)
    assert path.answerer._fallback.is_busy
    path.answerer.cancel(calls[0])
    async with asyncio.timeout(20):
        await path.answerer.idle()
    assert not path.answerer._fallback.is_busy
    assert [path.callers.of(call).code for call in calls[1:]] == [OK, OK]


async def test_a_call_that_fails_while_rules_are_at_work_on_it_is_told_when_they_fail_too(
    start: Open,
) -> None:
    """They began since its time was nearly up, when there was no error yet to tell if they cannot answer."""
    version = with_rules(endless(max_batch_size=1000))
    version.serving.fallback.rules[1].outputs["y"] = "double(1 / int(x))"
    version.rules = Rules.compile(version.serving, version.signature)
    assert version.rules is not None
    path = await start(table(version), inline_below=THREADED)
    call = path.callers.call(request({"x": [[0.0]] * (3 * version.rules.turn_rows)}))
    path.answerer.answer([call])
    path.answerer._fallback._time_is_nearly_up(call)
    path.answerer._endings.refuse(call, Internal("the run failed"))
    async with asyncio.timeout(20):
        await path.answerer.idle()
    assert path.callers.of(call).code is INTERNAL
    path.engine.stop_unwanted_runs()
