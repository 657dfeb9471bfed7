"""When a request is tried at a backup region as well, and what becomes of it, in virtual time."""

from __future__ import annotations

import asyncio
import gc

import grpc
import hedging_world
import pytest
from fakes_engine import Reply, table
from hedgerow_protos.hedging import ATTEMPT, LOAD, OWN_PREVIOUS_ATTEMPTS, PREVIOUS_ATTEMPTS, PUSHBACK
from hedgerow_server import errors
from hedgerow_server.call import Call
from hedgerow_server.resilience import hedger as hedger_module
from hedgerow_server.resilience.fault import FaultInjection
from hedging_world import AFTER, FOREIGN, HERE, NEVER, THERE, Ends, World, ask, served

pytestmark = pytest.mark.looptime(start=1000)

OK = grpc.StatusCode.OK
HANGS, FAILS = Ends("answer", NEVER), Ends("fail", 0.001)
SAME = 2  # BACKUP_VERSIONS_SAME


def outcome(reply: Reply) -> tuple[float, str, str]:
    """Who answered: the value, and what the reply says of it."""
    said = reply.response.parameters
    value = float(reply.tensors["y"].ravel()[0])
    return value, said["hedgerow_outcome"].string_param, said["hedgerow_region"].string_param


def now() -> float:
    return asyncio.get_running_loop().time()


# ---------------------------------------------------------------------- hedges


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


# ------------------------------------------------------------ several backups


async def test_the_next_backup_is_tried_at_once_when_the_first_fails_for_another_token():
    world = World.open(backups=2, share=0.01, burst=2)
    west, north = world.regions
    west.plans = [Ends("INTERNAL", 0.005)]
    began = now()
    assert outcome(await world.ask(here=HANGS)) == (THERE, "hedge", "north")
    assert north.asked[0][0] - began == pytest.approx(AFTER + 0.005, abs=0.003)
    assert north.asked[0][2][PREVIOUS_ATTEMPTS] == "2"
    assert world.budget.tokens == pytest.approx(0.0, abs=0.02)
    await world.check_is_over()


async def test_it_is_not_tried_without_a_token():
    world = World.open(backups=2, share=0.01, burst=1)
    world.regions[0].plans = [Ends("INTERNAL", 0.005)]
    assert outcome(await world.ask(here=Ends("answer", 0.2))) == (HERE, "", "")
    assert not world.regions[1].asked
    assert world.suppressed() == {("hedge", "budget"): 1}
    await world.check_is_over()


async def test_a_backup_that_was_not_usable_for_the_hedge_may_be_for_the_failover():
    """The hedge finds it pushing back; half a second later the attempt here fails, and it is free again."""
    world = World.open()
    (west,) = world.regions
    world.hedger.backups[0].standing.hear([(PUSHBACK, "300")])
    began = now()
    assert outcome(await world.ask(here=Ends("fail", 0.5))) == (THERE, "failover", "west")
    assert west.asked[0][0] - began == pytest.approx(0.5, abs=0.002)
    assert world.suppressed() == {("hedge", "pushback"): 1}
    await world.check_is_over()


async def test_a_hedge_under_way_answers_a_request_that_fails_here():
    world = World.open(backups=2)
    world.regions[0].plans = [Ends(after=0.1)]
    assert outcome(await world.ask(here=Ends("fail", 0.05))) == (THERE, "hedge", "west")
    assert not world.regions[1].asked
    await world.check_is_over()


async def test_when_that_fails_too_the_next_backup_is_tried_without_a_token():
    world = World.open(backups=2, burst=1, share=0.01)
    world.regions[0].plans = [Ends("UNAVAILABLE", 0.1)]
    assert outcome(await world.ask(here=Ends("fail", 0.05))) == (THERE, "failover", "north")
    await world.check_is_over()


async def test_a_call_that_nobody_answers_gets_the_error_of_the_attempt_here():
    world = World.open(backups=2)
    for region in world.regions:
        region.plans = [Ends("UNAVAILABLE", 0.01)]
    reply = await world.ask(here=FAILS)
    assert reply.code is grpc.StatusCode.INTERNAL
    assert "quote error" in reply.message
    assert world.outcomes() == {("failover", "failed"): 2}
    await world.check_is_over()


async def test_a_caller_whose_failed_over_call_runs_out_of_time_hears_why_it_failed_here():
    world = World.open()
    world.regions[0].plans = [HANGS]
    began = now()
    reply = await world.ask(here=FAILS, remaining=0.2)
    assert reply.code is grpc.StatusCode.INTERNAL
    assert now() - began == pytest.approx(0.2, abs=0.005)
    await world.check_is_over()


# -------------------------------------------------------------------- failover


async def test_what_fails_here_goes_to_a_backup_at_once_and_costs_no_token():
    world = World.open(burst=1)
    world.budget.tokens = 0.0
    began = now()
    assert outcome(await world.ask(here=FAILS)) == (THERE, "failover", "west")
    assert now() - began < AFTER
    assert world.regions[0].kinds() == ["failover"]
    assert world.log.lines[0].outcome == "failover"
    await world.check_is_over()


async def test_a_model_or_version_that_is_not_loaded_here_is_asked_for_there():
    world = World.open()
    assert outcome(await world.ask(ask("elsewhere"))) == (THERE, "failover", "west")
    reply = await world.ask(ask("m", version="7"))
    assert outcome(reply) == (THERE, "failover", "west")
    assert reply.response.model_version == "7"
    assert [asked.model_version for _, asked, _ in world.regions[0].asked] == ["", "7"]
    await world.check_is_over()


async def test_a_version_that_was_asked_for_is_never_answered_by_another():
    """Also where it is not loaded here, so that nothing but the request itself says which it must be."""
    world = World.open()
    infer = hedging_world.answer_of
    try:
        hedging_world.answer_of = lambda asked, value: infer(ask(asked.model_name), value, version="3")
        reply = await world.ask(ask("m", version="7"))
    finally:
        hedging_world.answer_of = infer
    assert reply.code is grpc.StatusCode.NOT_FOUND
    assert world.outcomes() == {("failover", "failed"): 1}


@pytest.mark.parametrize("name", ["", "../etc", "a b", "x" * 256, "x" * 100_000, "é", "a\0"])
async def test_what_can_name_no_model_is_not_asked_for_anywhere(name: str):
    """Else anybody could fill a table of models that a backup does not have with megabytes."""
    world = World.open()
    assert (await world.ask(ask(name))).code is grpc.StatusCode.NOT_FOUND
    assert not world.regions[0].asked
    await world.check_is_over()


async def test_faults_on_purpose_fail_over_and_are_hedged():
    world = World.open()
    world.answerer.harm_with(FaultInjection(abort_percent=100))
    assert outcome(await world.ask()) == (THERE, "failover", "west")
    world.answerer.harm_with(FaultInjection(delay_percent=100, delay=0.5))
    assert outcome(await world.ask()) == (THERE, "hedge", "west")
    await world.check_is_over()


def _error(kind: type[errors.ServingError]) -> errors.ServingError:
    return kind("as the test says")


@pytest.mark.parametrize(
    ("kind", "goes"),
    [
        (errors.InvalidTensor, False),
        (errors.NotFound, True),
        (errors.Unauthenticated, False),
        (errors.PermissionDenied, False),
        (errors.FailedPrecondition, False),
        (errors.TooLarge, False),
        (errors.DeadlineExceeded, False),
        (errors.Unavailable, True),
        (errors.Draining, False),
        (errors.Unimplemented, False),
        (errors.Internal, True),
    ],
)
async def test_only_what_another_region_may_answer_goes_there(kind: type[errors.ServingError], goes):
    world = World.open()
    call = world.call(here=HANGS)
    world.arrive(call)
    world.answerer._endings.refuse(call, _error(kind))
    await world.answerer.idle()
    assert world.regions[0].kinds() == ["failover"] * goes
    assert world.callers.of(call).code is (OK if goes else kind.code)
    world.answerer._engine.stop_unwanted_runs()
    await world.check_is_over()


async def test_wrong_requests_too_large_ones_and_those_of_a_draining_server_go_nowhere():
    world = World.open()
    wrong = await world.ask(ask("m", outputs=["nothing"]))
    large = await world.ask(ask("m", rows=100_000))
    world.answerer.draining = True
    late = await world.ask()
    assert [reply.code.name for reply in (wrong, large, late)] == [
        "INVALID_ARGUMENT",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
    ]
    assert not world.regions[0].asked
    await world.check_is_over()


@pytest.mark.parametrize(
    ("said", "age", "goes"),
    [
        (None, 0.0, False),
        ("0.30", 0.0, True),
        ("0.90", 0.0, False),
        ("0.30", 5.1, False),
        ("0.80", 0.0, False),
    ],
)
async def test_overload_fails_over_only_while_the_backup_says_that_it_has_room(
    said: str | None, age: float, goes
):
    """Hedging into an overload is how two regions fall over together."""
    world = World.open()
    if said is not None:
        world.hedger.backups[0].standing.hear([(LOAD, f"TEXT application_utilization={said}")])
    await asyncio.sleep(age)
    call = world.call(here=HANGS)
    world.arrive(call)
    world.answerer._endings.refuse(call, errors.Overloaded("too much"))
    await world.answerer.idle()
    assert world.callers.of(call).code is (OK if goes else grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert world.suppressed() == ({} if goes else {("failover", "no_room"): 1})


@pytest.mark.parametrize("said", ["0.9", "0.3"])
async def test_no_hedge_into_a_region_that_says_it_is_full(said: str):
    world = World.open()
    world.hedger.backups[0].standing.hear([(LOAD, f"TEXT application_utilization={said}")])
    await world.ask(here=Ends("answer", 0.2))
    assert bool(world.regions[0].asked) is (said == "0.3")


# ---------------------------------------------------------- versions, garbage


async def test_another_version_answers_if_the_model_lets_it_and_the_reply_names_it(monkeypatch):
    world = World.open(served(version="4"))
    reply = await world.ask(here=HANGS)
    assert outcome(reply) == (THERE, "hedge", "west")
    assert reply.response.model_version == "1", "that of the backup"
    assert world.regions[0].asked[0][1].model_version == ""


async def test_a_model_may_demand_the_version_chosen_here():
    world = World.open(served(version="4", versions=SAME))
    reply = await world.ask(here=HANGS)
    assert reply.response.model_version == "4"
    ((_, asked, _),) = world.regions[0].asked
    assert asked.model_version == "4"
    assert asked.raw_input_contents == ask().raw_input_contents


async def test_another_version_than_demanded_is_not_used(monkeypatch):
    world = World.open(served(version="4", versions=SAME))
    infer = hedging_world.answer_of
    monkeypatch.setattr(hedging_world, "answer_of", lambda asked, value: infer(ask(), value, version="3"))
    assert outcome(await world.ask(here=Ends("answer", 0.2))) == (HERE, "", "")
    assert world.outcomes() == {("hedge", "failed"): 1}


@pytest.mark.parametrize("here", [Ends("answer", 0.2), FAILS])
async def test_garbage_is_not_used(here: Ends):
    world = World.open()
    world.regions[0].plans = [Ends("garbage", 0.01)]
    reply = await world.ask(here=here)
    assert reply.code is (OK if here.how == "answer" else grpc.StatusCode.INTERNAL)
    assert sum(count for (_, end), count in world.outcomes().items() if end == "failed") == 1
    await world.check_is_over()


async def test_a_defect_in_judging_a_reply_hangs_nobody(monkeypatch, caplog):
    """Whatever breaks in an attempt, the call goes on with the others."""
    world = World.open(backups=2)

    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("hedgerow_server.rpc.foreign.read", breaks)
    assert (await world.ask(here=FAILS)).code is grpc.StatusCode.INTERNAL
    assert outcome(await world.ask(here=Ends("answer", 0.2))) == (HERE, "", "")
    assert "ZeroDivisionError" in caplog.text
    await world.check_is_over()


@pytest.mark.parametrize("key", ["näme", "a\tb", "a\nb", "\x7f", b"\xff"])
async def test_a_route_key_that_grpc_would_not_send_is_left_out(key: str | bytes):
    """A transport lets in what another refuses; one caller's header must not fail attempts as defects."""
    world = World.open()
    call = world.call(here=HANGS)
    call.metadata = (("hedgerow-route-key", key), ("x-api-key", "k"))
    world.arrive(call)
    await world.answerer.idle()
    assert outcome(world.callers.of(call))[1] == "hedge"
    metadata = world.regions[0].asked[0][2]
    assert "hedgerow-route-key" not in metadata
    assert metadata["x-api-key"] == "k"


# ------------------------------------------------------------- what is bounded


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
