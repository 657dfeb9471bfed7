"""Rules and the event loop: long answers take turns, a few at a time, and none is dropped for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from fakes_engine import RequestPath, model, request, table
from fallback_rules import broken
from hedgerow_server.call import Call
from hedgerow_server.engine.model import QUARANTINE, Model
from hedgerow_server.gate.deadlines import Deadlines
from hedgerow_server.resilience.fallback import TURNS
from request_paths import Open, opening

OK, INTERNAL = grpc.StatusCode.OK, grpc.StatusCode.INTERNAL
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


def long_calls(path: RequestPath, of: Model, count: int, turns: float) -> list[Call]:
    """Requests whose rules take so many turns each."""
    assert of.rules is not None
    x = np.arange(max(1, int(turns * of.rules.turn_rows)), dtype=np.float32)[:, None]
    payload = request({"x": x}).SerializeToString()
    return [path.callers.call(payload) for _ in range(count)]


def broken_for_many(*, quarantined: bool = False) -> Model:
    """Like `broken`, with batches as large as a request may be."""
    made = broken()
    made.signature = model("slow", max_batch_size=1 << 16, milliseconds=1).signature
    if quarantined:
        made.breaker.tally(QUARANTINE.minimum, failed=QUARANTINE.minimum)
    return made


def at_work(of: Model) -> list[int]:
    """Notes how many long answers are under way whenever one begins."""
    assert of.rules is not None
    answer, notes, active = of.rules.answer_in_turns, [], [0]

    async def counted(*args: Any) -> Any:
        active[0] += 1
        notes.append(active[0])
        try:
            return await answer(*args)
        finally:
            active[0] -= 1

    of.rules.answer_in_turns = counted  # type: ignore[method-assign]
    return notes


async def idle(path: RequestPath) -> None:
    async with asyncio.timeout(30):
        await path.answerer.idle()
    assert not path.answerer._fallback.is_busy
    for _ in range(3):
        await asyncio.sleep(0)  # for the ends of what was cancelled
    assert len(asyncio.all_tasks()) == 1


async def test_however_many_long_requests_fail_at_once_all_are_answered(start: Open):
    """A few at a time: all of them at once would hold up the loop for all their turns together."""
    version = broken_for_many()
    path = await start(table(version))
    notes = at_work(version)
    calls = long_calls(path, version, 100, 2.5)
    path.answerer.answer(calls)
    await idle(path)
    x = np.arange(len(path.callers.of(calls[0]).tensors["y"]), dtype=np.float32)[:, None]
    for call in calls:
        np.testing.assert_array_equal(path.callers.of(call).tensors["y"], np.where(x > 10, 2 * x, -1))
    assert max(notes) == TURNS
    assert version.statistics.elsewhere == {"fallback": 100}


async def test_short_requests_that_fail_at_once_share_a_bound_too(start: Open):
    """Each takes less than a turn, all together many: only some are answered before the loop goes on."""
    version = broken_for_many(quarantined=True)
    path = await start(table(version))
    calls = long_calls(path, version, 30, 0.9)
    path.answerer.answer(calls)
    assert sum(call.ended for call in calls) == int(TURNS / 0.9)
    await idle(path)
    assert {path.callers.of(call).code for call in calls} == {OK}


async def test_a_turn_of_the_loop_gives_back_what_the_last_has_used(start: Open):
    version = broken_for_many()
    path = await start(table(version))
    for _ in range(20):
        (call,) = long_calls(path, version, 1, 0.9)
        path.answerer.answer([call])
        assert call.ended
        await asyncio.sleep(0)


async def test_one_that_is_late_when_its_turn_comes_is_told_what_failed(start: Open):
    """Nobody waits for its answer any more; the turns are for those who do."""
    time = 0.0
    version = broken_for_many(quarantined=True)
    path = await start(table(version), clock=lambda: time, deadlines=Deadlines(10, 60))
    calls = long_calls(path, version, TURNS + 3, 2.5)
    path.answerer.answer(calls)
    time = 11.0
    await asyncio.sleep(0)
    await idle(path)
    assert {path.callers.of(call).code for call in calls} == {UNAVAILABLE}
    assert not version.statistics.rules.answered


async def test_who_leaves_while_rules_are_at_work_makes_room(start: Open):
    version = broken_for_many()
    path = await start(table(version))
    calls = long_calls(path, version, 3 * TURNS, 4.5)
    path.answerer.answer(calls)
    for _ in range(3):
        await asyncio.sleep(0)
    for call in calls[::2]:
        path.answerer.cancel(call)
    await idle(path)
    assert [call.token in path.callers.replies for call in calls] == [False, True] * (len(calls) // 2)
    assert {path.callers.of(call).code for call in calls[1::2]} == {OK}
    assert version.in_flight == 0


async def test_a_drain_that_is_over_ends_all_once(start: Open):
    """Those whose rules are at work, those that wait for their turn, and those that were answered."""
    version = broken_for_many()
    path = await start(table(version))
    calls = [*long_calls(path, version, 2, 0.1), *long_calls(path, version, 2 * TURNS, 4.5)]
    path.answerer.answer(calls)
    for _ in range(3):
        await asyncio.sleep(0)
    path.answerer.draining = True
    path.answerer.abandon()
    await idle(path)
    assert [path.callers.of(call).code for call in calls] == [OK] * 2 + [UNAVAILABLE] * 2 * TURNS
    assert (version.in_flight, path.answerer._endings.held_bytes) == (0, 0)


async def test_a_reply_that_cannot_be_written_is_its_own_callers_trouble(start: Open):
    version = broken()
    path = await start(table(version))
    codec = path.answerer.codecs[path.answerer.table.choose("m", "", "", "")]
    write = codec.write_fallback

    def fail_once(request_id: str, *args: Any) -> bytes:
        if request_id == "bad":
            raise ValueError("no")
        return write(request_id, *args)

    codec.write_fallback = fail_once  # type: ignore[method-assign]
    calls = [path.callers.call(request({"x": [[1.0]]}, id=name)) for name in ("good", "bad", "fine")]
    path.answerer.answer(calls)
    await idle(path)
    assert [path.callers.of(call).code for call in calls] == [OK, INTERNAL, OK]
    assert [line.outcome for line in path.log.lines] == ["fallback", "", "fallback"]
