"""A model that hangs: its rules answer in time, and soon at once, since the version goes into quarantine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from fakes_engine import THREADED, model, request, table
from fallback_rules import with_rules
from hedgerow_protos.breaker import State
from hedgerow_server.engine.latency import LatencyModel
from hedgerow_server.engine.model import QUARANTINE
from hedgerow_server.gate.deadlines import Deadlines, kept
from hedging_world import NEVER, Ends, World, ruled
from hedging_world import ask as asking
from hypothesis import given
from hypothesis import strategies as st
from request_paths import Open, opening

OK = grpc.StatusCode.OK
ANSWERS, HANGS = Ends("answer", 0.001), Ends("answer", NEVER)
virtual = pytest.mark.looptime(start=1000)


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


def alone() -> World:
    """One region whose backup takes nothing."""
    world = World.open(ruled())
    world.hedger.backups[0].standing.is_ready = False
    world.models[0].latency = LatencyModel(0.001)
    return world


async def ask(world: World, here: Ends, remaining: float = 1.0) -> tuple[str, float]:
    """One request; how it was answered, and after how many seconds."""
    call = world.call(asking(value=1.0), here, remaining=remaining)
    began = asyncio.get_running_loop().time()
    world.arrive(call)
    await world.answerer.idle()
    assert world.callers.of(call).code is OK
    return call.outcome, world.answered[call.token] - began


@virtual
async def test_it_goes_into_quarantine_though_no_request_sees_its_deadline_pass():
    """What rules answer is no good run: else each request would wait nearly as long as it may, for ever."""
    world = alone()
    for _ in range(QUARANTINE.minimum):
        assert await ask(world, HANGS) == ("fallback", pytest.approx(0.9))
    assert world.models[0].breaker.state is State.OPEN
    assert "had not ended after 0.900 s" in world.models[0].breaker.reason
    for _ in range(20):
        assert await ask(world, HANGS) == ("fallback", pytest.approx(0.0))
    await world.check_is_over()


@virtual
async def test_a_probe_that_hangs_is_answered_by_rules_and_prolongs_the_quarantine():
    world = alone()
    for _ in range(QUARANTINE.minimum):
        await ask(world, HANGS)
    for trip in range(2, 5):
        await asyncio.sleep(QUARANTINE.open_for)
        assert await ask(world, HANGS) == ("fallback", pytest.approx(0.9))
        assert world.models[0].breaker.state is State.OPEN
        assert world.models[0].breaker.trips == trip
        assert await ask(world, HANGS) == ("fallback", pytest.approx(0.0))
    await world.check_is_over()


@virtual
async def test_a_model_that_hangs_no_more_answers_again():
    world = alone()
    for _ in range(QUARANTINE.minimum):
        await ask(world, HANGS)
    await asyncio.sleep(QUARANTINE.open_for)
    for _ in range(QUARANTINE.probes):
        assert await ask(world, ANSWERS) == ("primary", pytest.approx(0.001))
    assert world.models[0].breaker.state is State.CLOSED
    await world.check_is_over()


@virtual
async def test_rules_that_answer_in_place_of_a_run_that_is_as_slow_as_ever_do_not_count():
    """A model of 200 ms and callers with 150: nobody could have met that."""
    world = alone()
    world.models[0].latency = LatencyModel(0.2)
    for _ in range(20):
        outcome, _ = await ask(world, Ends("answer", 0.2), remaining=0.15)
        assert outcome == "fallback"
    assert world.models[0].breaker.trips == 0
    await world.check_is_over()


@virtual
async def test_what_waits_for_a_backup_when_rules_answer_it_counts_once():
    """Its run has failed, and counted, long before."""
    world = World.open(ruled())
    world.regions[0].plans = [HANGS]
    world.models[0].latency = LatencyModel(0.0001)
    for _ in range(QUARANTINE.minimum - 1):
        assert await ask(world, Ends("fail", 0.01)) == ("fallback", pytest.approx(0.9))
    assert world.models[0].breaker.state is State.CLOSED
    await world.check_is_over()


@virtual
@pytest.mark.parametrize("remaining", [0.001, 0.002, 0.003, 0.01, 0.1, 0.5, 5.0, 60.0])
async def test_the_answer_comes_before_the_deadline_however_short_that_is(remaining: float):
    """By what an event loop's timers have, a millisecond, at least, where there are two."""
    outcome, seconds = await ask(world := alone(), HANGS, remaining)
    assert outcome == "fallback"
    assert seconds <= remaining - 0.99 * min(0.002, remaining / 2)
    await world.check_is_over()


@given(st.floats(1e-6, 1e4))
def test_most_of_the_time_is_the_models(seconds: float):
    assert 0 < kept(seconds) <= min(0.25, seconds / 2)
    assert kept(seconds) <= 0.1 * seconds or seconds < 0.02


async def test_a_real_run_without_end_is_answered_by_rules_and_stopped(start: Open):
    """For some values alone, which is why it passed its warm-up; others are answered meanwhile."""
    version = with_rules(model("hangs", max_batch_size=1))
    path = await start(table(version), inline_below=THREADED, runners=5, deadlines=Deadlines(1, 1))
    version.latency.observe(1, 0.001)
    hanging = [path.callers.call(request({"x": [[2000.0]]})) for _ in range(4)]
    good = path.callers.call(request({"x": [[7.0]]}))
    path.answerer.answer([*hanging, good])
    async with asyncio.timeout(20):
        await path.answerer.idle()
        await version.drained()
    assert [call.outcome for call in (*hanging, good)] == ["fallback"] * 4 + ["primary"]
    for call in hanging:
        np.testing.assert_array_equal(path.callers.of(call).tensors["y"], np.float32([[4000]]))
    np.testing.assert_array_equal(path.callers.of(good).tensors["y"], np.float32([[7]]))
