"""The pair of most measurements: Hedgerow and the hand-written handler on one core, asked in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np

from hedgerow_bench import mlp
from hedgerow_bench.contender import Contender, checked, over_grpc
from hedgerow_bench.cores import Cores
from hedgerow_bench.subject import MLP_SEED, handwritten, own_server

HEDGEROW, HANDWRITTEN = "hedgerow", "handwritten"
#: The perceptron's row that every request of a throughput run carries.
ROW = np.random.default_rng(0).normal(size=(1, mlp.WIDTH)).astype(np.float32)


@asynccontextmanager
async def pair(
    directory: Path, cores: Cores, *, transport: str = "auto", settings: Mapping[str, str] | None = None
) -> AsyncIterator[list[Contender]]:
    """Starts both with the perceptron, on the servers' cores, and asks each once.

    Raises:
        WrongAnswer: One does not answer what the model says.
        NotReady: One does not start.
    """
    expected = mlp.answer(ROW, MLP_SEED)
    async with AsyncExitStack() as stack:
        subject = await stack.enter_async_context(
            own_server(directory, transport=transport, workers=1, cores=cores.server, settings=settings)
        )
        target, pid = await stack.enter_async_context(
            handwritten(directory, directory / "mlp.onnx", cores=cores.server)
        )
        inputs = {mlp.INPUT: ROW}
        ours = over_grpc(
            HEDGEROW, subject.target, subject.model, inputs, metrics=subject.metrics, pid=subject.pid
        )
        theirs = over_grpc(HANDWRITTEN, target, subject.model, inputs, pid=pid)
        yield [await checked(ours, expected), await checked(theirs, expected)]
