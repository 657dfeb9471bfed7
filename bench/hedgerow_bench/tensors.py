"""Large inputs: megabytes a second by size of the request, beside the hand-written handler."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from hedgerow_bench import h2load, models, throughput
from hedgerow_bench.contender import checked, over_grpc
from hedgerow_bench.pair import HANDWRITTEN, HEDGEROW
from hedgerow_bench.process import NotReady
from hedgerow_bench.reports import Rows, tell
from hedgerow_bench.spread import spread
from hedgerow_bench.subject import handwritten, own_server

#: FP32 shapes behind the batch dimension, of 1 KB to 10 MB; one is an image.
SHAPES: dict[str, tuple[int, ...]] = {
    "1 KB": (256,),
    "10 KB": (2_560,),
    "100 KB": (25_600,),
    "600 KB image": (3, 224, 224),
    "1 MB": (262_144,),
    "10 MB": (2_621_440,),
}
#: Requests under way.
CONCURRENCY = 8
#: Of both servers; the largest request has 10 MB.
_MESSAGE_BYTES = 32 * 1024 * 1024


async def measure(loop: throughput.Loop, sizes: Sequence[str], transport: str) -> Rows:
    """A row for each size: `servers` by name with the spread of `megabytes_per_second`, and the ratio.

    Raises:
        NotReady: h2load is missing, or a server does not start.
    """
    if not h2load.installed():
        raise NotReady(f"tensors needs h2load: {h2load.HINT}")
    files = {size: loop.directory / f"first-{size.replace(' ', '-')}.onnx" for size in sizes}
    for size, path in files.items():
        models.write_first(path, SHAPES[size])
    settings = {"HEDGEROW_SERVER__MAX_MESSAGE_BYTES": str(_MESSAGE_BYTES)}
    served = {path.stem: path for path in files.values()}
    rows = []
    async with own_server(
        loop.directory,
        transport=transport,
        workers=1,
        models=served,
        cores=loop.cores.server,
        settings=settings,
    ) as subject:
        for size, path in files.items():
            rows.append(await _one(loop, size, path.stem, subject.target, subject.metrics))
    return rows


async def _one(loop: throughput.Loop, size: str, model: str, target: str, metrics: str) -> dict[str, Any]:
    array = np.random.default_rng(0).normal(size=(1, *SHAPES[size])).astype(np.float32)
    expected = array.reshape(-1)[:1]
    async with AsyncExitStack() as stack:
        # It serves one model, so each size has its own.
        theirs, _ = await stack.enter_async_context(
            handwritten(
                loop.directory,
                loop.directory / f"{model}.onnx",
                cores=loop.cores.server,
                message_bytes=_MESSAGE_BYTES,
            )
        )
        inputs = {models.INPUT: array}
        contenders = [
            await checked(over_grpc(HEDGEROW, target, model, inputs, metrics=metrics), expected),
            await checked(over_grpc(HANDWRITTEN, theirs, model, inputs), expected),
        ]
        tell(f"{size}: {array.nbytes:,} bytes")
        (row,) = await throughput.measure(contenders, [throughput.split(CONCURRENCY)], loop, tell)
    for server in row["servers"].values():
        server["megabytes_per_second"] = spread(
            [rate * array.nbytes / 1e6 for rate in server["per_second"]["rounds"]]
        )
    return {"size": size, "bytes": array.nbytes, "shape": [1, *SHAPES[size]]} | row
