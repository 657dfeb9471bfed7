"""What is measured: a server of our own, or one that runs already."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hedgerow import AsyncClient

from hedgerow_bench import mlp
from hedgerow_bench.process import running

#: Different rows that are sent in turn.
_ROWS = 256
#: What OIP's names for number types mean to NumPy.
_DTYPES = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A server's gRPC address, one of its models, and a file of `Plan.inputs`."""

    target: str
    model: str
    inputs: Path


@asynccontextmanager
async def own_server(directory: Path, *, transport: str, workers: int) -> AsyncIterator[Subject]:
    """Starts `hedgerow-server` with the perceptron of `mlp` on free ports.

    Args:
        directory: For the model, the inputs and the server's log.
        transport: The server's `--transport`.
        workers: The server's `--workers`.
    """
    mlp.write(directory / "mlp.onnx", seed=1)
    inputs = directory / "inputs.npz"
    write_questions(inputs, {"1": 1})
    log = directory / "server.log"

    def address() -> str | None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("hedgerow-server ready "):
                return dict(word.split("=", 1) for word in line.split() if "=" in word)["grpc"]
        return None

    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    flags = ("--transport", transport, "--workers", str(workers), "--model", f"mlp={directory}/mlp.onnx")
    environment = {
        "HEDGEROW_LOG__REQUESTS": str(directory / "requests.log"),
        "HEDGEROW_SERVER__STATE_DIR": str(directory / "server"),
        "PYTHONUNBUFFERED": "1",
    }
    command = (sys.executable, "-m", "hedgerow_server", *ports, *flags)
    async with running(command, log, address, within=60, environment=environment) as target:
        yield Subject(target, "mlp", inputs)


@asynccontextmanager
async def own_stack(directory: Path) -> AsyncIterator[dict[str, Any]]:
    """Starts `hedgerow up` on free ports; yields its endpoints.json."""
    endpoints = directory / "stack" / "endpoints.json"
    endpoints.unlink(missing_ok=True)

    def addresses() -> dict[str, Any] | None:
        if not endpoints.exists():
            return None
        found: dict[str, Any] = json.loads(endpoints.read_text())
        return found

    command = (sys.executable, "-m", "hedgerow_local.up", "--ports", "free", "--root", str(endpoints.parent))
    async with running(command, directory / "up.log", addresses, within=150) as found:
        yield found


async def running_server(target: str, model: str, directory: Path) -> Subject:
    """Asks a running server what a model takes, and makes random rows of that.

    Raises:
        ValueError: An input is not of numbers.
        HedgerowError: The server cannot be reached or has no such model.
    """
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    async with AsyncClient(target) as client:
        for tensor in (await client.metadata(model)).inputs:
            if tensor.datatype not in _DTYPES:
                raise ValueError(
                    f"{model}: input {tensor.name!r} is {tensor.datatype}; only numbers can be made up"
                )
            shape = (_ROWS, *(max(size, 1) for size in tensor.shape[1:]))
            arrays[tensor.name] = random.uniform(0, 1, shape).astype(_DTYPES[tensor.datatype])
    _save(directory / "inputs.npz", arrays)
    return Subject(target, model, directory / "inputs.npz")


def write_questions(path: Path, seeds: dict[str, int]) -> None:
    """Writes rows for the perceptron, and the right answers of the version made from each seed."""
    rows = np.random.default_rng(0).normal(size=(_ROWS, mlp.WIDTH)).astype(np.float32)
    arrays: dict[str, Any] = {mlp.INPUT: rows} | {
        f"expected:{version}:{mlp.OUTPUT}": mlp.answer(rows, seed) for version, seed in seeds.items()
    }
    _save(path, arrays)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
