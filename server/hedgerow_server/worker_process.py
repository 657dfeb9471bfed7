"""A worker process as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from hedgerow_server.engine.memory import TUNABLES
from hedgerow_server.exits import ending
from hedgerow_server.link import Channel, Collect, Collected, Failed, FromWorker, Ready, Start, supervisor_end
from hedgerow_server.telemetry import metrics

_log = logging.getLogger(__name__)

#: A worker that closed its link but has not ended by then is killed.
EXIT_SECONDS = 5.0

#: gRPC's handlers for programs that fork and go on stop its DNS resolver in the middle of a look-up whenever
#: anything forks, if only to run another program; that ends the process (seen with gRPC 1.85).
_NO_FORK_HANDLERS = {"GRPC_ENABLE_FORK_SUPPORT": "false"}


class WorkerProcess:
    """One worker process, from its start to its end."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, channel: Channel[FromWorker]
    ) -> None:
        self.number = number
        self.process = process
        #: When it said that it is ready, by `time.monotonic`.
        self.ready_at: float | None = None
        #: Why it cannot serve, if it said so.
        self.failure: str | None = None
        #: Its metrics when it last sent them.
        self.dump = metrics.Dump()
        self._channel = channel
        self._collecting: asyncio.Future[None] | None = None

    @classmethod
    async def start(
        cls, number: int, settings: str, entry: str, directory: str, own_port: int | None
    ) -> WorkerProcess:
        """Starts the process and hands it what `link.Start` holds; raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # nothing is imported from the current directory
                    "-m",
                    "hedgerow_server.worker",
                    f"--link-fd={theirs.fileno()}",
                    f"--serve={entry}",
                    stdin=asyncio.subprocess.DEVNULL,
                    # What an operator has set wins.
                    env={"GLIBC_TUNABLES": TUNABLES, **_NO_FORK_HANDLERS, **os.environ},
                    pass_fds=(theirs.fileno(),),
                    process_group=0,  # Ctrl-C in a terminal goes to the supervisor alone
                )
            except OSError:
                ours.close()
                raise
        channel = await supervisor_end(ours)
        channel.send(Start(worker=number, settings=settings, directory=directory, own_port=own_port))
        return cls(number, process, channel)

    async def run(self, on_ready: Callable[[], None], *, beat_seconds: float, hung_seconds: float) -> str:
        """Attends to the worker until it has ended; tells how it ended."""
        beat = asyncio.create_task(self._beat(beat_seconds, hung_seconds), name=f"beat {self.number}")
        try:
            await self._listen(on_ready)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_SECONDS):
                    await self.process.wait()
        finally:
            beat.cancel()
            await asyncio.wait((beat,))
            self.kill()
            code = await self.process.wait()
            await self._channel.close()
        return ending(code) if self.ready_at is not None else f"{ending(code)} before it was ready"

    def terminate(self) -> None:
        """Asks the worker to drain."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the worker now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def collect(self) -> None:
        """Refreshes `dump`; returns when the worker answered or is gone."""
        if self._collecting is None:
            self._collecting = asyncio.get_running_loop().create_future()
            self._channel.send(Collect())
        await asyncio.shield(self._collecting)

    async def _listen(self, on_ready: Callable[[], None]) -> None:
        while (message := await self._channel.receive()) is not None:
            match message:
                case Ready():
                    self.ready_at = time.monotonic()
                    on_ready()
                case Failed(reason):
                    self.failure = reason
                case Collected(raw):
                    self.dump = metrics.parse(bytes(raw)) or self.dump
                    self._answered()
        self._answered()

    def _answered(self) -> None:
        if self._collecting is not None:
            self._collecting.set_result(None)
            self._collecting = None

    async def _beat(self, beat_seconds: float, hung_seconds: float) -> None:
        while True:
            await asyncio.sleep(beat_seconds)
            if self.ready_at is None:
                continue  # loading models may take long
            try:
                async with asyncio.timeout(hung_seconds):
                    await self.collect()
            except TimeoutError:
                _log.error("worker %d has not answered for %g s; killing it", self.number, hung_seconds)
                self.kill()
                return
