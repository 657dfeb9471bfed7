"""What attempts at backup regions may hold, and that nothing of them is left, in virtual time."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest
from fakes_engine import table
from hedgerow_server.call import Call
from hedgerow_server.resilience import hedger as hedger_module
from hedging_shorthand import FAILS, HANGS, outcome
from hedging_world import HERE, Ends, World, ask, served

pytestmark = pytest.mark.looptime(start=1000)


@pytest.mark.parametrize("limit", ["MOST_ATTEMPTS", "MOST_BYTES"])
async def test_attempts_under_way_are_bounded_in_number_and_in_bytes(monkeypatch, limit: str):
    size = len(ask().SerializeToString())
    monkeypatch.setattr(hedger_module, limit, 3 if limit == "MOST_ATTEMPTS" else 3 * size)
    world = World.open()
    world.regions[0].plans = [HANGS]
    calls = [world.call(here=FAILS, remaining=0.2) for _ in range(4)]
    world.arrive(*calls)
    await asyncio.sleep(0.01)
    assert world.regions[0].under_way == 3
    assert world.suppressed() == {("failover", "busy"): 1}
    await world.answerer.idle()
    await world.check_is_over()


async def test_a_call_that_has_ended_is_kept_by_nobody():
    """With a delay of seconds a timer for each call would keep its message alive so long."""
    world = World.open(served(after_ms=5000.0))
    await world.ask(ask(id="kept?"), Ends("answer", 0.01))
    (call,) = world.calls
    world.calls.clear()
    world.runs.plans.clear()
    gc.collect()
    holders = [holder for holder in gc.get_referrers(call) if not _is_frame(holder)]
    assert not holders


def _is_frame(holder: object) -> bool:
    return type(holder).__name__ in {"frame", "coroutine"}


async def test_attempts_leave_no_cycles_behind():
    """The request path makes none: else the collector stops everything now and then."""
    world = World.open(backups=2)
    world.regions[0].plans = [Ends("INTERNAL", 0.005)]
    world.regions[1].plans = [Ends("garbage", 0.005)]
    for here in (HANGS, FAILS, Ends("answer", 0.1)):
        await world.ask(here=here, remaining=0.2)
    await world.check_is_over()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for here in (HANGS, FAILS, Ends("answer", 0.1)):
            await world.ask(here=here, remaining=0.2)
        world.calls.clear()
        gc.collect()
        left = [thing for thing in gc.garbage if isinstance(thing, Call | asyncio.Task)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not left


async def test_a_version_that_is_gone_is_forgotten_when_its_calls_are():
    old, new = served(version="1"), served(version="2")
    world = World.open(old, new)
    call = world.call(here=Ends("answer", 0.02))
    world.arrive(call)
    world.answerer.use(table(new))
    await world.answerer.idle()
    world.answerer.use(table(new))
    assert old not in world.hedger._watch._lines
    await world.check_is_over()


async def test_an_attempt_that_was_never_sent_gives_its_token_back():
    """The call ends in the same turn of the loop, before the attempt's first step."""
    world = World.open(share=0.01, burst=5)
    call = world.call(here=HANGS)
    world.arrive(call)
    world.hedger._hedge(call)
    assert world.budget.tokens == 4.0
    world.answerer.cancel(call)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert world.budget.tokens == 5.0
    assert not world.regions[0].asked
    assert world.outcomes() == {}
    await world.check_is_over(cancelled=[call])


async def test_of_many_in_one_turn_only_one_tries_a_backup_whose_breaker_is_half_open():
    """The others keep their tokens."""
    world = World.open(share=0.01, burst=10)
    breaker = world.hedger.breakers[0]
    breaker.tally(5, failed=5)
    await asyncio.sleep(breaker.policy.open_for + 0.1)
    world.arrive(*[world.call(here=Ends("answer", 0.035)) for _ in range(5)])
    await world.answerer.idle()
    assert len(world.regions[0].asked) == 1
    assert world.suppressed() == {("hedge", "breaker"): 4}
    assert len(world.budget.sent) == 1
    await world.check_is_over()


async def test_closing_ends_attempts_and_tells_who_waits_for_them():
    world = World.open(backups=2)
    for region in world.regions:
        region.plans = [HANGS]
    failed, slow = world.call(here=FAILS), world.call(here=Ends("answer", 0.3))
    world.arrive(failed, slow)
    await asyncio.sleep(0.05)
    await world.hedger.close()
    await world.answerer.idle()
    assert world.callers.of(failed).code is grpc.StatusCode.INTERNAL
    assert outcome(world.callers.of(slow)) == (HERE, "", "")
    assert [len(region.asked) for region in world.regions] == [2, 0], "nothing begins any more"
    await world.check_is_over()
