"""What the integration tests of hedging share: models of two regions, odd backups, and what a region says."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import zoo
from fakes_engine import request
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import HANG_SECONDS, ServerProcess

#: What `m` answers in one region and in the other.
HERE, THERE = 1.0, 2.0
#: For how long a region's faults hold requests up, in seconds.
STALL = 0.4
#: A budget that these few requests cannot use up.
PLENTY = {"hedge__burst": 1000, "hedge__budget_percent": 5}


def write_models(directory: Path) -> Path:
    """Writes the files of both regions' models; returns where they are."""
    zoo.constant(directory / "here.onnx", HERE)
    zoo.constant(directory / "there.onnx", THERE)
    zoo.identity(directory / "text.onnx", "BYTES", ("batch", 2))
    zoo.identity(directory / "large.onnx", "FP32", ("batch", 1024))
    zoo.lookup(directory / "small_table.onnx", rows=10)
    zoo.lookup(directory / "large_table.onnx", rows=100)
    zoo.slow(directory / "quick.onnx", milliseconds=1)
    # Loading takes several runs, and a loaded machine's time.
    zoo.slow(directory / "slow.onnx", milliseconds=100)
    return directory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def said(reply: ModelInferResponse) -> dict[str, str]:
    return {name: value.string_param for name, value in reply.parameters.items()}


def four(**options: Any) -> ModelInferRequest:
    return request({"x": [[0.0] * 4]}, **options)


async def line_of(of: ServerProcess, **wanted: str) -> dict[str, Any]:
    """The one line of a region's log that has these values; it is written a moment after the reply."""
    async with asyncio.timeout(HANG_SECONDS):
        while not (found := [line for line in of.log_lines() if wanted.items() <= line.items()]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    (line,) = found
    return line


def page(of: ServerProcess) -> dict[str, float]:
    """A region's metrics, by name with labels."""
    with urllib.request.urlopen(f"http://{of.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


async def counted(of: ServerProcess, name: str, at_least: float) -> float:
    """A metric when it has reached a number; a busy worker may be a page behind its replies."""
    async with asyncio.timeout(HANG_SECONDS):
        while (found := page(of).get(name, 0.0)) < at_least:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


def dependencies(of: ServerProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{of.http}/health/dependencies") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


Answer = Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Any]


class Odd:
    """A gRPC server that answers as the test says, and keeps what it was asked."""

    def __init__(self, infer: Answer | None, ready: bytes = b"\x08\x01") -> None:
        self._infer_answer = infer
        self._ready_answer = ready
        self.asked: list[float] = []
        self._server = grpc.aio.server()
        methods = {"ServerReady": grpc.unary_unary_rpc_method_handler(self._ready)}
        if infer is not None:
            methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def _ready(self, payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return self._ready_answer

    async def _infer(self, payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self.asked.append(time.monotonic())
        assert self._infer_answer is not None
        answer = self._infer_answer(payload, context)
        return bytes(await answer if asyncio.iscoroutine(answer) else answer)

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


def right(value: float) -> ModelInferResponse:
    """A right reply of `m`, as another vendor's server would give it."""
    reply = ModelInferResponse(model_name="m", model_version="3")
    reply.outputs.add(name="y", datatype="FP32", shape=[1, 1])
    reply.raw_output_contents.append(np.float32([[value]]).tobytes())
    return reply


async def ask_m(of: ServerProcess, **options: Any) -> ModelInferResponse:
    async with of.channel() as channel:
        reply: ModelInferResponse = await GRPCInferenceServiceStub(channel).ModelInfer(
            four(name="m", **options), timeout=20
        )
        return reply
