"""uvicorn inside a loop that is someone else's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Self

import uvicorn


class _Uvicorn(uvicorn.Server):  # type: ignore[misc] # uvicorn is followed as untyped
    """uvicorn without signal handlers, and without ten ticks a second (0.3 % of a core, measured)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()
        self.leave = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # sets the default headers; without a date they never change
        await self.leave.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves an ASGI application on a listening socket for as long as the context is open."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        self._listener = listener
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                interface="asgi3",
                lifespan="off",
                loop="none",
                ws="none",
                log_config=None,
                log_level="warning",
                proxy_headers=False,
                access_log=False,
                date_header=False,
                server_header=False,
                # Health checks and scrapes; more connections than this get 503.
                limit_concurrency=256,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._server.serve([self._listener]), name="http server")
        started = asyncio.create_task(self._server.has_started.wait())
        await asyncio.wait((self._task, started), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._task.done():
            self._task.result()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._server.leave.set()
        await self._task
