"""What is measured: a server of our own, or one that runs already."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hedgerow import AsyncClient

from hedgerow_bench import mlp
from hedgerow_bench.contender import DTYPES
from hedgerow_bench.process import running

#: Of the perceptron's weights.
MLP_SEED = 1
#: Different rows that are sent in turn.
_ROWS = 256


@dataclass(frozen=True, slots=True)
class Subject:
    """A server's gRPC address, one of its models, and a file of `Plan.inputs`.

    `metrics` (HOST:PORT) and `pid` are known of servers that were started here.
    """

    target: str
    model: str
    inputs: Path
    metrics: str = ""
    pid: int = 0


#: The request log is written here where it exists: what a disk does with 4 MB/s of log is the disk's,
#: and its kernel threads share the one core of the server.
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - in a directory of its own there


@asynccontextmanager
async def own_server(
    directory: Path,
    *,
    transport: str,
    workers: int,
    models: Mapping[str, Path] | None = None,
    cores: Sequence[int] | None = None,
    settings: Mapping[str, str] | None = None,
    grpc_port: int = 0,
) -> AsyncIterator[Subject]:
    """Starts `hedgerow-server` on free ports, with its request log in a file.

    Args:
        directory: For the model, the inputs and the server's log.
        transport: The server's `--transport`.
        workers: The server's `--workers`.
        models: What it serves, ONNX files by name, the first is the subject; None: the perceptron of `mlp`.
        cores: Where it runs; None: anywhere.
        settings: Environment variables, as `HEDGEROW_SECTION__KEY`.
        grpc_port: Where it answers; 0: a free one.
    """
    if models is None:
        models = {"mlp": directory / "mlp.onnx"}
        mlp.write(models["mlp"], seed=MLP_SEED)
    inputs = directory / "inputs.npz"
    write_questions(inputs, {"1": MLP_SEED})
    log = directory / "server.log"
    requests = Path(tempfile.mkdtemp(prefix="hedgerow-bench-", dir=_MEMORY))
    pids: list[int] = []

    def ready() -> Subject | None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("hedgerow-server ready "):
                at = dict(word.split("=", 1) for word in line.split() if "=" in word)
                return Subject(at["grpc"], next(iter(models)), inputs, at["metrics"], pids[0])
        return None

    flags = ["--transport", transport, "--workers", str(workers)]
    flags += ["--grpc-port", str(grpc_port), "--http-port", "0", "--metrics-port", "0"]
    for name, path in models.items():
        flags += ["--model", f"{name}={path}"]
    environment = {
        "HEDGEROW_LOG__REQUESTS": str(requests / "requests.log"),
        "HEDGEROW_SERVER__STATE_DIR": str(directory / "server"),
        "PYTHONUNBUFFERED": "1",
        **(settings or {}),
    }
    command = (sys.executable, "-m", "hedgerow_server", *flags)
    try:
        async with running(
            command,
            log,
            ready,
            within=60 + 3 * len(models),
            environment=environment,
            cores=cores,
            started=pids.append,
        ) as subject:
            yield subject
    finally:
        shutil.rmtree(requests, ignore_errors=True)


@asynccontextmanager
async def handwritten(
    directory: Path, model: Path, *, cores: Sequence[int] | None = None, message_bytes: int = 0
) -> AsyncIterator[tuple[str, int]]:
    """Starts the hand-written handler; yields its gRPC address and process id.

    Args:
        directory: For its log.
        model: An ONNX file.
        cores: Where it runs; None: anywhere.
        message_bytes: The largest message that it takes; 0: grpcio's own limit, 4 MiB.
    """
    log = directory / "handwritten.log"
    pids: list[int] = []

    def address() -> str | None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("handwritten ready "):
                return line.rpartition("=")[2]
        return None

    command = (sys.executable, "-m", "hedgerow_bench.handwritten", str(model), "0", str(message_bytes))
    async with running(command, log, address, within=60, cores=cores, started=pids.append) as target:
        yield target, pids[0]


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
            if tensor.datatype not in DTYPES:
                raise ValueError(
                    f"{model}: input {tensor.name!r} is {tensor.datatype}; only numbers can be made up"
                )
            shape = (_ROWS, *(max(size, 1) for size in tensor.shape[1:]))
            arrays[tensor.name] = random.uniform(0, 1, shape).astype(DTYPES[tensor.datatype])
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
