"""The request path as a whole, with real parts but for the sockets: drain, limits, counts, a swap."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from fakes_engine import THREADED, Route, model, request, table
from hedgerow_server.gate.concurrency import Bounds
from request_paths import Open, check_counts, drained, good, lanes, opening

OK = grpc.StatusCode.OK


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


async def test_a_draining_server_refuses_new_calls_and_answers_those_under_way(start: Open) -> None:
    of = model("slow", milliseconds=5)
    path = await start(table(of), inline_below=THREADED)
    before = path.callers.call(request({"x": [[1.0]]}))
    path.answerer.answer([before])
    path.answerer.draining = True
    after = path.callers.call(request({"x": [[2.0]]}))
    path.answerer.answer([after])
    assert path.callers.of(after).code is grpc.StatusCode.UNAVAILABLE
    await drained(path, of)
    assert path.callers.of(before).tensors["y"].tolist() == [[1.0]]


async def test_no_calls_at_all_leave_the_server_idle(start: Open) -> None:
    """A transport whose arrivals were all given up hands over an empty batch; a drain must not wait."""
    path = await start(table(model("several")))
    path.answerer.answer([])
    async with asyncio.timeout(1):
        await path.answerer.idle()


async def test_a_model_with_a_full_queue_refuses_and_others_go_on(start: Open) -> None:
    slow, quick = model("slow", "slow", max_batch_size=1, milliseconds=5), model("several", "quick")
    path = await start(table(slow, quick), inline_below=THREADED, runners=1, bounds=Bounds(1, 3))
    calls = [path.callers.call(request({"x": [[float(i)]]}, name="slow")) for i in range(6)]
    path.answerer.answer(calls[:4])
    path.answerer.answer(calls[4:])
    other = path.callers.call(good("quick"))
    path.answerer.answer([other])
    await drained(path, slow, quick)
    codes = [path.callers.of(call).code for call in calls]
    assert codes == [OK] * 3 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    assert slow.statistics.sheds == {"limit": 3}
    assert path.callers.of(other).code is OK
    check_counts(path, [*calls, other], slow, quick)


async def test_large_requests_wait_only_as_far_as_memory_allows(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that is short in requests may be long in bytes; what was cancelled gives its place back."""
    monkeypatch.setattr("hedgerow_server.answer.MAX_HELD_BYTES", 10_000)
    slow = model("slow", max_batch_size=1, milliseconds=5)
    path = await start(table(slow), inline_below=THREADED, runners=1)
    large = [path.callers.call(request({"x": np.zeros((1000, 1), np.float32)})) for _ in range(4)]
    path.answerer.answer(large)
    path.answerer.cancel(large[1])
    later = path.callers.call(request({"x": np.zeros((1000, 1), np.float32)}))
    path.answerer.answer([later])
    await drained(path, slow)
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [path.callers.of(large[i]).code for i in (0, 2, 3)] == [OK, refused, refused]
    assert path.callers.of(later).code is OK
    enormous = path.callers.call(request({"x": np.zeros((4000, 1), np.float32)}))
    path.answerer.answer([enormous])
    await drained(path, slow)
    assert path.callers.of(enormous).code is OK  # alone, a message of the permitted size is always taken
    check_counts(path, [*large, later, enormous], slow)


@lanes
async def test_a_version_knows_when_it_last_answered(start: Open, inline_below: float) -> None:
    """In milliseconds since the epoch, as Triton's statistics say it."""
    of = model("several")
    path = await start(table(of), inline_below=inline_below)
    assert of.statistics.last_inference_ms == 0
    before = time.time()
    path.answerer.answer([path.callers.call(good())])
    await drained(path, of)
    assert int(before * 1000) <= of.statistics.last_inference_ms <= time.time() * 1000


async def test_a_sink_that_fails_takes_nobody_with_it(start: Open) -> None:
    """A transport may find its connection gone in the middle of a batch; the batch's others are answered."""
    of = model("several")
    path = await start(table(of))

    class Broken:
        def respond(self, *_: object) -> None:
            raise OSError("the connection is gone")

        fail = respond

    calls = [path.callers.call(good()) for _ in range(5)]
    calls[1].sink = calls[3].sink = Broken()
    bad = path.callers.call(good("nobody"))
    bad.sink = Broken()
    calls.insert(2, bad)
    path.answerer.answer(calls)
    await drained(path, of)
    assert [call.token in path.callers.replies for call in calls] == [True, False, False, True, False, True]
    check_counts(path, calls, of)


async def test_a_reply_says_which_trace_and_which_variant_only_when_it_matters(start: Open) -> None:
    of = [model("constant", version=v, value=float(v)) for v in ("1", "2")]
    routes = [
        Route(variant="champion", version="1", weight=50),
        Route(variant="challenger", version="2", weight=50),
    ]
    path = await start(table(*of, routes={"m": routes}))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    calls = [
        path.callers.call(
            request({"x": [[0.0] * 4]}, id=f"id-{i}"),
            metadata=[("traceparent", trace), ("hedgerow-route-key", f"caller {i}")],
        )
        for i in range(40)
    ]
    path.answerer.answer(calls)
    seen = set()
    for i, call in enumerate(calls):
        reply = path.callers.of(call)
        response = reply.response
        version = response.model_version
        assert response.id == f"id-{i}"
        assert response.model_name == "m"
        assert reply.tensors["y"].tolist() == [[float(version)]]
        said = {key: value.string_param for key, value in response.parameters.items()}
        assert said == ({"hedgerow_variant": "challenger"} if version == "2" else {})
        assert str(reply.trailing["traceparent"])[:36] == trace[:36]
        assert reply.trailing["traceparent"] != trace
        assert reply.trailing["x-request-id"] == "0af7651916cd43dd8448eb211c80319c"
        seen.add(version)
    assert seen == {"1", "2"}


@lanes
async def test_answers_are_counted_by_variant_and_row_and_nothing_else_is(
    start: Open, inline_below: float
) -> None:
    """A refused, failed or cancelled call has cost nobody anything that could be billed."""
    of = [model("slow", version=v, max_batch_size=8, milliseconds=1.0) for v in ("1", "2")]
    routes = [
        Route(variant="champion", version="1", weight=50),
        Route(variant="economy", version="2", weight=50),
    ]
    path = await start(table(*of, routes={"m": routes}), inline_below=inline_below)
    asks = [
        path.callers.call(
            request({"x": [[0.0]] * (1 + i % 3)}, version="2" if i % 7 == 0 else ""),
            metadata=[("hedgerow-route-key", f"caller {i}")],
        )
        for i in range(40)
    ]
    bad = path.callers.call(request({"x": [[0.0, 0.0]]}))
    gone = path.callers.call(request({"x": [[0.0]]}))
    gone.ended = True
    path.answerer.answer([*asks, bad, gone])
    await drained(path, *of)
    rows: Counter[tuple[str, str]] = Counter()
    calls: Counter[tuple[str, str]] = Counter()
    for call in asks:
        assert path.callers.of(call).code is OK
        assert call.choice is not None
        key = (call.choice.model.version, call.choice.variant)
        rows[key] += call.rows
        calls[key] += 1
    assert set(rows) == {("1", "champion"), ("2", "economy"), ("2", "asked")}
    counted = {(m.version, v): t for m in of for v, t in m.statistics.variants.items() if t.requests}
    assert {key: (t.requests, t.predictions) for key, t in counted.items()} == {
        key: (calls[key], rows[key]) for key in rows
    }


async def test_a_model_without_a_batch_makes_one_prediction_for_each_request(start: Open) -> None:
    of = model("no_batch")
    path = await start(table(of))
    path.answerer.answer([path.callers.call(request({"x": np.zeros((2, 3), np.float32)})) for _ in range(3)])
    await drained(path, of)
    assert of.statistics.variants["champion"].predictions == 3


@lanes
async def test_a_swap_in_the_middle_changes_no_answer_under_way(start: Open, inline_below: float) -> None:
    """A request keeps the table it read: it is answered by the version it chose, named as such."""
    old = model("constant", version="1", value=1.0)
    new = model("constant", version="2", value=2.0)
    path = await start(table(old), inline_below=inline_below)
    ask = request({"x": [[0.0] * 4]})
    before = [path.callers.call(ask) for _ in range(5)]
    path.answerer.answer(before)
    path.answerer.use(table(new))
    after = [path.callers.call(ask) for _ in range(5)]
    path.answerer.answer(after)
    await drained(path, old, new)
    for calls, version in ((before, "1"), (after, "2")):
        for call in calls:
            assert path.callers.of(call).response.model_version == version
            assert path.callers.of(call).tensors["y"].tolist() == [[float(version)]]


@lanes
async def test_statistics_add_up(start: Open, inline_below: float) -> None:
    """perf_analyzer finds the version by its queue count and divides times by counts; both must be there."""
    of = model("several", max_batch_size=4)
    path = await start(table(of), inline_below=inline_below)
    source = random.Random(0)
    rows = [source.randint(1, 4) for _ in range(50)]
    calls = [
        path.callers.call(request({"a": np.ones((n, 2), np.float32), "b": np.ones((n, 2), np.float32)}))
        for n in rows
    ]
    for i in range(0, 50, 7):
        path.answerer.answer(calls[i : i + 7])
    await drained(path, of)
    statistics = of.statistics
    assert statistics.requests == {0: 50}
    assert statistics.queued == 50
    assert statistics.rows == sum(rows) == sum(size * of[0] for size, of in statistics.batches.items())
    assert statistics.runs == sum(of[0] for of in statistics.batches.values())
    assert max(statistics.batches) <= 4
    assert statistics.run_ns == sum(of[2] for of in statistics.batches.values()) > 0
