"""Rules answer what is refused at the door, if that takes but a moment; ids by what the process remembers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from fakes_engine import THREADED, Reply, RequestPath, model, request, table
from fallback_rules import RULES, with_rules
from feature_reads import DEFAULT, row, view
from hedgerow_protos.hedgerow_control_pb2 import FeatureColumn, FeatureInput
from hedgerow_protos.hedging import ATTEMPT
from hedgerow_server import answer
from hedgerow_server.engine.model import Model
from hedgerow_server.features.clock import Clock
from hedgerow_server.features.features import Features
from hedgerow_server.features.memory import MemoryStore
from hedgerow_server.features.sources import Row
from hedgerow_server.resilience.fallback import TURNS
from hedgerow_server.settings import Features as Settings
from request_paths import Open, opening

OK, SHED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
TTL, STALE_TTL = 10.0, 60.0
BY_FEATURE = RULES.replace("x > 10.0", "f0 > 10.0").replace("x * 2.0", "f0 * 2.0")


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request is all that the server takes."""
    monkeypatch.setattr(answer, "MAX_HELD_BYTES", 1)


async def ask(path: RequestPath, inputs: dict[str, Any], **options: Any) -> Reply:
    """Asks while another request is under way, which is then given up."""
    holding = path.callers.call(request({"x": np.zeros((1, 1), np.float32)}))
    path.answerer.answer([holding])
    assert not holding.ended
    call = path.callers.call(request(inputs), **options)
    path.answerer.answer([call])
    assert call.ended
    path.answerer.cancel(holding)
    async with asyncio.timeout(20):
        await path.answerer.idle()
    assert path.answerer._endings.held_bytes == 0
    return path.callers.of(call)


def said(reply: Reply, name: str) -> str:
    return reply.response.parameters[name].string_param


def bound() -> Model:
    """Y = x, FP32 [batch, 1], after a moment; x is a view's field, and so is what its rules look at."""
    made = model("slow", milliseconds=20)
    made.serving.features.views.append(view(ttl=TTL, stale_ttl=STALE_TTL))
    made.serving.features.inputs.append(
        FeatureInput(input="x", columns=[FeatureColumn(view="plane_profile@1")])
    )
    return with_rules(made, BY_FEATURE)


def tails(*names: str) -> dict[str, np.ndarray]:
    return {"tailnum": np.array(names, object)}


class Joined:
    """A request path with features, and its time."""

    def __init__(self, path: RequestPath) -> None:
        self.path = path
        self.now = 0.0
        self.store = MemoryStore()
        clock = Clock(lambda: self.now, lambda: 1e9 + self.now)
        self.features = Features(
            Settings(), store=self.store, cache=None, done=path.answerer.joined, clock=clock
        )
        path.answerer.join_with(self.features)
        path.answerer.use(path.answerer.table)

    async def learn(self, tail: str, value: float) -> None:
        """Has the process remember what the store says of an entity now."""
        self.store.rows["plane_profile@1", tail.encode()] = Row(row(value), round((1e9 + self.now) * 1e6))
        call = self.path.callers.call(request(tails(tail)))
        self.path.answerer.answer([call])
        async with asyncio.timeout(20):
            await self.path.answerer.idle()
        assert call.features == "fresh"


@pytest.fixture
async def joined(start: Open) -> AsyncIterator[Joined]:
    made = Joined(await start(table(bound()), inline_below=THREADED))
    yield made
    await made.features.close()


@pytest.mark.usefixtures("full")
async def test_a_request_is_answered_though_there_is_no_room_for_it(start: Open):
    version = with_rules(model("slow", milliseconds=20))
    path = await start(table(version), inline_below=THREADED)
    reply = await ask(path, {"x": np.float32([[11], [3]])})
    np.testing.assert_array_equal(reply.tensors["y"], np.float32([[22], [-1]]))
    assert said(reply, "hedgerow_outcome") == "fallback"
    assert version.statistics.sheds.total() == 1


@pytest.mark.usefixtures("full")
async def test_a_long_one_is_refused_and_so_are_a_wrong_one_and_another_regions(start: Open):
    """Who sheds load has no time for long answers; wrong requests must not become right ones by it."""
    version = with_rules(model("slow", milliseconds=20))
    path = await start(table(version), inline_below=THREADED)
    assert version.rules is not None
    long = np.zeros((version.rules.turn_rows + 1, 1), np.float32)
    assert (await ask(path, {"x": long})).code is SHED
    assert (await ask(path, {"x": np.zeros((1, 2), np.float32)})).code is SHED
    hedge = ((ATTEMPT, "hedge"),)
    assert (await ask(path, {"x": np.float32([[1]])}, metadata=hedge)).code is SHED


@pytest.mark.usefixtures("full")
async def test_what_comes_in_a_flood_gets_a_few_turns_together(start: Open):
    """The rest is refused, as it would be without rules."""
    version = with_rules(model("slow", milliseconds=20))
    path = await start(table(version), inline_below=THREADED)
    assert version.rules is not None
    first = path.callers.call(request({"x": [[0.0]]}))
    x = np.zeros((int(0.9 * version.rules.turn_rows), 1), np.float32)
    flood = [path.callers.call(request({"x": x})) for _ in range(4 * TURNS)]
    path.answerer.answer([first, *flood])
    codes = [path.callers.of(call).code for call in flood]
    assert codes == [OK] * int(TURNS / 0.9) + [SHED] * (len(flood) - int(TURNS / 0.9))
    async with asyncio.timeout(20):
        await path.answerer.idle()


@pytest.mark.usefixtures("full")
async def test_a_long_one_with_ids_is_refused_before_any_is_looked_up(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
):
    recalled: list[Any] = []
    monkeypatch.setattr(joined.features.joiner, "recall", lambda *asked: recalled.append(asked))
    rules = joined.path.answerer.table.choose("m", "", "", "").model.rules
    assert rules is not None
    assert (await ask(joined.path, tails(*["N1"] * (rules.turn_rows + 1)))).code is SHED
    assert not recalled


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(
    ("age", "answer", "features"),
    [(1.0, 84.0, "fresh"), (TTL + 1, 84.0, "stale"), (STALE_TTL + 1, -1.0, "default")],
)
async def test_ids_are_answered_by_what_the_process_remembers(
    joined: Joined, age: float, answer: float, features: str
):
    """Nobody is asked; too old is too old here as well."""
    await joined.learn("N1", 42.0)
    joined.now += age
    calls = joined.store.calls
    reply = await ask(joined.path, tails("N1"))
    np.testing.assert_array_equal(reply.tensors["y"], np.float32([[answer]]))
    assert said(reply, "hedgerow_outcome") == "fallback"
    assert said(reply, "hedgerow_features") == features
    assert joined.store.calls == calls
    line = next(line for line in joined.path.log.lines if line.outcome == "fallback")
    assert line.features == features


@pytest.mark.usefixtures("full")
async def test_ids_that_the_process_does_not_know_are_answered_by_defaults(joined: Joined):
    await joined.learn("N1", 42.0)
    reply = await ask(joined.path, tails("N1", "N2"))
    np.testing.assert_array_equal(reply.tensors["y"], np.float32([[84], [-1]]))
    assert said(reply, "hedgerow_features") == "default"
    assert DEFAULT < 10


@pytest.mark.usefixtures("full")
async def test_ids_that_are_none_are_refused(joined: Joined):
    reply = await ask(joined.path, {"tailnum": np.array([["N1", "N2"]], object)})
    assert reply.code is SHED


@pytest.mark.usefixtures("full")
async def test_a_defect_in_reading_leaves_the_refusal_and_others_alone(
    joined: Joined, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: Any) -> Any:
        raise KeyError("no")

    monkeypatch.setattr(joined.features.joiner, "recall", fail)
    with caplog.at_level(logging.ERROR):
        assert (await ask(joined.path, tails("N1"))).code is SHED
    assert "could not be read for its rules" in caplog.text
    assert (await ask(joined.path, {"x": np.float32([[11]])})).code is OK
