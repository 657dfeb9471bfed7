"""When a request is tried at a backup region as well, in virtual time."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from hedgerow_protos.hedging import ATTEMPT, LOAD, OWN_PREVIOUS_ATTEMPTS, PREVIOUS_ATTEMPTS
from hedging_shorthand import FAILS, HANGS, now, outcome
from hedging_world import AFTER, FOREIGN, HERE, THERE, Ends, World, ask, served

pytestmark = pytest.mark.looptime(start=1000)


async def test_a_slow_request_is_tried_at_the_backup_after_the_delay_and_the_first_answer_counts():
    world = World.open()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    began = now()
    reply = await world.ask(
        ask(id="mine", rows=3),
        Ends("answer", 0.5),
        metadata={"traceparent": trace, "x-request-id": "r1", "authorization": "Bearer t", "cookie": "no"},
        remaining=2.0,
    )
    assert outcome(reply) == (THERE, "hedge", "west")
    assert reply.response.id == "mine"
    ((at, asked, metadata),) = world.regions[0].asked
    assert at - began == pytest.approx(AFTER, abs=0.002)
    assert now() - began == pytest.approx(AFTER + 0.01, abs=0.003)
    assert asked.id == "mine"
    assert metadata == {
        "authorization": "Bearer t",
        "x-request-id": "r1",
        "traceparent": trace,  # a sibling of the attempt here
        PREVIOUS_ATTEMPTS: "1",
        OWN_PREVIOUS_ATTEMPTS: "1",
        ATTEMPT: "hedge",
    }
    (line,) = world.log.lines
    assert (line.code, line.outcome, line.trace_id) == ("OK", "hedge", trace[3:35])
    assert world.outcomes() == {("hedge", "won"): 1}
    assert world.runs.stopped == 1, "nobody waits for the run here"
    await world.check_is_over()


async def test_what_is_answered_in_time_is_not_tried_elsewhere_and_leaves_no_timer():
    world = World.open()
    for after in (0.0, 0.001, 0.02):
        assert outcome(await world.ask(here=Ends("answer", after))) == (HERE, "", "")
    assert not world.regions[0].asked
    assert world.suppressed() == {}
    await world.check_is_over()


async def test_each_request_waits_its_own_time_with_one_timer_for_all():
    """A timer each would keep thousands of them, and their messages, alive."""
    world = World.open(burst=1000)
    world.regions[0].plans = [HANGS]
    began = now()
    for i in range(10):
        world.arrive(*[world.call(here=Ends("answer", 0.2)) for _ in range(5)])
        timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]
        assert sum("Watch._look" in repr(timer) for timer in timers) == 1, i
        await asyncio.sleep(0.005)
    await world.answerer.idle()
    for i, (at, _, _) in enumerate(world.regions[0].asked):
        assert at - began == pytest.approx(AFTER + 0.005 * (i // 5), abs=0.002)
    assert len(world.regions[0].asked) == 50
    await world.check_is_over()


async def test_the_attempt_at_the_backup_is_cancelled_when_the_answer_comes_from_here():
    world = World.open()
    world.regions[0].plans = [HANGS]
    assert outcome(await world.ask(here=Ends("answer", 0.05))) == (HERE, "", "")
    await asyncio.sleep(0)
    assert world.regions[0].cancelled == 1
    assert world.outcomes() == {("hedge", "superseded"): 1}
    await world.check_is_over()


async def test_it_is_cancelled_when_the_caller_leaves_or_its_time_is_over():
    world = World.open()
    world.regions[0].plans = [HANGS]
    leaving, late = world.call(here=HANGS), world.call(here=HANGS, remaining=0.06)
    world.arrive(leaving, late)
    await asyncio.sleep(0.05)
    assert world.regions[0].under_way == 2
    world.answerer.cancel(leaving)
    await world.answerer.idle()
    assert world.callers.of(late).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await world.check_is_over(cancelled=[leaving])


async def test_attempts_share_the_deadline():
    """The backup gets what is left of the caller's time, and is not asked when nothing is."""
    world = World.open()
    world.regions[0].plans = [HANGS]
    began = now()
    reply = await world.ask(here=HANGS, remaining=0.1)
    assert reply.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert now() - began == pytest.approx(0.1, abs=0.005)
    await world.ask(here=HANGS, remaining=0.02)
    assert len(world.regions[0].asked) == 1
    await world.check_is_over()


async def test_no_hedge_when_less_time_is_left_than_the_backup_usually_takes():
    world = World.open()
    world.regions[0].plans = [Ends(after=0.05)]
    for _ in range(3):
        assert outcome(await world.ask(here=HANGS))[1] == "hedge"
    assert (await world.ask(here=HANGS, remaining=0.07)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert world.suppressed() == {("hedge", "no_time"): 1}
    await world.check_is_over()


@pytest.mark.parametrize("said", ["0.9", "0.3"])
async def test_no_hedge_into_a_region_that_says_it_is_full(said: str):
    world = World.open()
    world.hedger.backups[0].standing.hear([(LOAD, f"TEXT application_utilization={said}")])
    await world.ask(here=Ends("answer", 0.2))
    assert bool(world.regions[0].asked) is (said == "0.3")


async def test_hedges_stay_within_the_budget_whatever_is_slow():
    """Everything is slow for a long time: of 1,000 requests 2 % are hedged, and what the budget has kept."""
    world = World.open(share=0.02, burst=10)
    for _ in range(100):
        world.arrive(*[world.call(here=Ends("answer", 0.04)) for _ in range(10)])
        await asyncio.sleep(0.05)
    assert len(world.regions[0].asked) in {29, 30}
    assert world.suppressed()["hedge", "budget"] == 1000 - len(world.regions[0].asked)
    await world.check_is_over()


async def test_attempts_of_another_region_neither_hedge_nor_fail_over_nor_add_to_the_budget():
    """Whoever sent them has counted them, and would hedge them itself: hedges never cascade."""
    world = World.open(share=1.0, burst=5)
    world.budget.tokens = 2.0
    gone = world.call(metadata=FOREIGN)
    gone.ended = True  # its caller left before it got here
    world.arrive(gone, world.call(here=Ends("answer", 0.1), metadata=FOREIGN))
    world.arrive(world.call(here=FAILS, metadata=FOREIGN), world.call(ask("other"), metadata=FOREIGN))
    await world.answerer.idle()
    assert not world.regions[0].asked
    assert world.budget.tokens == 2.0
    assert world.suppressed() == {}
    await world.check_is_over(cancelled=[gone])


async def test_who_asks_as_another_region_hears_where_this_is_and_how_busy():
    world = World.open()
    for here in (Ends(), FAILS):
        trailing = (await world.ask(here=here, metadata=FOREIGN)).trailing
        assert trailing["hedgerow-region"] == "east"
        assert trailing[LOAD] == "TEXT application_utilization=0.000"
    assert LOAD not in (await world.ask()).trailing


async def test_a_model_may_opt_out_of_everything():
    world = World.open(served(), served("alone", mode="disabled"))
    assert outcome(await world.ask(ask("alone"), Ends("answer", 0.5))) == (HERE, "", "")
    assert (await world.ask(ask("alone"), FAILS)).code is grpc.StatusCode.INTERNAL
    assert not world.regions[0].asked
    await world.check_is_over()


async def test_a_model_may_have_a_delay_of_its_own():
    world = World.open(served(), served("patient", after_ms=200.0))
    began = now()
    await world.ask(ask("patient"), HANGS)
    assert world.regions[0].asked[0][0] - began == pytest.approx(0.2, abs=0.002)


@pytest.mark.parametrize("mode", ["adaptive", "fixed"])
async def test_an_adaptive_delay_is_what_the_budget_lets_be_slower_once_there_is_enough_to_go_by(mode: str):
    """98 of 100 take 4 ms: with a budget of 2 % a hedge comes soon after that, not after 30 ms."""
    world = World.open(served(mode=mode), share=0.02, burst=10)

    async def hedged_after() -> float:
        world.budget.tokens = 10.0
        began = now()
        await world.ask(here=Ends("answer", 1.0))
        return world.regions[0].asked[-1][0] - began

    assert await hedged_after() == pytest.approx(AFTER, abs=0.002), "cold: the fixed delay"
    for _ in range(60):
        world.arrive(*[world.call(here=Ends("answer", 0.004)) for _ in range(10)])
        await world.answerer.idle()
    await asyncio.sleep(1)
    after = await hedged_after()
    if mode == "adaptive":
        assert 0.004 < after < 0.008
    else:
        assert after == pytest.approx(AFTER, abs=0.002)


async def test_an_adaptive_delay_never_exceeds_the_fixed_one():
    """A region that is slow all the time must not switch its hedging off (Cassandra-14293)."""
    world = World.open(adaptive=True)
    world.regions[0].plans = [HANGS]
    for _ in range(60):
        world.arrive(*[world.call(here=Ends("answer", 0.1)) for _ in range(10)])
        await world.answerer.idle()
    asked = len(world.regions[0].asked)
    began = now()
    await world.ask(here=Ends("answer", 0.1))
    assert world.regions[0].asked[asked][0] - began == pytest.approx(AFTER, abs=0.002)


async def test_the_wall_clock_may_jump(monkeypatch):
    """Deadlines, delays, breakers and probes go by monotonic clocks; only the log has the time of day."""
    jumps = iter(range(10**6))
    monkeypatch.setattr("time.time", lambda: 1.8e9 + next(jumps) * 86_400 * (-1) ** (next(jumps) // 2))
    world = World.open()
    probing = asyncio.create_task(world.hedger.run())
    began = now()
    for _ in range(20):
        assert outcome(await world.ask(here=Ends("answer", 0.5))) == (THERE, "hedge", "west")
    assert now() - began == pytest.approx(20 * (AFTER + 0.01), abs=0.05)
    assert len({line.time for line in world.log.lines}) == 20
    probing.cancel()
    await asyncio.wait([probing])
    await world.check_is_over()
