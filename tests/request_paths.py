"""Request paths that end with the test, and what must be true of each at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from fakes_engine import INLINE, THREADED, RequestPath, request
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.call import Call
from hedgerow_server.engine.model import Model

Open = Callable[..., Awaitable[RequestPath]]
lanes = pytest.mark.parametrize("inline_below", [INLINE, THREADED], ids=["inline", "threaded"])


@contextlib.asynccontextmanager
async def opening() -> AsyncIterator[Open]:
    """Starts request paths, and ends their threads whatever becomes of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(*args: Any, **options: Any) -> RequestPath:
            path = await RequestPath.open(*args, **options)
            stack.push_async_callback(path.engine.close)
            return path

        yield open_one


async def drained(path: RequestPath, *models: Model) -> None:
    """Waits until nothing is under way any more."""
    async with asyncio.timeout(20):
        await path.answerer.idle()
        for each in models:
            await each.drained()


def check_counts(path: RequestPath, calls: list[Call], *models: Model) -> None:
    """Every call ended once: in the counts, in the log, and for its version."""
    assert path.answerer.in_flight == 0
    assert len(path.log.lines) == len(calls)
    counted: Counter[int] = Counter(path.answerer.books.unrouted.requests)
    for each in models:
        assert (each.in_flight, len(each.queue), each.running) == (0, 0, 0)
        counted.update(each.statistics.requests)
        assert sum(each.statistics.latency) == sum(each.statistics.requests.values())
    logged = Counter(grpc.StatusCode[line.code].value[0] for line in path.log.lines)
    assert counted == logged
    assert all(call.ended for call in calls)


def good(name: str = "m") -> ModelInferRequest:
    """A request that the zoo's model `several` answers."""
    return request({"a": [[1, 2]], "b": [[3, 4]]}, name=name)
