"""Admission on the request path: real answerer, real engine, real models; only the sockets are missing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from fakes_engine import THREADED, RequestPath, Route, endless, model, request, table
from hedgerow_protos.hedging import ATTEMPT, HEDGE, OWN_PUSHBACK, PREVIOUS_ATTEMPTS, PUSHBACK
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.call import Call
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.priorities import Priorities
from hedgerow_server.gate.admission import Backlog
from hedgerow_server.gate.concurrency import Bounds
from hedgerow_server.rpc.pushback import DETAILS
from hypothesis import given, settings
from hypothesis import strategies as st

OK, FULL = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
AN_ATTEMPT = ((PREVIOUS_ATTEMPTS, "1"), (ATTEMPT, HEDGE))


def ask(*, name: str = "m", version: str = "", priority: int = 0) -> ModelInferRequest:
    made = request({"x": np.ones((1, 1), np.float32)}, name=name, version=version)
    if priority:
        made.parameters["priority"].uint64_param = priority
    return made


def slow(version: str = "1", milliseconds: float = 5.0) -> Model:
    return model("slow", version=version, max_batch_size=1, milliseconds=milliseconds)


async def until_idle(path: RequestPath, *models: Model) -> None:
    async with asyncio.timeout(20):
        await path.answerer.idle()
        for each in models:
            await each.drained()


@pytest.fixture
async def paths() -> AsyncIterator[list[RequestPath]]:
    """Request paths to be closed."""
    opened: list[RequestPath] = []
    yield opened
    for path in opened:
        await path.engine.close()


async def test_a_hedge_is_refused_first_and_for_good(paths: list[RequestPath]) -> None:
    of = slow()
    path = await RequestPath.open(table(of), inline_below=THREADED, runners=1, bounds=Bounds(1, 10))
    paths.append(path)
    own = [path.callers.call(ask()) for _ in range(5)]
    hedge = path.callers.call(ask(), metadata=AN_ATTEMPT)
    last = path.callers.call(ask())
    path.answerer.answer([*own, hedge, last])
    await until_idle(path, of)
    refused = path.callers.of(hedge)
    assert (refused.code, refused.trailing[PUSHBACK], refused.trailing[OWN_PUSHBACK]) == (FULL, "-1", "-1")
    assert {path.callers.of(call).code for call in (*own, last)} == {OK}
    assert of.statistics.sheds == {"hedge": 1}


async def test_other_callers_are_told_when_to_come_back(paths: list[RequestPath]) -> None:
    of = slow()
    path = await RequestPath.open(table(of), inline_below=THREADED, runners=1, bounds=Bounds(1, 2))
    paths.append(path)
    calls = [path.callers.call(ask()) for _ in range(3)]
    path.answerer.answer(calls)
    await until_idle(path, of)
    refused = path.callers.of(calls[2])
    assert refused.code is FULL
    assert 10 <= int(str(refused.trailing[PUSHBACK])) <= 1000
    assert DETAILS in refused.trailing
    assert "2 requests under way" in refused.message


async def test_who_cannot_be_answered_in_time_is_refused_at_once(paths: list[RequestPath]) -> None:
    """A run takes 50 ms as far as is known, and one is waited for: who has 60 ms is told so now, not then."""
    of = slow()
    path = await RequestPath.open(table(of), inline_below=THREADED, runners=1)
    paths.append(path)
    path.answerer.answer([path.callers.call(ask())])
    await until_idle(path, of)
    for _ in range(100):
        of.latency.observe(1, 0.05)
    first, hurried, patient = (path.callers.call(ask(), remaining=left) for left in (5.0, 0.06, 5.0))
    path.answerer.answer([first, hurried, patient])
    assert path.callers.of(hurried).code is FULL
    await until_idle(path, of)
    assert [path.callers.of(call).code for call in (first, patient)] == [OK, OK]
    assert of.statistics.sheds == {"deadline": 1}


async def test_a_version_that_has_just_come_refuses_nobody_for_its_first_guess(
    paths: list[RequestPath],
) -> None:
    """It comes from a cold run; a swap under traffic must not fail a request."""
    of = slow()
    of.latency.__init__(first_guess=60.0)  # type: ignore[misc]
    path = await RequestPath.open(table(of), inline_below=THREADED, runners=1)
    paths.append(path)
    calls = [path.callers.call(ask(), remaining=5.0) for _ in range(20)]
    path.answerer.answer(calls)
    await until_idle(path, of)
    assert {path.callers.of(call).code for call in calls} == {OK}


async def test_high_priority_runs_before_low(paths: list[RequestPath]) -> None:
    of = slow()
    of.serving.batching.priority_levels, of.serving.batching.default_priority_level = 3, 2
    of = Model(of.name, of.version, of.digest, _loaded(), of.serving)
    assert of.priorities == Priorities(3, 2)
    path = await RequestPath.open(table(of), inline_below=THREADED, runners=1)
    paths.append(path)
    asked = [3, 3, 0, 9, 1, 2, 1]
    calls = [path.callers.call(ask(priority=priority)) for priority in asked]
    path.answerer.answer(calls)
    order: list[int] = []
    async with asyncio.timeout(20):
        while path.answerer.in_flight:
            await asyncio.sleep(0)
            order += [i for i, call in enumerate(calls) if call.ended and i not in order]
    assert [call.priority for call in calls] == [3, 3, 2, 2, 1, 2, 1]
    # A turn's calls are all in the queue before the first runs.
    assert [calls[i].priority for i in order] == [1, 1, 2, 2, 2, 3, 3]


def _loaded():
    from fakes_engine import loaded

    return loaded("slow", 1, milliseconds=5.0)


async def test_a_full_queue_makes_room_for_a_higher_priority(paths: list[RequestPath]) -> None:
    """Of the lowest priority, who came last goes, and is told why."""
    of = slow()
    of.serving.batching.priority_levels, of.serving.batching.default_priority_level = 3, 3
    of = Model(of.name, of.version, of.digest, _loaded(), of.serving)
    path = await RequestPath.open(table(of), inline_below=THREADED, runners=1, bounds=Bounds(1, 10))
    paths.append(path)
    low = [path.callers.call(ask()) for _ in range(7)]
    middle = [path.callers.call(ask(priority=2)) for _ in range(2)]
    high = [path.callers.call(ask(priority=1)) for _ in range(8)]
    path.answerer.answer([*low, *middle, *high])
    await until_idle(path, of)
    codes = {
        name: [path.callers.of(call).code for call in calls]
        for name, calls in {"low": low, "middle": middle, "high": high}.items()
    }
    assert codes["high"] == [OK] * 8
    assert codes["middle"] == [OK] * 2
    assert codes["low"] == [FULL] * 7
    assert of.statistics.sheds == {"priority": 7}
    assert "higher priority" in path.callers.of(low[0]).message


async def test_a_priority_that_is_no_number_is_the_callers_mistake(paths: list[RequestPath]) -> None:
    of = slow()
    path = await RequestPath.open(table(of), inline_below=THREADED)
    paths.append(path)
    wrong = ask()
    wrong.parameters["priority"].string_param = "high"
    call = path.callers.call(wrong)
    path.answerer.answer([call])
    assert path.callers.of(call).code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'priority' is a string" in path.callers.of(call).message


def two_variants(*, allowed: bool) -> tuple[Model, Model]:
    champion, economy = slow("1"), slow("2", milliseconds=1)
    champion.serving.overload.economy_under_pressure = allowed
    return champion, economy


ROUTES = {
    "m": [
        Route(variant="champion", version="1", weight=100),
        Route(variant="economy", version="2", weight=0),
    ]
}


@pytest.mark.parametrize("allowed", [True, False])
async def test_the_economy_variant_takes_what_is_too_much_if_it_may(
    paths: list[RequestPath], *, allowed: bool
) -> None:
    champion, economy = two_variants(allowed=allowed)
    routes = table(champion, economy, routes=ROUTES)
    path = await RequestPath.open(routes, inline_below=THREADED, runners=2, bounds=Bounds(1, 4))
    paths.append(path)
    calls = [path.callers.call(ask()) for _ in range(10)]
    path.answerer.answer(calls)
    await until_idle(path, champion, economy)
    replies = [path.callers.of(call) for call in calls]
    answered = Counter((r.response.model_version, *_said(r.response)) for r in replies if r.code is OK)
    if allowed:
        assert answered == {("1",): 4, ("2", "economy"): 4}
        assert [reply.code for reply in replies].count(FULL) == 2, "it has its own limit"
        assert champion.statistics.moved_to_economy == 4
    else:
        assert answered == {("1",): 4}
    assert champion.statistics.sheds == {"limit": 2 if allowed else 6}


def _said(response) -> tuple[str, ...]:
    parameters = response.parameters
    return (parameters["hedgerow_variant"].string_param,) if "hedgerow_variant" in parameters else ()


async def test_who_named_the_version_or_hedges_is_not_moved(paths: list[RequestPath]) -> None:
    champion, economy = two_variants(allowed=True)
    routes = table(champion, economy, routes=ROUTES)
    path = await RequestPath.open(routes, inline_below=THREADED, runners=2, bounds=Bounds(1, 2))
    paths.append(path)
    path.answerer.answer([path.callers.call(ask()) for _ in range(2)])
    named = path.callers.call(ask(version="1"))
    hedge = path.callers.call(ask(), metadata=AN_ATTEMPT)
    path.answerer.answer([named, hedge])
    assert path.callers.of(named).code is path.callers.of(hedge).code is FULL
    await until_idle(path, champion, economy)
    assert not economy.statistics.requests


async def test_a_draining_server_sends_only_other_regions_away_for_good(paths: list[RequestPath]) -> None:
    """A caller's next attempt finds another server; gRFC A6's "never" would forbid it."""
    of = slow()
    path = await RequestPath.open(table(of))
    paths.append(path)
    path.answerer.draining = True
    own, attempt = path.callers.call(ask()), path.callers.call(ask(), metadata=AN_ATTEMPT)
    path.answerer.answer([own, attempt])
    assert PUSHBACK not in path.callers.of(own).trailing
    assert path.callers.of(attempt).trailing[PUSHBACK] == "-1"


async def test_a_model_whose_runs_hang_soon_takes_few(paths: list[RequestPath]) -> None:
    """Who waits for it in vain is worse off than who is refused."""
    of = endless(max_batch_size=1)
    path = await RequestPath.open(table(of), inline_below=THREADED, runners=1)
    paths.append(path)
    calls: list[Call] = []
    async with asyncio.timeout(20):
        while of.limit.value > of.limit._bounds.minimum:
            call = path.callers.call(ask(), remaining=0.15)
            calls.append(call)
            path.answerer.answer([call])
            await asyncio.sleep(0.01)
    await until_idle(path, of)
    codes = Counter(path.callers.of(call).code for call in calls)
    assert codes[OK] == 0


async def test_a_model_that_gets_no_runner_soon_takes_few(paths: list[RequestPath]) -> None:
    """Nothing of it runs that could tell how long its requests wait; those that run out of time do."""
    stuck, of = endless("stuck", max_batch_size=1), slow()
    path = await RequestPath.open(table(stuck, of), inline_below=THREADED, runners=1)
    paths.append(path)
    path.answerer.answer([path.callers.call(ask(name="stuck"), remaining=30)])
    async with asyncio.timeout(20):
        while of.limit.value > of.limit._bounds.minimum:
            path.answerer.answer([path.callers.call(ask(), remaining=0.05)])
            await asyncio.sleep(0.01)
    path.answerer.abandon()


async def test_what_a_request_finds_before_it(paths: list[RequestPath]) -> None:
    """In threads it waits for a runner, whoever has it; on the loop for all that waits."""
    stuck, of = endless("stuck", max_batch_size=1), slow()
    path = await RequestPath.open(table(stuck, of), inline_below=THREADED, runners=1)
    paths.append(path)
    engine = path.engine
    path.answerer.answer([path.callers.call(ask())])
    await until_idle(path, of)
    assert of.limit.threaded
    assert of.latency._recent_runs == 1
    run = of.latency.known(1)
    assert engine.backlog(of, 0) == Backlog(wait=0.0, run=run)
    path.answerer.answer([path.callers.call(ask(name="stuck"), remaining=30)])
    assert engine.backlog(of, 0) == Backlog(wait=run, run=run)
    of.limit.move(threaded=False)
    for i in range(3):
        call = path.callers.call(ask())
        call.rows, call.kind, call.queued_ns = 1, None, i
        of.queue.add(call)
    assert engine.backlog(of, 0) == Backlog(wait=3 * run, run=run)
    of.queue.drain()
    path.answerer.abandon()


@settings(max_examples=30, deadline=None)
@given(
    plan=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["own", "hedge", "failover"]),
                st.integers(0, 4),
                st.sampled_from([0.003, 0.05, 5.0]),
                st.booleans(),
            ),
            min_size=1,
            max_size=12,
        ),
        min_size=1,
        max_size=4,
    ),
    maximum=st.integers(1, 8),
    milliseconds=st.sampled_from([1.0, 5.0]),
)
def test_whoever_is_let_in_leaves_once(
    plan: list[list[tuple[str, int, float, bool]]], maximum: int, milliseconds: float
) -> None:
    """Any mix of classes, deadlines and cancellations: nothing is left inside, every refusal has a reason."""

    async def scenario() -> None:
        of = slow(milliseconds=milliseconds)
        path = await RequestPath.open(table(of), inline_below=THREADED, runners=2, bounds=Bounds(1, maximum))
        calls: list[Call] = []
        for group in plan:
            arrived = []
            for attempt, priority, remaining, cancelled in group:
                metadata = () if attempt == "own" else ((PREVIOUS_ATTEMPTS, "1"), (ATTEMPT, attempt))
                call = path.callers.call(ask(priority=priority), metadata=metadata, remaining=remaining)
                arrived.append((call, cancelled))
            path.answerer.answer([call for call, _ in arrived])
            assert of.in_flight <= maximum
            for call, cancelled in arrived:
                if cancelled:
                    path.answerer.cancel(call)
            calls += [call for call, _ in arrived]
            await asyncio.sleep(0.001)
        await until_idle(path, of)
        assert (of.in_flight, len(of.queue), of.running, path.answerer.in_flight) == (0, 0, 0, 0)
        assert all(call.ended for call in calls)
        assert sum(of.statistics.requests.values()) == len(calls)
        assert of.statistics.requests.get(FULL.value[0], 0) == sum(of.statistics.sheds.values())
        await path.engine.close()

    asyncio.run(scenario())
