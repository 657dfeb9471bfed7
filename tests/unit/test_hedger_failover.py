"""What fails here and is tried at a backup region, and at the next when that fails too, in virtual time."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from hedgerow_protos.hedging import LOAD, PREVIOUS_ATTEMPTS, PUSHBACK
from hedgerow_server import errors
from hedgerow_server.resilience.fault import FaultInjection
from hedging_shorthand import FAILS, HANGS, OK, now, outcome
from hedging_world import AFTER, HERE, THERE, Ends, World, ask

pytestmark = pytest.mark.looptime(start=1000)


# ------------------------------------------------------------ what goes there


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
