"""The request path as a whole: real answerer, real engine, real models; only the sockets are missing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from fakes_engine import INLINE, THREADED, RequestPath, Route, endless, model, request, table
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.call import Call
from hedgerow_server.engine.model import Model
from hedgerow_server.gate.concurrency import Bounds
from hedgerow_server.gate.deadlines import Deadlines
from hypothesis import given, settings
from hypothesis import strategies as st

OK, CANCELLED, INVALID = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.INVALID_ARGUMENT
Open = Callable[..., Awaitable[RequestPath]]
lanes = pytest.mark.parametrize("inline_below", [INLINE, THREADED], ids=["inline", "threaded"])


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    """Starts request paths, and ends their threads whatever becomes of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(*args: Any, **options: Any) -> RequestPath:
            path = await RequestPath.open(*args, **options)
            stack.push_async_callback(path.engine.close)
            return path

        yield open_one


async def drained(path: RequestPath, *models: Model) -> None:
    """Waits until nothing is under way any more."""
    async with asyncio.timeout(20):
        await path.answerer.idle()
        for each in models:
            await each.drained()


def check_counts(path: RequestPath, calls: list[Call], *models: Model) -> None:
    """Every call ended once: in the counts, in the log, and for its version."""
    assert path.answerer.in_flight == 0
    assert len(path.log.lines) == len(calls)
    counted: Counter[int] = Counter(path.answerer.books.unrouted.requests)
    for each in models:
        assert (each.in_flight, len(each.queue), each.running) == (0, 0, 0)
        counted.update(each.statistics.requests)
        assert sum(each.statistics.latency) == sum(each.statistics.requests.values())
    logged = Counter(grpc.StatusCode[line.code].value[0] for line in path.log.lines)
    assert counted == logged
    assert all(call.ended for call in calls)


# ------------------------------------------------------------------ cancelling

#: When a call is cancelled: never, or after so many turns of the loop from its group's arrival.
cancels = st.one_of(st.none(), st.none(), st.integers(0, 6))
#: A group arrives in one turn: rows of each call and its cancellation.
groups = st.lists(st.tuples(st.integers(1, 5), cancels), min_size=1, max_size=9)


@pytest.mark.parametrize("inline_below", [INLINE, THREADED], ids=["inline", "threaded"])
@pytest.mark.parametrize("kind", ["several", "slow", "batch_mean"])
@settings(max_examples=40, deadline=None)
@given(plan=st.lists(groups, min_size=1, max_size=4), runners=st.integers(1, 3))
def test_cancelling_any_of_a_batch_leaves_the_others_answers_right(
    kind: str, inline_below: float, plan: list[list[tuple[int, int | None]]], runners: int
) -> None:
    """Whoever was not cancelled gets exactly its own numbers, in both lanes; nobody is counted twice."""
    of = {
        "several": lambda: model("several", max_batch_size=8),
        "slow": lambda: model("slow", max_batch_size=8, milliseconds=1.0),
        "batch_mean": lambda: model("batch_mean"),
    }[kind]()
    source = np.random.default_rng(0)

    def tensors_of(rows: int) -> dict[str, np.ndarray]:
        width = 1 if kind == "slow" else 2
        names = ("a", "b") if kind == "several" else ("x",)
        return {name: source.standard_normal((rows, width)).astype(np.float32) for name in names}

    def is_right(sent: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> bool:
        if kind == "several":
            a, b = sent["a"], sent["b"]
            wanted = {"sum": a + b, "difference": a - b, "larger": a > b}
        elif kind == "slow":
            wanted = {"y": sent["x"]}
        else:
            x = sent["x"]
            wanted = {"y": x - x.mean(axis=0, keepdims=True)}
        return got.keys() == wanted.keys() and all(
            got[name].shape == wanted[name].shape and np.allclose(got[name], wanted[name], atol=1e-6)
            for name in wanted
        )

    async def scenario() -> None:
        path = await RequestPath.open(table(of), inline_below=inline_below, runners=runners)
        sent: dict[Call, dict[str, np.ndarray]] = {}
        cancelled: set[Call] = set()

        async def give_up(call: Call, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            if call.token not in path.callers.replies:
                cancelled.add(call)
            path.answerer.cancel(call)

        async with asyncio.TaskGroup() as givers:
            for group in plan:
                calls = []
                for rows, turns in group:
                    inputs = tensors_of(rows)
                    call = path.callers.call(request(inputs))
                    sent[call] = inputs
                    calls.append((call, turns))
                path.answerer.answer([call for call, _ in calls])
                for call, turns in calls:
                    if turns is not None:
                        givers.create_task(give_up(call, turns))
                await asyncio.sleep(0)
        await drained(path, of)
        for call, inputs in sent.items():
            if call in cancelled:
                assert call.token not in path.callers.replies
            else:
                assert is_right(inputs, path.callers.of(call).tensors), call
        check_counts(path, list(sent), of)
        assert of.statistics.requests.get(CANCELLED.value[0], 0) == len(cancelled)
        await path.engine.close()

    asyncio.run(scenario())


async def test_abandoning_ends_what_runs_and_what_waits(start: Open) -> None:
    """When a drain's time is over, each call gets one UNAVAILABLE, and a run that nobody waits for stops."""
    of = endless(max_batch_size=2)
    path = await start(table(of), inline_below=THREADED, runners=1)
    calls = [path.callers.call(request({"x": [[float(i)]]})) for i in range(5)]
    path.answerer.answer(calls)
    path.answerer.abandon()
    assert {path.callers.of(call).code for call in calls} == {grpc.StatusCode.UNAVAILABLE}
    await drained(path, of)
    check_counts(path, calls, of)


async def test_a_call_that_is_cancelled_while_it_waits_is_never_run(start: Open) -> None:
    """Triton runs what nobody waits for any more; the queue drops it before a batch forms."""
    of = model("slow", max_batch_size=1, milliseconds=5)
    path = await start(table(of), inline_below=THREADED, runners=1)
    first, second = (path.callers.call(request({"x": [[float(i)]]})) for i in range(2))
    path.answerer.answer([first, second])
    path.answerer.cancel(second)
    await drained(path, of)
    assert of.statistics.runs == 1
    assert path.callers.of(first).tensors["y"].tolist() == [[0.0]]
    check_counts(path, [first, second], of)


async def test_cancelling_twice_or_after_the_answer_changes_nothing(start: Open) -> None:
    of = model("several")
    path = await start(table(of))
    call = path.callers.call(request({"a": [[1, 2]], "b": [[3, 4]]}))
    path.answerer.answer([call])
    for _ in range(3):
        path.answerer.cancel(call)
    assert path.callers.of(call).code is OK
    check_counts(path, [call], of)


async def test_a_run_stops_when_its_last_call_is_cancelled(start: Open) -> None:
    """A model that would run for ages is stopped by ONNX Runtime's terminate flag, not waited for."""
    of = endless(max_batch_size=8)
    path = await start(table(of), inline_below=THREADED, runners=2)
    calls = [path.callers.call(request({"x": [[float(i)]]})) for i in range(3)]
    path.answerer.answer(calls)
    for call in calls[:2]:
        path.answerer.cancel(call)
    await asyncio.sleep(0.01)
    assert of.running == 1
    path.answerer.cancel(calls[2])
    await drained(path, of)
    assert path.callers.replies == {}
    check_counts(path, calls, of)


async def test_a_run_stops_even_if_its_calls_are_cancelled_before_its_thread_has_begun(start: Open) -> None:
    """Between the hand-over to a thread and the thread's first instruction there is time for a cancel."""
    of = endless(max_batch_size=8)
    path = await start(table(of), inline_below=THREADED, runners=2)
    held: list[Callable[[], Any]] = []
    submit = path.engine._threads.submit
    path.engine._threads.submit = lambda *work: held.append(lambda: submit(*work))  # type: ignore[assignment,method-assign,misc,return-value]
    call = path.callers.call(request({"x": [[1.0]]}))
    path.answerer.answer([call])
    path.answerer.cancel(call)
    held[0]()
    await drained(path, of)
    check_counts(path, [call], of)


# ------------------------------------------------------------------- deadlines


async def test_a_run_is_stopped_at_the_last_deadline_of_its_calls(start: Open) -> None:
    """All callers get DEADLINE_EXCEEDED, none INTERNAL, and the runner is free again."""
    of = endless(max_batch_size=8)
    path = await start(table(of), inline_below=THREADED, runners=1)
    calls = [path.callers.call(request({"x": [[1.0]]}), remaining=0.01 * (i + 1)) for i in range(3)]
    path.answerer.answer(calls)
    await drained(path, of)
    for call in calls:
        reply = path.callers.of(call)
        assert reply.code is grpc.StatusCode.DEADLINE_EXCEEDED, reply
        assert "deadline" in reply.message
    check_counts(path, calls, of)


async def test_what_runs_out_of_time_while_all_runners_are_busy_is_told_before_a_runner_is_free(
    start: Open,
) -> None:
    """Triton tells a timed-out request only after the running inference ends (its issue 7512)."""
    of = endless(max_batch_size=1)
    path = await start(table(of), inline_below=THREADED, runners=1)
    holds = path.callers.call(request({"x": [[1.0]]}), remaining=60)
    waits = [path.callers.call(request({"x": [[1.0]]}), remaining=0.001) for _ in range(3)]
    path.answerer.answer([holds, *waits])
    async with asyncio.timeout(10):
        while len(path.callers.replies) < 3:  # noqa: ASYNC110  the sink is not told to tell us
            await asyncio.sleep(0.005)
    assert of.running == 1
    for call in waits:
        assert path.callers.of(call).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "not run" in path.callers.of(call).message
    path.answerer.cancel(holds)
    await drained(path, of)
    assert of.statistics.runs == 0
    check_counts(path, [holds, *waits], of)


@lanes
async def test_what_is_late_already_is_refused_before_anything_is_done(
    start: Open, inline_below: float
) -> None:
    of = model("several")
    path = await start(table(of), inline_below=inline_below)
    late = path.callers.call(request({"a": [[1, 2]], "b": [[3, 4]]}), remaining=0.0)
    later = path.callers.call(b"\xff not even a message", remaining=-5.0)
    path.answerer.answer([late])
    assert path.callers.of(late).code is grpc.StatusCode.DEADLINE_EXCEEDED
    path.answerer.answer([later])
    assert path.callers.of(later).code in {grpc.StatusCode.DEADLINE_EXCEEDED, INVALID}
    assert of.statistics.queued == of.statistics.runs == 0
    check_counts(path, [late, later], of)


async def test_the_timeout_parameter_is_a_deadline_in_microseconds(start: Open) -> None:
    """Triton's clients send it as int64; a text, a negative number and a fraction are errors."""
    of = model("several")
    now = [1000.0]
    path = await start(table(of), inline_below=THREADED, clock=lambda: now[0], deadlines=Deadlines(5, 30))

    def call(**parameter: Any) -> Call:
        made = request({"a": [[1, 2]], "b": [[3, 4]]})
        for kind, value in parameter.items():
            setattr(made.parameters["timeout"], kind, value)
        return path.callers.call(made)

    good = [call(int64_param=2_000_000), call(uint64_param=10**18), call(int64_param=0), call()]
    bad = [call(int64_param=-1), call(string_param="1s"), call(double_param=0.5), call(bool_param=True)]
    path.answerer.answer([*good, *bad])
    assert [call.deadline for call in good] == [1002.0, 1030.0, 1005.0, 1005.0]
    for each in bad:
        assert path.callers.of(each).code is INVALID
        assert "'timeout'" in path.callers.of(each).message
    await drained(path, of)


# ------------------------------------------------------------------- bad input


def good(name: str = "m") -> ModelInferRequest:
    return request({"a": [[1, 2]], "b": [[3, 4]]}, name=name)


def without_input() -> ModelInferRequest:
    made = good()
    del made.inputs[1:], made.raw_input_contents[1:]
    return made


def wrong_bytes() -> ModelInferRequest:
    made = good()
    made.raw_input_contents[0] += b"\0"
    return made


BAD = {
    "an unknown model": (lambda: good("nobody").SerializeToString(), grpc.StatusCode.NOT_FOUND),
    "a missing input": (lambda: without_input().SerializeToString(), INVALID),
    "a byte too many": (lambda: wrong_bytes().SerializeToString(), INVALID),
    "no message": (lambda: b"\xff\xff\xff", INVALID),
    "nothing": (lambda: b"", grpc.StatusCode.NOT_FOUND),
    "too many bytes": (lambda: b"\0" * ((1 << 20) + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
}


@lanes
@settings(max_examples=25, deadline=None)
@given(order=st.permutations([*BAD, *["good"] * 6]))
def test_bad_requests_never_fail_the_good_ones_of_their_batch(inline_below: float, order: list[str]) -> None:
    """Each bad one gets its own status; the good ones are answered in one run, wherever they stood."""
    of = model("several")

    async def scenario() -> None:
        path = await RequestPath.open(table(of), inline_below=inline_below)
        calls = {
            path.callers.call(good() if what == "good" else BAD[what][0]()): (what, i)
            for i, what in enumerate(order)
        }
        path.answerer.answer(list(calls))
        await drained(path, of)
        for call, (what, _) in calls.items():
            reply = path.callers.of(call)
            if what == "good":
                assert reply.tensors["sum"].tolist() == [[4.0, 6.0]]
            else:
                assert reply.code is BAD[what][1], (what, reply)
        check_counts(path, list(calls), of)
        await path.engine.close()

    asyncio.run(scenario())
    assert list(of.statistics.batches) == [6]


@lanes
async def test_a_value_that_makes_the_model_fail_fails_its_request_alone(
    start: Open, inline_below: float
) -> None:
    """An index out of range makes the whole run fail; the batch's others are run again without it."""
    of = model("lookup")
    path = await start(table(of), inline_below=inline_below)
    indices = [3, 99, 0, 7, -50, 9]
    calls = [path.callers.call(request({"index": np.array([i], np.int64)})) for i in indices]
    path.answerer.answer(calls)
    await drained(path, of)
    for i, call in zip(indices, calls, strict=True):
        reply = path.callers.of(call)
        if 0 <= i < 10:
            assert reply.tensors["y"].tolist() == [[2.0 * i, 2.0 * i + 1]]
        else:
            assert reply.code is grpc.StatusCode.INTERNAL
    check_counts(path, calls, of)


async def test_a_models_own_failure_is_told_by_an_id_and_nothing_else(
    start: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """The text of ONNX Runtime stays in the log, under the id that the caller can quote."""
    of = model("lookup")
    path = await start(table(of))
    call = path.callers.call(request({"index": np.array([99], np.int64)}))
    path.answerer.answer([call])
    reply = path.callers.of(call)
    error_id = path.log.lines[0].error_id
    assert reply.code is grpc.StatusCode.INTERNAL
    assert error_id is not None
    assert error_id in reply.message
    assert "Gather" not in reply.message
    assert "99" not in reply.message.replace(error_id, "")
    assert error_id in caplog.text
    assert "Gather" in caplog.text


@lanes
@settings(max_examples=150, deadline=None)
@given(payloads=st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_arbitrary_bytes_are_refused_with_a_status_that_is_not_a_defect(
    inline_below: float, payloads: list[bytes]
) -> None:
    of = model("several", name="")

    async def scenario() -> None:
        path = await RequestPath.open(table(of), inline_below=inline_below)
        calls = [path.callers.call(payload) for payload in payloads]
        path.answerer.answer(calls)
        await drained(path, of)
        for call in calls:
            assert path.callers.of(call).code in {INVALID, grpc.StatusCode.NOT_FOUND}
        check_counts(path, calls, of)
        await path.engine.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "m\0", "a b", "x" * 300, "", "é" * 200, "\n\r", "名前", "a" * 100_000],
    ids=range(9),
)
async def test_any_name_that_is_no_model_is_not_found_with_a_short_message(start: Open, name: str) -> None:
    """The name is shown quoted and cut, so a message stays one line that fits into a header."""
    path = await start(table(model("several")))
    unknown, version = path.callers.call(good(name)), good()
    version.model_version = name
    of_version = path.callers.call(version)
    path.answerer.answer([unknown, of_version] if name else [unknown])
    for call in [unknown, of_version] if name else [unknown]:
        reply = path.callers.of(call)
        assert reply.code is grpc.StatusCode.NOT_FOUND
        assert len(reply.message.encode()) < 1000
        assert reply.message.isprintable()


async def test_a_refusal_fits_into_a_header_however_much_the_model_has_to_say(start: Open) -> None:
    """Trailers over 8 KiB are refused by clients: then nobody learns what was wrong."""
    of = model("several")
    of.signature = _with_long_names(of)
    path = await start(table(of))
    call = path.callers.call(good())
    path.answerer.answer([call])
    reply = path.callers.of(call)
    assert reply.code is INVALID
    assert len(reply.message.encode()) <= 4096


def _with_long_names(of: Model) -> Any:
    from dataclasses import replace

    spec = of.signature.inputs[0]
    return replace(
        of.signature, inputs=tuple(replace(spec, name=f"input_{i}_" + "n" * 50) for i in range(400))
    )


# --------------------------------------------------------- drain, limits, counts


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


async def test_a_call_given_up_before_it_was_handed_over_is_counted_and_logged_as_cancelled(
    start: Open,
) -> None:
    """One request, one outcome, one log line: also for who left in the same turn of the loop."""
    of = model("several")
    path = await start(table(of))
    gone, stays = path.callers.call(good(), metadata=[("x-request-id", "gone")]), path.callers.call(good())
    gone.ended = True
    path.answerer.answer([gone, stays])
    assert path.callers.replies.keys() == {stays.token}
    check_counts(path, [gone, stays], of)
    assert {(line.request_id == "gone", line.code) for line in path.log.lines} == {
        (True, "CANCELLED"),
        (False, "OK"),
    }


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


# ------------------------------------------------------------ recognised requests


def _outcome(path: RequestPath, call: Call) -> tuple[Any, ...]:
    reply = path.callers.of(call)
    if reply.code is not OK:
        error_id = path.log.lines[-1].error_id
        return reply.code, reply.message.replace(error_id, "") if error_id else reply.message
    return OK, reply.response


@pytest.mark.parametrize("nan", ["NAN_CHOICE_REJECT", "NAN_CHOICE_ALLOW"])
async def test_a_recognised_request_is_answered_as_one_that_is_parsed(start: Open, nan: str) -> None:
    """By answer, refusal and id: from a path that knows its head, and from one that knows nothing."""
    good_value, bad_value = np.ones((2, 2), np.float32), np.full((2, 2), np.nan, np.float32)
    b = np.arange(4, dtype=np.float32).reshape(2, 2)
    asks = []
    for a in (good_value, good_value * 3, bad_value, good_value):
        for request_id in ("", "id", "näme", "i" * 127, "i" * 128):
            for outputs in ((), ("larger", "sum"), ("nothing",)):
                asks.append(request({"a": a, "b": b}, id=request_id, outputs=outputs))
                asks.append(request({"b": b, "a": a}, id=request_id, outputs=outputs))
        asks.append(request({"a": a, "b": b[:1]}))
        asks.append(request({"a": a, "b": b}, version="9"))
        asks.append(request({"a": a, "b": b}, timeout=-1))
        asks.append(request({"a": a, "b": b}, name="nobody"))
        typed_timeout = request({"a": a, "b": b})
        typed_timeout.parameters["timeout"].bool_param = True
        short = request({"a": a, "b": b})
        short.raw_input_contents[1] = short.raw_input_contents[1][:-1]
        asks += [typed_timeout, short]
    choice = {"inputs": nan, "outputs": nan}
    knowing = await start(table(model("several", nan=choice)))
    for ask in (*asks, *asks):
        fresh = await start(table(model("several", nan=choice)))
        calls = [(path, path.callers.call(ask)) for path in (knowing, fresh)]
        for path, call in calls:
            path.answerer.answer([call])
        known, parsed = [_outcome(path, call) for path, call in calls]
        assert known == parsed


async def test_a_recognised_request_keeps_its_own_deadline(start: Open) -> None:
    """The timeout is part of the head; the transport's deadline is each call's own."""
    now = [100.0]
    path = await start(table(model("several")), deadlines=Deadlines(10, 60), clock=lambda: now[0])
    for timeout, remaining, wanted in (
        (0, None, 10.0), (0, 3.0, 3.0), (5_000_000, None, 5.0), (5_000_000, 2.0, 2.0), (5_000_000, None, 5.0),
    ):  # fmt: skip
        for _ in range(2):
            now[0] += 1
            ask = request({"a": [[1, 2]], "b": [[3, 4]]}, timeout=timeout)
            call = path.callers.call(ask, remaining=remaining)
            # The engine's clock is another; only what the call was given is looked at.
            path.answerer._engine.run_waiting = lambda _: None  # type: ignore[method-assign]
            path.answerer.answer([call])
            assert call.deadline == pytest.approx(now[0] + wanted)


async def test_a_message_full_of_empty_tensors_does_not_stop_the_loop(start: Open) -> None:
    """Half a million of them are refused by their count; they are neither laid out nor remembered."""
    path = await start(table(model("several")), max_message_bytes=2 << 20)
    call = path.callers.call(good().SerializeToString() + b"\x3a\0" * 500_000)
    path.answerer.answer([call])
    assert path.callers.of(call).code is INVALID
    assert len(path.answerer._heads) == 0
