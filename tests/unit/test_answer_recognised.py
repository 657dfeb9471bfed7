"""Requests whose head the request path has seen before: answered as if they were parsed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from fakes_engine import RequestPath, model, request, table
from hedgerow_server.call import Call
from hedgerow_server.gate.deadlines import Deadlines
from request_paths import Open, opening

OK = grpc.StatusCode.OK


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


def _outcome(path: RequestPath, call: Call) -> tuple[Any, ...]:
    reply = path.callers.of(call)
    if reply.code is not OK:
        error_id = path.log.lines[-1].error_id
        return reply.code, reply.message.replace(error_id, "") if error_id else reply.message
    return OK, reply.response


@pytest.mark.parametrize("nan", ["NAN_CHOICE_REJECT", "NAN_CHOICE_ALLOW"])
async def test_a_recognised_request_is_answered_as_one_that_is_parsed(start: Open, nan: str) -> None:
    """By answer, refusal and id: from a path that knows its head, and from one that knows nothing."""
    good_value, bad_value = np.ones((2, 2), np.float32), np.full((2, 2), np.nan, np.float32)
    b = np.arange(4, dtype=np.float32).reshape(2, 2)
    asks = []
    for a in (good_value, good_value * 3, bad_value, good_value):
        for request_id in ("", "id", "näme", "i" * 127, "i" * 128):
            for outputs in ((), ("larger", "sum"), ("nothing",)):
                asks.append(request({"a": a, "b": b}, id=request_id, outputs=outputs))
                asks.append(request({"b": b, "a": a}, id=request_id, outputs=outputs))
        asks.append(request({"a": a, "b": b[:1]}))
        asks.append(request({"a": a, "b": b}, version="9"))
        asks.append(request({"a": a, "b": b}, timeout=-1))
        asks.append(request({"a": a, "b": b}, name="nobody"))
        typed_timeout = request({"a": a, "b": b})
        typed_timeout.parameters["timeout"].bool_param = True
        short = request({"a": a, "b": b})
        short.raw_input_contents[1] = short.raw_input_contents[1][:-1]
        asks += [typed_timeout, short]
    choice = {"inputs": nan, "outputs": nan}
    knowing = await start(table(model("several", nan=choice)))
    for ask in (*asks, *asks):
        fresh = await start(table(model("several", nan=choice)))
        calls = [(path, path.callers.call(ask)) for path in (knowing, fresh)]
        for path, call in calls:
            path.answerer.answer([call])
        known, parsed = [_outcome(path, call) for path, call in calls]
        assert known == parsed


async def test_a_recognised_request_keeps_its_own_deadline(start: Open) -> None:
    """The timeout is part of the head; the transport's deadline is each call's own."""
    now = [100.0]
    path = await start(table(model("several")), deadlines=Deadlines(10, 60), clock=lambda: now[0])
    for timeout, remaining, wanted in (
        (0, None, 10.0), (0, 3.0, 3.0), (5_000_000, None, 5.0), (5_000_000, 2.0, 2.0), (5_000_000, None, 5.0),
    ):  # fmt: skip
        for _ in range(2):
            now[0] += 1
            ask = request({"a": [[1, 2]], "b": [[3, 4]]}, timeout=timeout)
            call = path.callers.call(ask, remaining=remaining)
            # The engine's clock is another; only what the call was given is looked at.
            path.answerer._engine.run_waiting = lambda _: None  # type: ignore[method-assign]
            path.answerer.answer([call])
            assert call.deadline == pytest.approx(now[0] + wanted)
