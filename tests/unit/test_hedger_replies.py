"""Which version a backup region is asked for, and which of its replies a call accepts, in virtual time."""

from __future__ import annotations

import grpc
import hedging_world
import pytest
from hedging_shorthand import FAILS, HANGS, OK, outcome
from hedging_world import HERE, THERE, Ends, World, ask, served

pytestmark = pytest.mark.looptime(start=1000)

SAME = 2  # BACKUP_VERSIONS_SAME


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
