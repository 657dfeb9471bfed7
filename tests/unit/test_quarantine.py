"""A version that keeps failing gets no requests while others can answer them, and comes back by itself."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from fakes_engine import INLINE, THREADED, RequestPath, endless, model, request, table
from hedgerow_protos.breaker import State
from hedgerow_server.engine.latency import LatencyModel
from hedgerow_server.engine.model import QUARANTINE
from hedging_world import AFTER, FOREIGN, HERE, NEVER, Ends, World

OK, INTERNAL, UNAVAILABLE = (grpc.StatusCode[name] for name in ("OK", "INTERNAL", "UNAVAILABLE"))
FAILS, ANSWERS, HANGS = Ends("fail", 0.001), Ends("answer", 0.001), Ends("answer", NEVER)
virtual = pytest.mark.looptime(start=1000)


async def trip(world: World) -> None:
    for _ in range(QUARANTINE.minimum):
        await world.ask(here=FAILS)
    assert world.models[0].breaker.state is State.OPEN


def here(world: World) -> int:
    """Requests that the version got."""
    return sum(call.started_ns > 0 for call in world.calls)


@virtual
async def test_it_begins_after_repeated_failures_and_a_backup_answers_meanwhile():
    world = World.open()
    await trip(world)
    before = here(world)
    for _ in range(20):
        reply = await world.ask(here=ANSWERS)
        assert reply.response.parameters["hedgerow_outcome"].string_param == "failover"
    assert here(world) == before
    await world.check_is_over()


@virtual
async def test_then_one_request_at_a_time_tries_it_and_several_good_ones_end_it():
    world = World.open()
    await trip(world)
    await asyncio.sleep(QUARANTINE.open_for)
    slow = Ends("answer", 0.02)
    for tried in range(1, QUARANTINE.probes + 1):
        calls = [world.call(here=slow) for _ in range(3)]
        world.arrive(*calls)
        await world.answerer.idle()
        assert [call.outcome for call in calls] == ["primary", "failover", "failover"], tried
    assert world.models[0].breaker.state is State.CLOSED
    assert (await world.ask(here=ANSWERS)).tensors["y"].tolist() == [[HERE]]
    await world.check_is_over()


@virtual
async def test_a_probe_that_fails_prolongs_it_and_its_caller_is_answered_by_the_backup():
    world = World.open()
    await trip(world)
    await asyncio.sleep(QUARANTINE.open_for)
    reply = await world.ask(here=FAILS)
    assert reply.response.parameters["hedgerow_outcome"].string_param == "failover"
    assert world.models[0].breaker.state is State.OPEN
    assert world.models[0].breaker.trips == 2
    await world.check_is_over()


@virtual
@pytest.mark.parametrize("how", ["cancelled", "late", "hedged", "abandoned"])
async def test_a_probe_that_says_nothing_makes_room_for_the_next(how: str):
    """Else the version would stay in quarantine for good."""
    world = World.open()
    await trip(world)
    await asyncio.sleep(QUARANTINE.open_for)
    world.regions[0].plans = [Ends("answer", 0.01 if how == "hedged" else NEVER)]
    # Nobody could have met the late one's deadline.
    world.models[0].latency = LatencyModel(0.005)
    cancelled = []
    for _ in range(QUARANTINE.probes):
        call = world.call(here=HANGS, remaining=0.01 if how == "late" else 1.0)
        world.arrive(call)
        assert call.probe is not None
        await asyncio.sleep(0.001)
        if how == "cancelled":
            cancelled.append(call)
            world.answerer.cancel(call)
        elif how == "abandoned":
            world.answerer.abandon()
        await world.answerer.idle()
        assert world.models[0].breaker.state is State.HALF_OPEN
        assert not world.models[0].breaker.refuses()
    await world.check_is_over(cancelled=cancelled)


@virtual
@pytest.mark.parametrize(
    ("after", "state"), [(0.95, State.OPEN), (0.999, State.OPEN), (0.5, State.CLOSED), (0.001, State.CLOSED)]
)
async def test_a_run_that_its_caller_gives_up_at_its_deadline_counts(after: float, state: State):
    """Callers' clocks begin before ours: most of their calls are cancelled before their deadline here."""
    world = World.open()
    world.hedger.backups[0].standing.is_ready = False
    world.models[0].latency = LatencyModel(0.001)
    calls = [world.call(here=HANGS, remaining=1.0) for _ in range(QUARANTINE.minimum)]
    world.arrive(*calls)
    await asyncio.sleep(after)
    for call in calls:
        world.answerer.cancel(call)
    assert world.models[0].breaker.state is state
    await world.check_is_over(cancelled=calls)


@virtual
async def test_a_probe_that_its_caller_gives_up_at_its_deadline_prolongs_it():
    world = World.open()
    await trip(world)
    await asyncio.sleep(QUARANTINE.open_for)
    world.regions[0].plans = [HANGS]
    world.models[0].latency = LatencyModel(0.001)
    call = world.call(here=HANGS, remaining=1.0)
    world.arrive(call)
    assert call.probe is not None
    await asyncio.sleep(0.99)
    world.answerer.cancel(call)
    assert world.models[0].breaker.state is State.OPEN
    assert "had not ended after 0.990 s" in world.models[0].breaker.reason
    await world.check_is_over(cancelled=[call])


@virtual
async def test_what_failed_before_its_caller_gave_up_counts_once():
    """It waits for a backup then; no run is under way."""
    world = World.open()
    world.regions[0].plans = [HANGS]
    world.models[0].latency = LatencyModel(0.0001)
    calls = [world.call(here=FAILS, remaining=1.0) for _ in range(QUARANTINE.minimum - 1)]
    world.arrive(*calls)
    await asyncio.sleep(0.99)
    for call in calls:
        world.answerer.cancel(call)
    assert world.models[0].breaker.state is State.CLOSED
    await world.check_is_over(cancelled=calls)


@virtual
async def test_when_nobody_else_can_answer_the_version_does():
    """One caller's bad requests must not take a sound version from all others."""
    world = World.open(backups=1)
    world.hedger.backups[0].standing.is_ready = False
    await trip(world)
    for _ in range(3):
        assert (await world.ask(here=ANSWERS)).tensors["y"].tolist() == [[HERE]]
    assert (await world.ask(here=FAILS)).code is INTERNAL
    assert world.suppressed()["failover", "not_ready"] >= 4
    await world.check_is_over()


@virtual
async def test_such_a_request_is_hedged_and_fails_over_like_any_other():
    """Nobody could take it as it came; a moment later the backup is back."""
    world = World.open()
    standing = world.hedger.backups[0].standing
    for ends, outcome in ((HANGS, "hedge"), (Ends("fail", 0.01), "failover")):
        standing.is_ready = False
        await trip(world)
        call = world.call(here=ends)
        world.arrive(call)
        assert call.started_ns
        standing.is_ready = True
        await world.answerer.idle()
        assert call.outcome == outcome
        await asyncio.sleep(QUARANTINE.window + QUARANTINE.open_for)
        for _ in range(QUARANTINE.probes):
            await world.ask(here=ANSWERS)
    await world.check_is_over()


@virtual
async def test_a_hedge_of_a_request_that_fails_here_too_ends_it():
    world = World.open()
    standing = world.hedger.backups[0].standing
    world.regions[0].plans = [Ends("INTERNAL", 0.01)]
    standing.is_ready = False
    await trip(world)
    call = world.call(here=Ends("fail", AFTER + 0.05))
    world.arrive(call)
    standing.is_ready = True
    await world.answerer.idle()
    assert world.callers.of(call).code is INTERNAL
    await world.check_is_over()


@virtual
async def test_another_regions_hedge_is_refused_and_its_failover_is_not():
    """Behind a hedge the first attempt is under way; behind a failover nobody is."""
    world = World.open()
    await trip(world)
    assert (await world.ask(here=ANSWERS, metadata=FOREIGN)).code is UNAVAILABLE
    failover = FOREIGN | {"hedgerow-attempt": "failover"}
    assert (await world.ask(here=ANSWERS, metadata=failover)).code is OK
    assert not any(metadata["hedgerow-attempt"] == "hedge" for _, _, metadata in world.regions[0].asked)


@virtual
async def test_a_few_failures_among_many_answers_are_none():
    world = World.open()
    for i in range(200):
        await world.ask(here=FAILS if i % 5 == 0 else ANSWERS)
    assert world.models[0].breaker.trips == 0


# ------------------------------------------------------- with real runs


async def open_path(of, inline: float, **options) -> RequestPath:
    return await RequestPath.open(table(of), inline_below=inline, **options)


async def over(path: RequestPath, of) -> None:
    async with asyncio.timeout(20):
        await path.answerer.idle()
        await of.drained()
    await path.engine.close()


def is_blameless(of) -> bool:
    return of.breaker.trips == 0 and not of.breaker.is_wary


def logs(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[value, value] for value in values], np.float32)}


@pytest.mark.parametrize("inline", [INLINE, THREADED], ids=["inline", "threaded"])
@pytest.mark.parametrize("nan", ["NAN_CHOICE_REJECT", "NAN_CHOICE_ALLOW"])
async def test_answers_with_nan_count_where_they_are_rejected(inline: float, nan: str):
    of = model("logarithm", nan={"outputs": nan})
    path = await open_path(of, inline)
    for _ in range(QUARANTINE.minimum):
        path.answerer.answer([path.callers.call(request(logs(-1.0)))])
        await path.answerer.idle()
    assert (of.breaker.state is State.OPEN) is (nan == "NAN_CHOICE_REJECT")
    await over(path, of)


async def test_each_request_of_a_batch_counts_once():
    """Nine of ten are rejected: counted as failures and as good runs of the batch, they would be half."""
    of = model("logarithm", nan={"outputs": "NAN_CHOICE_REJECT"}, max_batch_size=16)
    of.breaker.policy = QUARANTINE.__class__(window=10.0, minimum=30, failed=0.85, open_for=60.0)
    path = await open_path(of, INLINE)
    for _ in range(4):
        path.answerer.answer([path.callers.call(request(logs(-1.0 if i else 1.0))) for i in range(10)])
    assert of.breaker.state is State.OPEN
    await over(path, of)


async def test_runs_that_raise_count_for_those_whose_values_made_them_raise():
    """A bad request in each batch of four: a quarter fails."""
    of = model("lookup", max_batch_size=8)
    path = await open_path(of, INLINE)
    for _ in range(20):
        path.answerer.answer(
            [path.callers.call(request({"index": np.array([i], np.int64)})) for i in (1, 2, 99, 3)]
        )
    assert of.breaker.trips == 0
    for _ in range(100):
        path.answerer.answer([path.callers.call(request({"index": np.array([99], np.int64)}))])
    assert of.breaker.trips == 1
    await over(path, of)


async def test_runs_that_hang_until_the_deadline_count():
    of = endless(max_batch_size=1)
    path = await open_path(of, THREADED, runners=5)
    of.latency.observe(1, 0.001)
    path.answerer.answer([path.callers.call(request({"x": [[1.0]]}), remaining=0.2) for _ in range(5)])
    await path.answerer.idle()
    assert of.breaker.state is State.OPEN
    await over(path, of)


@pytest.mark.parametrize("seconds", [0.001, 0.005, 0.03])
async def test_deadlines_that_nobody_could_have_met_do_not_count(seconds: float):
    of = model("slow", max_batch_size=1, milliseconds=50)
    path = await open_path(of, THREADED, runners=5)
    for _ in range(3):
        path.answerer.answer(
            [path.callers.call(request({"x": [[1.0]]}), remaining=seconds) for _ in range(5)]
        )
        await path.answerer.idle()
    assert is_blameless(of)
    await over(path, of)


async def test_a_batch_that_takes_longer_than_one_row_would_does_not_count():
    """The run of 64 rows was stopped early; that it took ten times what one row takes says nothing."""
    of = endless(max_batch_size=64)
    path = await open_path(of, THREADED, runners=1)
    for rows, seconds in ((1, 0.005), (64, 0.2)):
        for _ in range(20):
            of.latency.observe(rows, seconds)
    calls = [path.callers.call(request({"x": [[1.0]]}), remaining=0.25) for _ in range(64)]
    path.answerer.answer(calls)
    await path.answerer.idle()
    assert {path.callers.of(call).code for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert all(call.started_ns for call in calls), "in one run"
    assert is_blameless(of)
    await over(path, of)


async def test_cancelled_runs_do_not_count():
    of = endless(max_batch_size=1)
    path = await open_path(of, THREADED, runners=5)
    of.latency.observe(1, 0.0001)
    for _ in range(3):
        calls = [path.callers.call(request({"x": [[1.0]]})) for _ in range(5)]
        path.answerer.answer(calls)
        await asyncio.sleep(0.02)
        for call in calls:
            path.answerer.cancel(call)
        async with asyncio.timeout(20):
            await of.drained()
    assert is_blameless(of)
    await over(path, of)


async def test_what_callers_do_wrong_does_not_count():
    of = model("several")
    path = await open_path(of, INLINE)
    for _ in range(50):
        path.answerer.answer([path.callers.call(request({"a": [[1.0]]})), path.callers.call(b"\xff")])
    assert is_blameless(of)
    await over(path, of)
