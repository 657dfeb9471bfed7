"""What both transports must do alike: answers, cancels, deadlines, streams, trace ids, health, reflection."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import zoo
from fakes_engine import framed, request, tensors
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hedgerow_protos.open_inference_pb2 import (
    ModelInferRequest,
    ModelMetadataRequest,
    ModelReadyRequest,
    ModelStatisticsRequest,
    ServerReadyRequest,
)
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import HANG_SECONDS, Serve, ServerProcess

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def running(server: Serve, transport: str, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """A server with a fast model, a slow one, and one of texts."""
    directory = tmp_path_factory.mktemp("models")
    models = {
        "m": zoo.several(directory / "several.onnx"),
        "slow": zoo.slow(directory / "slow.onnx", milliseconds=30),
        "text": zoo.identity(directory / "text.onnx", "BYTES", ("batch", 2)),
    }
    return server(models, transport=transport)


async def test_the_ready_line_names_the_transport_that_was_asked_for(
    running: ServerProcess, transport: str
) -> None:
    assert running.transport == transport


async def test_texts_pass_through_unchanged(stub: GRPCInferenceServiceStub) -> None:
    made = ModelInferRequest(model_name="text", id="näme")
    made.inputs.add(name="x", datatype="BYTES", shape=[2, 2])
    content = framed([b"", "名前".encode(), b"x" * 100_000, b"\0"])
    made.raw_input_contents.append(content)
    reply = await stub.ModelInfer(made, timeout=20)
    assert reply.raw_output_contents == [content]
    assert reply.id == "näme"


@pytest.mark.parametrize("model", ["m", "slow"])
async def test_cancelling_any_of_many_leaves_the_others_answers_right(
    running: ServerProcess, model: str
) -> None:
    """Through real sockets, cancelled at random moments: while sent, while waiting, while running."""
    source = random.Random(model)
    async with running.channel() as channel:
        stub = GRPCInferenceServiceStub(channel)

        async def ask(i: int) -> None:
            inputs = {"x": [[float(i)]]} if model == "slow" else {"a": [[float(i), 1]], "b": [[2, float(-i)]]}
            call = stub.ModelInfer(request(inputs, name=model, id=str(i)), timeout=HANG_SECONDS)
            if i % 2:
                await asyncio.sleep(source.random() * 0.1)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call  # unless it was answered before
                return
            reply = await call
            assert reply.id == str(i)
            got = tensors(reply)
            if model == "slow":
                assert got["y"].tolist() == [[float(i)]]
            else:
                assert got["sum"].tolist() == [[i + 2.0, 1.0 - i]]

        for _ in range(3):
            await asyncio.gather(*[ask(i) for i in range(60)])
    # Every one of them is in the log once, and nothing was a defect.
    codes = {line["code"] for line in running.log_lines() if line["model"] == model}
    assert codes <= {"OK", "CANCELLED"}


async def test_a_client_that_disconnects_with_a_hundred_calls_harms_nobody(running: ServerProcess) -> None:
    """Its calls end as cancelled; another client's are answered meanwhile and afterwards."""
    async with running.channel() as staying:
        stub = GRPCInferenceServiceStub(staying)
        before = await queued(stub)
        leaving = running.channel()
        calls = [
            GRPCInferenceServiceStub(leaving).ModelInfer(
                request({"x": [[float(i)]]}, name="slow"), timeout=HANG_SECONDS
            )
            for i in range(100)
        ]
        mine = [
            asyncio.ensure_future(
                stub.ModelInfer(request({"x": [[float(i)]]}, name="slow"), timeout=HANG_SECONDS)
            )
            for i in range(10)
        ]
        await asyncio.sleep(0.02)
        await leaving.close()
        for i, reply in enumerate(await asyncio.gather(*mine)):
            assert tensors(reply)["y"].tolist() == [[float(i)]]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert len(ended) == 100
        reply = await stub.ModelInfer(request({"x": [[7.0]]}, name="slow"), timeout=HANG_SECONDS)
        assert tensors(reply)["y"].tolist() == [[7.0]]
        assert await queued(stub) >= before + 11


async def queued(stub: GRPCInferenceServiceStub) -> int:
    reply = await stub.ModelStatistics(ModelStatisticsRequest(name="slow"), timeout=20)
    return int(reply.model_stats[0].inference_stats.queue.count)


# -------------------------------------------------------------------- deadlines


@pytest.mark.parametrize("seconds", [1e-4, 2e-3])
async def test_a_tiny_deadline_is_exceeded_and_nothing_breaks(
    stub: GRPCInferenceServiceStub, seconds: float
) -> None:
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request({"x": [[1.0]]}, name="slow"), timeout=seconds)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stub.ModelInfer(request({"x": [[1.0]]}, name="slow"), timeout=20)


async def test_the_timeout_parameter_is_kept_by_the_server_itself(stub: GRPCInferenceServiceStub) -> None:
    """The client waits long; the server ends the run that nobody will want."""
    for timeout in (1, 3_000):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request({"x": [[1.0]]}, name="slow", timeout=timeout), timeout=20)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, caught.value.details()
        assert "deadline" in (caught.value.details() or "")


def test_a_call_without_a_deadline_gets_the_default(
    server: Serve, transport: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And one that asks for more than the maximum gets the maximum."""
    path = zoo.slow(tmp_path_factory.mktemp("model") / "slow.onnx", milliseconds=100)
    strict = server(
        {"slow": path},
        transport=transport,
        deadline__default_seconds=0.02,
        deadline__maximum_seconds=0.03,
        engine__max_batch_size=1,  # its load then needs no runs to compare rows
    )
    with grpc.insecure_channel(strict.grpc) as channel:
        for timeout in (None, 30):
            details = ""
            until = time.monotonic() + HANG_SECONDS
            # On a busy machine the time may be over before the run begins.
            while "its run was stopped" not in details and time.monotonic() < until:
                with pytest.raises(grpc.RpcError) as caught:
                    GRPCInferenceServiceStub(channel).ModelInfer(
                        request({"x": [[1.0]]}, name="slow"), timeout=timeout
                    )
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                details = caught.value.details()
            assert "its run was stopped" in details


# --------------------------------------------------------------------- metadata


async def test_trace_and_request_id_come_back_and_stand_in_the_log(running: ServerProcess) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (
        ("traceparent", f"00-{trace}-b7ad6b7169203331-01"),
        ("x-request-id", "my request"),
        ("hedgerow-route-key", "caller 9"),
    )
    async with running.channel() as channel:
        call = GRPCInferenceServiceStub(channel).ModelInfer(
            request({"a": [[1, 2]], "b": [[3, 4]]}), timeout=20, metadata=metadata
        )
        await call
        trailing = dict(await call.trailing_metadata())
    assert trailing["x-request-id"] == "my request"
    assert re.fullmatch(f"00-{trace}-[0-9a-f]{{16}}-01", trailing["traceparent"])
    async with asyncio.timeout(HANG_SECONDS):
        while not (lines := [li for li in running.log_lines() if li["request_id"] == "my request"]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the log's writer is another process
    (line,) = lines
    assert (
        line["trace_id"],
        line["user"],
        line["model"],
        line["version"],
        line["code"],
        line["outcome"],
    ) == (
        trace,
        "caller 9",
        "m",
        "1",
        "OK",
        "primary",
    )
    assert line["total_ms"] >= line["run_ms"] > 0


@pytest.mark.parametrize("value", [" x ", "x" * 129, "~!@#$%^&*()"])
async def test_odd_request_ids_do_not_fail_the_call(stub: GRPCInferenceServiceStub, value: str) -> None:
    call = stub.ModelInfer(
        request({"a": [[1, 2]], "b": [[3, 4]]}), timeout=20, metadata=[("x-request-id", value)]
    )
    assert tensors(await call)["sum"].tolist() == [[4.0, 6.0]]


# ---------------------------------------------------------------------- streams


async def test_a_stream_with_good_and_bad_requests_answers_each_by_its_id(
    stub: GRPCInferenceServiceStub,
) -> None:
    """The bad ones get an error message and do not end the stream."""

    async def requests() -> AsyncIterator[ModelInferRequest]:
        for i in range(600):
            if i % 3 == 0:
                yield request({"a": [[float(i), 0]], "b": [[1, 1]]}, id=str(i))
            elif i % 3 == 1:
                yield request({"a": [[1.0]]}, id=str(i))
            else:
                yield request({"a": [[1, 2]], "b": [[3, 4]]}, name="nobody", id=str(i))

    replies = [reply async for reply in stub.ModelStreamInfer(requests(), timeout=HANG_SECONDS)]
    assert sorted(int(reply.infer_response.id) for reply in replies) == list(range(600))
    for reply in replies:
        i = int(reply.infer_response.id)
        if i % 3 == 0:
            assert not reply.error_message
            assert tensors(reply.infer_response)["sum"].tolist() == [[i + 1.0, 1.0]]
        else:
            assert reply.error_message.startswith("[INVALID_ARGUMENT]" if i % 3 == 1 else "[NOT_FOUND]")


async def test_a_stream_that_is_left_in_the_middle_ends_its_calls(stub: GRPCInferenceServiceStub) -> None:
    async def requests() -> AsyncIterator[ModelInferRequest]:
        for i in range(50):
            yield request({"x": [[float(i)]]}, name="slow", id=str(i))

    stream = stub.ModelStreamInfer(requests(), timeout=HANG_SECONDS)
    assert (await stream.read()).infer_response.id
    stream.cancel()
    reply = await stub.ModelInfer(request({"x": [[3.0]]}, name="slow"), timeout=HANG_SECONDS)
    assert tensors(reply)["y"].tolist() == [[3.0]]


async def test_a_stream_whose_replies_nobody_reads_is_held_back(running: ServerProcess) -> None:
    """The server reads no further than its window: it does not pile up answers."""
    rows = np.zeros((4000, 2), np.float32)
    sent = 0

    async def requests() -> AsyncIterator[ModelInferRequest]:
        nonlocal sent
        made = request({"a": rows, "b": rows})
        while True:
            sent += 1
            yield made

    async with running.channel(("grpc.http2.lookahead_bytes", 65536)) as channel:
        stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests(), timeout=HANG_SECONDS)
        await stream.read()
        seen = -1
        async with asyncio.timeout(HANG_SECONDS):
            while sent != seen:
                seen = sent
                await asyncio.sleep(0.5)
        stream.cancel()
    # 256 in the window, and what lies in the buffers of both ends.
    assert sent < 2000


async def test_an_empty_stream_ends_in_peace(stub: GRPCInferenceServiceStub) -> None:
    async def nothing() -> AsyncIterator[ModelInferRequest]:
        return
        yield

    assert [reply async for reply in stub.ModelStreamInfer(nothing(), timeout=20)] == []


# ---------------------------------------------------------- health, reflection, …


async def test_health_tells_of_the_server_and_of_each_model(running: ServerProcess) -> None:
    async with running.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "m", "slow"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert reply.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        infer = GRPCInferenceServiceStub(channel)
        assert (await infer.ServerReady(ServerReadyRequest(), timeout=20)).ready
        assert (await infer.ModelReady(ModelReadyRequest(name="m"), timeout=20)).ready
        assert not (await infer.ModelReady(ModelReadyRequest(name="../m\0"), timeout=20)).ready
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer.ModelMetadata(ModelMetadataRequest(name="x" * 300), timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_and_describes_every_service(running: ServerProcess) -> None:
    """With grpcio's own client, as grpcurl does it: a client without our files finds fields and types."""
    with grpc.insecure_channel(running.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        method = service.FindMethodByName("ModelInfer")
        assert method.input_type.full_name == "inference.ModelInferRequest"
        assert method.input_type.fields_by_name["raw_input_contents"].number == 7
        assert pool.FindServiceByName("grpc.health.v1.Health").FindMethodByName("Watch").server_streaming


async def test_an_ipv6_address_is_served(server: Serve, transport: str, tmp_path: Path) -> None:
    """The ready line and both transports write it in brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    running = server({"m": zoo.identity(tmp_path / "m.onnx")}, host="::1", transport=transport)
    assert running.grpc.startswith("[::1]:")
    async with running.channel() as channel:
        reply = await GRPCInferenceServiceStub(channel).ModelInfer(request({"x": [[1, 2, 3]]}), timeout=20)
    assert tensors(reply)["y"].tolist() == [[1, 2, 3]]
