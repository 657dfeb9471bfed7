"""RepositoryModelLoad and RepositoryModelUnload: who may, what happens, and what does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest
import zoo
from fakes_engine import request, tensors
from hedgerow_protos.open_inference_pb2 import (
    RepositoryIndexRequest,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
)
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import HANG_SECONDS, Serve, ServerProcess

TOKEN = "open sesame"
OPERATOR = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def running(server: Serve, transport: str, files: Path) -> ServerProcess:
    """A server with an operator's token and two models."""
    models = {
        "m": zoo.constant(files / "constant" / "model.onnx", 1.0),
        "slow": zoo.slow(files / "slow" / "model.onnx", milliseconds=50),
    }
    return server(models, transport=transport, server__operator_token=TOKEN)


async def answer(stub: GRPCInferenceServiceStub) -> float:
    reply = await stub.ModelInfer(request({"x": np.zeros((1, 4), np.float32)}), timeout=20)
    return float(tensors(reply)["y"][0, 0])


async def states(stub: GRPCInferenceServiceStub) -> dict[str, str]:
    index = await stub.RepositoryIndex(RepositoryIndexRequest(), timeout=20)
    return {entry.name: entry.state for entry in index.models}


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", "Bearer guess"),), grpc.StatusCode.PERMISSION_DENIED),
        ((("authorization", TOKEN),), grpc.StatusCode.PERMISSION_DENIED),
        ((("authorization", f"bearer {TOKEN} "),), grpc.StatusCode.PERMISSION_DENIED),
        ((("authorization", "Bearer "),), grpc.StatusCode.PERMISSION_DENIED),
        ((("x-api-key", TOKEN),), grpc.StatusCode.UNAUTHENTICATED),
    ],
)
@pytest.mark.parametrize("with_parameters", ["", "config"])
async def test_only_who_shows_the_token_may(
    stub: GRPCInferenceServiceStub,
    metadata: tuple[tuple[str, str], ...],
    code: grpc.StatusCode,
    with_parameters: str,
) -> None:
    """Whoever may not learns nothing else, such as which parameters there are."""
    load = RepositoryModelLoadRequest(model_name="m")
    unload = RepositoryModelUnloadRequest(model_name="m")
    if with_parameters:
        load.parameters[with_parameters].string_param = "{}"
    for call in (
        stub.RepositoryModelLoad(load, metadata=metadata, timeout=20),
        stub.RepositoryModelUnload(unload, metadata=metadata, timeout=20),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code
        assert TOKEN not in (caught.value.details() or "")
    assert await answer(stub) == 1.0


def test_without_a_token_nobody_may(server: Serve, transport: str, files: Path) -> None:
    closed = server({"m": files / "constant" / "model.onnx"}, transport=transport)
    with grpc.insecure_channel(closed.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for metadata in ((), OPERATOR, (("authorization", "Bearer "),)):
            with pytest.raises(grpc.RpcError) as caught:
                stub.RepositoryModelLoad(
                    RepositoryModelLoadRequest(model_name="m"), metadata=metadata, timeout=20
                )
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "operator_token" in caught.value.details()


@pytest.mark.parametrize("name", ["nobody", "../m", "m\0", "x" * 300, ""])
async def test_an_operator_cannot_load_what_was_not_named_at_the_start(
    stub: GRPCInferenceServiceStub, name: str
) -> None:
    for call in (
        stub.RepositoryModelLoad(RepositoryModelLoadRequest(model_name=name), metadata=OPERATOR, timeout=20),
        stub.RepositoryModelUnload(
            RepositoryModelUnloadRequest(model_name=name), metadata=OPERATOR, timeout=20
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert await answer(stub) == 1.0


async def test_parameters_are_not_supported_and_said_so(stub: GRPCInferenceServiceStub) -> None:
    made = RepositoryModelLoadRequest(model_name="m")
    made.parameters["config"].string_param = "{}"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RepositoryModelLoad(made, metadata=OPERATOR, timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "config" in (caught.value.details() or "")


async def test_a_file_is_read_again_under_traffic_and_a_broken_one_changes_nothing(
    stub: GRPCInferenceServiceStub, files: Path
) -> None:
    """Make before break: every request is answered, by the old file or the new one."""
    path = files / "constant" / "model.onnx"
    values: list[float] = []
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            values.append(await answer(stub))

    async def load() -> None:
        await stub.RepositoryModelLoad(
            RepositoryModelLoadRequest(model_name="m"), metadata=OPERATOR, timeout=HANG_SECONDS
        )

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        zoo.constant(path, 2.0)
        await load()
        assert await answer(stub) == 2.0
        zoo.truncated(path)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "'m'" in (caught.value.details() or "")
        assert await answer(stub) == 2.0
        zoo.constant(path, 1.0)
        await load()
        done.set()
    assert set(values) <= {1.0, 2.0}
    assert await answer(stub) == 1.0


async def test_unloading_answers_what_is_under_way_and_loading_brings_it_back(
    stub: GRPCInferenceServiceStub,
) -> None:
    ask = request({"x": [[1.0]]}, name="slow")
    under_way = [asyncio.ensure_future(stub.ModelInfer(ask, timeout=HANG_SECONDS)) for _ in range(5)]
    await asyncio.sleep(0.05)
    await stub.RepositoryModelUnload(
        RepositoryModelUnloadRequest(model_name="slow"), metadata=OPERATOR, timeout=HANG_SECONDS
    )
    for reply in await asyncio.gather(*under_way):
        assert tensors(reply)["y"].tolist() == [[1.0]]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(ask, timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await states(stub)).get("slow") != "READY"
    await stub.RepositoryModelLoad(
        RepositoryModelLoadRequest(model_name="slow"), metadata=OPERATOR, timeout=HANG_SECONDS
    )
    assert (await states(stub))["slow"] == "READY"
    await stub.ModelInfer(ask, timeout=20)


async def test_several_workers_are_not_made_to_differ(server: Serve, transport: str, files: Path) -> None:
    """A call reaches one worker; the others would go on serving what it unloaded."""
    running = server(
        {"m": zoo.constant(files / "two" / "model.onnx", 1.0)},
        transport=transport,
        workers=2,
        server__operator_token=TOKEN,
    )
    async with running.channel() as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="2 workers") as caught:
            await stub.RepositoryModelUnload(
                RepositoryModelUnloadRequest(model_name="m"), metadata=OPERATOR, timeout=20
            )
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert await answer(stub) == 1.0
