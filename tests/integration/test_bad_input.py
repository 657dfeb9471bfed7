"""Every bad input over the wire: its status, a message that helps, and a server that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import zoo
from fakes_engine import framed, request, tensors
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import Serve, ServerProcess

LIMIT = 1 << 20
METHOD = "/inference.GRPCInferenceService/ModelInfer"
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def running(server: Serve, transport: str, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """A server of one transport with a model for each kind of mistake."""
    directory = tmp_path_factory.mktemp("models")
    finite = zoo.logarithm(directory / "finite" / "model.onnx")
    finite.with_name("serving.yaml").write_text("nan: {inputs: reject, outputs: reject}\n")
    models = {
        "m": zoo.several(directory / "several" / "model.onnx"),
        "text": zoo.identity(directory / "text" / "model.onnx", "BYTES", ("batch", 2)),
        "half": zoo.identity(directory / "half" / "model.onnx", "FP16", ("batch", "n")),
        "lookup": zoo.lookup(directory / "lookup" / "model.onnx"),
        "finite": finite,
    }
    return server(models, transport=transport, server__max_message_bytes=LIMIT)


def good() -> ModelInferRequest:
    return request({"a": [[5, 1]], "b": [[2, 2]]})


Change = Callable[[ModelInferRequest], object]


def changed(*changes: Change) -> ModelInferRequest:
    """The good request after some changes."""
    made = good()
    for change in changes:
        change(made)
    return made


def shaped(*shape: int) -> ModelInferRequest:
    made = good()
    made.inputs[0].ClearField("shape")
    made.inputs[0].shape.extend(shape)
    return made


def text(content: bytes) -> ModelInferRequest:
    made = ModelInferRequest(model_name="text")
    made.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    made.raw_input_contents.append(content)
    return made


def empty_and_huge() -> ModelInferRequest:
    made = ModelInferRequest(model_name="half")
    made.inputs.add(name="x", datatype="FP16", shape=[2**40, 0])
    made.raw_input_contents.append(b"")
    return made


def both() -> ModelInferRequest:
    made = good()
    made.inputs[1].contents.fp32_contents.extend([2, 2])
    return made


def half_typed() -> ModelInferRequest:
    made = ModelInferRequest(model_name="half")
    made.inputs.add(name="x", datatype="FP16", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    return made


def named(name: str) -> ModelInferRequest:
    made = good()
    made.model_name = name
    return made


def _string(value: str) -> Any:
    made = ModelInferRequest()
    made.parameters["p"].string_param = value
    return made.parameters["p"]


BAD: dict[str, tuple[ModelInferRequest, grpc.StatusCode, list[str]]] = {
    "unknown model": (named("nobody"), NOT_FOUND, ["'nobody'", "finite"]),
    "no name": (named(""), NOT_FOUND, ["''"]),
    "name with ..": (named("../../etc/passwd"), NOT_FOUND, ["'../../etc/passwd'"]),
    "name with NUL": (named("m\0"), NOT_FOUND, ["\\x00"]),
    "name with spaces": (named(" m "), NOT_FOUND, ["' m '"]),
    "name of 300 characters": (named("x" * 300), NOT_FOUND, ["xxx"]),
    "name with a line break": (named("m\r\nInjected: yes"), NOT_FOUND, ["\\r\\n"]),
    "name that is not ASCII": (named("é名" * 30), NOT_FOUND, ["é名"]),
    "unknown version": (changed(lambda m: setattr(m, "model_version", "7")), NOT_FOUND, ["'7'", "it has 1"]),
    "unknown input": (changed(lambda m: setattr(m.inputs[0], "name", "q")), INVALID, ["'q'", "a, b"]),
    "missing input": (
        changed(lambda m: m.inputs.pop(), lambda m: m.raw_input_contents.pop()),
        INVALID,
        ["missing 'b'"],
    ),
    "extra input": (
        changed(
            lambda m: m.inputs.add(name="c", datatype="FP32", shape=[1]),
            lambda m: m.raw_input_contents.append(b"1234"),
        ),
        INVALID,
        ["'c'", "not an input"],
    ),
    "doubled input": (changed(lambda m: setattr(m.inputs[1], "name", "a")), INVALID, ["'a'", "twice"]),
    "unknown output": (changed(lambda m: m.outputs.add(name="q")), INVALID, ["'q'", "larger"]),
    "wrong datatype": (
        changed(lambda m: setattr(m.inputs[0], "datatype", "FP64")),
        INVALID,
        ["'FP64'", "FP32"],
    ),
    "wrong rank": (shaped(2), INVALID, ["[2]", "[-1, 2]"]),
    "wrong dimension": (shaped(1, 3), INVALID, ["[1, 3]", "[-1, 2]"]),
    "negative dimension": (shaped(-1, 2), INVALID, ["[-1, 2]"]),
    "overflowing product": (shaped(2**62, 2), INVALID, ["elements"]),
    "empty batch": (shaped(0, 2), INVALID, ["no rows"]),
    "empty and huge": (empty_and_huge(), INVALID, ["empty"]),
    "rows that differ": (request({"a": [[1, 2]], "b": [[1, 2], [3, 4]]}), INVALID, ["2 rows"]),
    "too few bytes": (
        changed(lambda m: m.raw_input_contents.__setitem__(0, b"123")),
        INVALID,
        ["3 bytes", "takes 8"],
    ),
    "raw and typed": (both(), INVALID, ["raw_input_contents", "contents"]),
    "no contents": (changed(lambda m: m.ClearField("raw_input_contents")), INVALID, ["'a'", "0 values"]),
    "too many raw entries": (changed(lambda m: m.raw_input_contents.append(b"")), INVALID, ["3 entries"]),
    "typed half precision": (half_typed(), INVALID, ["FP16", "raw"]),
    "text too short": (text(framed([b"a"])), INVALID, ["at least 8"]),
    "text too long": (text(framed([b"a", b"b", b"c"])), INVALID, ["behind its 2 elements"]),
    "text with a lying length": (text(b"\xff\xff\xff\x7f" + b"x" * 8), INVALID, ["2147483647"]),
    "text that is none": (text(framed([b"a", b"\xff"])), INVALID, ["UTF-8"]),
    "NaN": (request({"x": [[1, np.nan]]}, name="finite"), INVALID, ["nan", "element 1"]),
    "infinity": (request({"x": [[-np.inf, 0]]}, name="finite"), INVALID, ["-inf", "element 0"]),
    "answer that is NaN": (
        request({"x": [[-1, 1]]}, name="finite"),
        grpc.StatusCode.INTERNAL,
        ["not a finite number"],
    ),
    "value the model fails at": (
        request({"index": np.array([99], np.int64)}, name="lookup"),
        grpc.StatusCode.INTERNAL,
        ["quote error"],
    ),
    "shared memory": (
        changed(
            lambda m: m.ClearField("raw_input_contents"),
            lambda m: m.inputs[0].parameters["shared_memory_region"].CopyFrom(_string("r")),
        ),
        grpc.StatusCode.UNIMPLEMENTED,
        ["shared memory"],
    ),
    "timeout of a second, as text": (
        changed(lambda m: m.parameters["timeout"].CopyFrom(_string("1s"))),
        INVALID,
        ["'timeout'", "integer"],
    ),
}


async def check_it_still_answers(stub: GRPCInferenceServiceStub) -> None:
    reply = await stub.ModelInfer(good(), timeout=20)
    assert tensors(reply)["difference"].tolist() == [[3.0, -1.0]]


@pytest.mark.parametrize("what", list(BAD))
async def test_a_bad_request_gets_its_status_and_says_what_would_be_right(
    stub: GRPCInferenceServiceStub, what: str
) -> None:
    made, code, words = BAD[what]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(made, timeout=20)
    error = caught.value
    assert error.code() is code, error.details()
    for word in words:
        assert word in (error.details() or "")
    trailing = dict(error.trailing_metadata() or ())
    assert trailing["x-request-id"]
    assert trailing["traceparent"].startswith("00-")
    await check_it_still_answers(stub)


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xff\xff", b"\x0a\x05m", b"\x0a\xff\xff\xff\xff\x0f", b"{}", bytes(100), b"\x0a\x01\xff"],
)
async def test_bytes_that_are_no_request_are_refused(running: ServerProcess, payload: bytes) -> None:
    async with running.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(METHOD)(payload, timeout=20)
        assert caught.value.code() is INVALID
        assert "ModelInferRequest" in (caught.value.details() or "")
        await check_it_still_answers(GRPCInferenceServiceStub(channel))


@pytest.mark.parametrize("size", [LIMIT + 1000, 12 * LIMIT])
async def test_a_message_over_the_limit_is_refused(running: ServerProcess, size: int) -> None:
    """As RESOURCE_EXHAUSTED, whoever of transport and server notices; the connection goes on."""
    made = request({"a": np.zeros((size // 8, 2), np.float32), "b": [[1, 2]]})
    async with running.channel(("grpc.max_send_message_length", -1)) as channel:
        stub = GRPCInferenceServiceStub(channel)
        await check_it_still_answers(stub)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(made, timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value.details()
        await check_it_still_answers(stub)


async def test_a_message_just_below_the_limit_is_answered(stub: GRPCInferenceServiceStub) -> None:
    rows = (LIMIT - 2000) // 16
    array = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    reply = await stub.ModelInfer(request({"a": array, "b": array}), timeout=20)
    assert np.array_equal(tensors(reply)["sum"], array * 2)


async def test_a_compressed_message_that_grows_over_the_limit_is_refused(running: ServerProcess) -> None:
    """A few kilobytes on the wire that would become megabytes in memory."""
    made = request({"a": np.zeros((8 * LIMIT // 8, 2), np.float32), "b": [[1, 2]]})
    async with running.channel(("grpc.max_send_message_length", -1)) as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(made, timeout=20, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value.details()
        await check_it_still_answers(stub)


async def test_a_method_that_is_not_there_is_unimplemented(running: ServerProcess) -> None:
    async with running.channel() as channel:
        for method in ("/inference.GRPCInferenceService/ModelGuess", "/nobody.Service/Method"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"", timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metadata_over_the_limit_fails_its_call_alone(running: ServerProcess) -> None:
    """The hard limit is 16 KiB; whichever layer refuses, the server goes on."""
    async with running.channel() as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(good(), timeout=20, metadata=[("x-much", "x" * 40_000)])
        # The native front refuses with HTTP 431, for which gRPC has no code of its own.
        assert caught.value.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN}
        async with running.channel() as another:
            await check_it_still_answers(GRPCInferenceServiceStub(another))


async def test_no_failure_was_a_defect_but_those_of_the_models(running: ServerProcess) -> None:
    """After all of the above, INTERNAL stands in the log only for the models that cannot answer."""
    internal = [line for line in running.log_lines() if line["code"] == "INTERNAL"]
    assert {line["model"] for line in internal} <= {"finite", "lookup"}
    assert running.process.poll() is None


def test_models_that_cannot_be_served_stop_the_start_with_their_reason(
    tmp_path: Path,
) -> None:
    """A truncated file at the start: no ready line, and a reason."""
    import subprocess
    import sys

    broken = zoo.truncated(tmp_path / "broken.onnx")
    ended = subprocess.run(
        [sys.executable, "-m", "hedgerow_server", "--model", f"broken={broken}"]
        + [f"--{name}-port=0" for name in ("grpc", "http", "metrics")],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert b"ready" not in ended.stdout
    assert b"broken" in ended.stderr
    assert b"Traceback" not in ended.stderr
