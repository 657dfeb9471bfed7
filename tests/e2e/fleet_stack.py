"""The local stack with a model published, for tests of the whole: MLflow, control plane, two regions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import hedgerow
import numpy as np
import zoo
from hedgerow_local.stack import Stack
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.hedgerow_control_pb2_grpc import OperatorStub

MODEL = "mlp"


@asynccontextmanager
async def published_stack(root: Path, versions: int, **settings: str) -> AsyncGenerator[Stack, None]:
    """A running stack with versions 1..n of an MLP in MLflow; 1 is champion and served by both regions."""
    async with Stack(root / "stack", ports="free", settings=settings) as stack:
        for version in range(1, versions + 1):
            path = zoo.mlp(root / f"mlp-{version}.onnx", seed=version)
            await asyncio.to_thread(
                hedgerow.publish,
                path,
                MODEL,
                registry_uri=stack.endpoints.mlflow,
                alias="champion" if version == 1 else None,
            )
        await until_served(stack.endpoints.server, "1")
        await until_served(stack.endpoints.backup, "1")
        yield stack


def questions(root: Path, versions: int) -> Path:
    """The load's inputs, with the right answers of each version by onnxruntime in process."""
    import onnxruntime as ort

    rows = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    arrays = {"x": rows}
    for version in range(1, versions + 1):
        session = ort.InferenceSession(str(root / f"mlp-{version}.onnx"))
        arrays[f"expected:{version}:y"] = session.run(["y"], {"x": rows})[0]
    path = root / "questions.npz"
    np.savez(path, **arrays)
    return path


async def until_served(target: str, version: str, within: float = 30.0) -> None:
    """Returns when `target` answers from `version`."""
    x = np.zeros((1, 32), np.float32)
    end = time.monotonic() + within
    async with hedgerow.AsyncClient(target) as client:
        while True:
            said = ""
            try:
                said = (await client.infer(MODEL, {"x": x}, timeout=2)).model_version
            except hedgerow.HedgerowError as error:
                said = str(error)
            if said == version:
                return
            assert time.monotonic() < end, f"{target} does not answer from version {version}: {said}"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def operator(control: str) -> AsyncGenerator[OperatorStub, None]:
    """The control plane's operator service."""
    async with grpc.aio.insecure_channel(control) as channel:
        yield OperatorStub(channel)


async def until_retired(control: OperatorStub, version: str, within: float = 30.0) -> float:
    """Returns the monotonic time by which every server had acknowledged a version's retirement."""
    end = time.monotonic() + within
    while True:
        status = await control.GetStatus(pb.GetStatusRequest(), timeout=5)
        entry = next((v for v in status.models[0].versions if v.version == version), None)
        routed = {route.version for route in status.models[0].routes if route.weight}
        if version not in routed and (entry is None or entry.nodes_answering == 0):
            return time.monotonic()
        assert time.monotonic() < end, f"version {version} is not retired: {status}"
        await asyncio.sleep(0.01)
