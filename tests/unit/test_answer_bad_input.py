"""The request path under bad input: each bad request is refused alone, in a short message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from fakes_engine import RequestPath, model, request, table
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.engine.model import Model
from hypothesis import given, settings
from hypothesis import strategies as st
from request_paths import Open, check_counts, drained, good, lanes, opening

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def start() -> AsyncIterator[Open]:
    async with opening() as open_one:
        yield open_one


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


async def test_a_message_full_of_empty_tensors_does_not_stop_the_loop(start: Open) -> None:
    """Half a million of them are refused by their count; they are neither laid out nor remembered."""
    path = await start(table(model("several")), max_message_bytes=2 << 20)
    call = path.callers.call(good().SerializeToString() + b"\x3a\0" * 500_000)
    path.answerer.answer([call])
    assert path.callers.of(call).code is INVALID
    assert len(path.answerer._heads) == 0
