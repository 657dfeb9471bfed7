"""Streams verified files to servers that do not have them yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import grpc
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.manifest import ManifestError

from hedgerow_control.artifacts.store import ArtifactStore

CHUNK_BYTES = 1 << 20
#: Streams at once; each holds one chunk and one open file. More wait for their turn:
#: a server that is refused a file refuses the whole snapshot.
MAX_STREAMS = 64
#: As many may wait.
MAX_WAITING = 4096
_THREADS = 4


class ArtifactService:
    """`hedgerow.control.v1.Artifacts`: reads are in threads, one chunk in memory a stream."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._places = asyncio.Semaphore(MAX_STREAMS)
        self._calls = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="artifacts")

    async def FetchFile(  # noqa: N802 - gRPC's name
        self, request: pb.FetchFileRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.FetchFileResponse]:
        """Sends one file in chunks of 1 MiB; an empty file is one empty chunk."""
        if self._calls >= MAX_STREAMS + MAX_WAITING:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._calls} files are being asked for; try again"
            )
        self._calls += 1
        try:
            async with self._places, aclosing(self._read(request, context)) as chunks:
                async for chunk in chunks:
                    yield pb.FetchFileResponse(chunk=chunk)
        finally:
            self._calls -= 1

    async def _read(
        self, request: pb.FetchFileRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[bytes, None]:
        opening = self._threads.submit(self._store.open, request.digest, request.path)
        reading: Future[bytes] | None = None
        try:
            try:
                file = await asyncio.wrap_future(opening)
            except ManifestError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except OSError:
                await context.abort(
                    grpc.StatusCode.NOT_FOUND,
                    f"no file {request.path[:200]!r} under {request.digest[:100]!r}",
                )
            sent = False
            while True:
                reading = self._threads.submit(file.read, CHUNK_BYTES)
                chunk = await asyncio.wrap_future(reading)
                if chunk or not sent:
                    yield chunk
                if not chunk:
                    return
                sent = True
        finally:
            # Not while a thread still reads: the number of a file that is closed under its
            # reader may be given to another one at once.
            (reading or opening).add_done_callback(lambda _: _close(opening))


def _close(opening: Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
