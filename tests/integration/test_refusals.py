"""What callers see of a server that has too much to do: on both transports, with their own clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import hedgerow
import numpy as np
import pytest
import zoo
from hedgerow_protos.hedging import OWN_PUSHBACK, PUSHBACK
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from hedgerow_protos.rpc_status_pb2 import RetryInfo, Status
from server_process import ServerProcess, start_server

ONE = np.ones((1, 1), np.float32)


@pytest.fixture(params=["native", "grpcio"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    """Takes two requests of its model at once, which has three priorities."""
    model = tmp_path / "model"
    model.mkdir()
    zoo.slow(model / "model.onnx", 100)
    (model / "serving.yaml").write_text(
        "batching: {max_batch_size: 1, priority_levels: 3, default_priority_level: 3}\n"
    )
    flags = {
        "transport": request.param,
        "admission__max_limit": 2,
        "admission__min_limit": 1,
        "engine__runners": 1,
    }
    running = start_server(tmp_path, {"slow": model}, flags)
    yield running
    running.terminate()
    running.wait()


def ask(priority: int = 0) -> ModelInferRequest:
    request = ModelInferRequest(model_name="slow")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(ONE.tobytes())
    if priority:
        request.parameters["priority"].uint64_param = priority
    return request


async def test_a_refusal_says_when_to_try_again(server: ServerProcess) -> None:
    async with server.channel() as channel:
        infer = GRPCInferenceServiceStub(channel).ModelInfer
        asked = [infer(ask(), timeout=20) for _ in range(6)]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        refused = [error for error in ended if isinstance(error, grpc.aio.AioRpcError)]
        assert 1 <= len(refused) < 6
        for error in refused:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            said = dict(error.trailing_metadata() or ())
            milliseconds = int(said[OWN_PUSHBACK])
            assert milliseconds >= 10
            if server.transport == "grpcio":
                assert said[PUSHBACK] == said[OWN_PUSHBACK]
            status = Status.FromString(said["grpc-status-details-bin"])
            assert (status.code, status.message) == (8, error.details())
            delay = RetryInfo.FromString(status.details[0].value).retry_delay
            assert delay.seconds * 1000 + delay.nanos // 1_000_000 == milliseconds
            assert "x-request-id" in said


async def test_the_python_client_says_it_too(server: ServerProcess) -> None:
    async with hedgerow.AsyncClient(server.grpc, timeout=20) as client:
        ended = await asyncio.gather(
            *(client.infer("slow", {"x": ONE}) for _ in range(6)), return_exceptions=True
        )
    refused = [error for error in ended if isinstance(error, hedgerow.HedgerowError)]
    assert refused
    for error in refused:
        assert isinstance(error, hedgerow.errors.Overloaded)
        assert error.retry_after is not None
        assert error.retry_after >= 0.01


async def test_tritons_client_sets_priorities(server: ServerProcess) -> None:
    """The highest takes the place of one that waits with the lowest; the others are served as before."""
    from tritonclient.grpc import InferInput, aio

    tensor = InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(ONE)
    client = aio.InferenceServerClient(server.grpc)
    try:
        low = [asyncio.create_task(client.infer("slow", [tensor])) for _ in range(2)]
        await asyncio.sleep(0.05)
        high = await client.infer("slow", [tensor], priority=1)
        assert high.as_numpy("y").tolist() == ONE.tolist()
        assert "schedule_policy" in (await client.get_server_metadata()).extensions
    finally:
        await asyncio.gather(*low, return_exceptions=True)
        await client.close()
