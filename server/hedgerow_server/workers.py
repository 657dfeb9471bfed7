"""The supervisor: keeps N worker processes running, and drains them at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hedgerow_protos.config import REVEAL

from hedgerow_server.ports import PortError, Reservation, join, listen
from hedgerow_server.restarts import Restarts
from hedgerow_server.rpc.http_server import HttpServer
from hedgerow_server.runtime_directory import NoRuntimeDirectory, runtime_directory
from hedgerow_server.settings import Settings
from hedgerow_server.telemetry import metrics, page, process_log
from hedgerow_server.worker_process import WorkerProcess

_log = logging.getLogger(__name__)

#: SIGTERM to the process and to its group (`timeout` sends both) come together and are one wish.
ECHO_SECONDS = 0.3
#: What a worker gets after `drain_seconds` to close its sockets (a second each for gRPC and HTTP)
#: and flush its log (two).
CLOSING_SECONDS = 5.0
#: A scrape waits this long for a worker, then shows what it said last.
COLLECT_SECONDS = 1.0
#: Workers are asked for their metrics this often, scraped or not, so that
#: little is lost when one dies and a hung one is noticed.
BEAT_SECONDS = 5.0
#: A worker whose loop has not turned for this long is killed.
HUNG_SECONDS = 30.0
#: Failed starts in a row of one worker before the server first was ready; then it gives up.
FAILED_STARTS = 5


def run(settings: Settings, *, entry: str = "hedgerow_server.app:serve", **times: float) -> int:
    """Runs a server until it is told to stop, and says on stderr why if it cannot run.

    Args:
        settings: Of the whole server.
        entry: `module:function` that a worker runs; see `worker.Serve`.
        times: `beat_seconds` and `hung_seconds` of the supervisor.

    Returns:
        The process's exit code: 0 after a drain, 1 if the server could not run.
    """
    process_log.configure(settings.log.level, "supervisor")

    async def supervise() -> str | None:
        supervisor = Supervisor(settings, entry=entry, **times)
        await supervisor.run()
        return supervisor.failure

    try:
        failure = asyncio.run(supervise())
    except (PortError, NoRuntimeDirectory) as error:
        failure = str(error)
    if failure is not None:
        print(f"hedgerow-server: {failure}", file=sys.stderr)
    return 0 if failure is None else 1


@dataclass(slots=True)
class _Slot:
    """One of the N places for a worker, and what outlives the worker in it."""

    number: int
    worker: WorkerProcess | None = None
    was_ready: bool = False
    restarts: Restarts = field(default_factory=Restarts)
    restart_count: int = 0
    #: Address that leads to this worker alone.
    address: str | None = None
    own_port: int | None = None
    #: Counted by the workers that ended here.
    ended: metrics.Dump = field(default_factory=metrics.Dump)


class Supervisor:
    """Holds the ports and the workers of one server."""

    def __init__(
        self,
        settings: Settings,
        *,
        entry: str = "hedgerow_server.app:serve",
        beat_seconds: float = BEAT_SECONDS,
        hung_seconds: float = HUNG_SECONDS,
    ) -> None:
        self._settings = settings
        self._entry = entry
        self._beat_seconds = beat_seconds
        self._hung_seconds = hung_seconds
        self._slots = [_Slot(number) for number in range(settings.server.workers)]
        self._stop = asyncio.Event()
        self._asked_at = 0.0
        self._is_ready = False
        self._directory = ""
        #: Why the server gave up.
        self.failure: str | None = None

    async def run(self) -> None:
        """Serves until SIGTERM, SIGINT or a failure to start, which is then in `failure`.

        Raises:
            PortError: A port cannot be had.
            NoRuntimeDirectory: There is no place for the workers' sockets.
        """
        server = self._settings.server
        with contextlib.ExitStack() as held:
            grpc, http, scrape = (
                held.enter_context(Reservation(server.host, port, flag=flag))
                for port, flag in (
                    (server.grpc_port, "--grpc-port"),
                    (server.http_port, "--http-port"),
                    (server.metrics_port, "--metrics-port"),
                )
            )
            for slot in self._slots if server.worker_ports is not None else ():
                port = server.worker_ports + slot.number if server.worker_ports else 0
                own = held.enter_context(Reservation(server.host, port, flag="server.worker_ports"))
                slot.own_port, slot.address = own.port, join(server.host, own.port)
            ports = {"grpc_port": grpc.port, "http_port": http.port, "metrics_port": scrape.port}
            self._settings = self._settings.model_copy(update={"server": server.model_copy(update=ports)})
            self._directory = held.enter_context(runtime_directory())
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop, number)
            try:
                async with HttpServer(self._answer_http, listen(server.host, scrape.port)):
                    await self._keep_all()
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Drains the workers; at a second signal, ends them at once."""
        now = asyncio.get_running_loop().time()
        if not self._stop.is_set():
            _log.info("draining for up to %g s; again to stop at once", self._settings.server.drain_seconds)
            self._stop.set()
            self._asked_at = now
        elif number == signal.SIGINT or now - self._asked_at >= ECHO_SECONDS:
            self._force()

    async def _keep_all(self) -> None:
        async with asyncio.TaskGroup() as keepers:
            for slot in self._slots:
                keepers.create_task(self._keep(slot), name=f"keeper {slot.number}")
            await self._stop.wait()
            for worker in self._workers():
                worker.terminate()
            forced = asyncio.get_running_loop().call_later(
                self._settings.server.drain_seconds + CLOSING_SECONDS, self._force
            )
        forced.cancel()

    async def _keep(self, slot: _Slot) -> None:
        """Starts the slot's worker, again and again, until the server stops."""
        settings = self._settings.model_dump_json(context=REVEAL)
        while not self._stop.is_set():
            how = await self._run_once(slot, settings)
            served = 0.0
            failure = None
            if slot.worker is not None:
                slot.ended.add_counters(slot.worker.dump)
                failure = slot.worker.failure
                if slot.worker.ready_at is not None:
                    served = time.monotonic() - slot.worker.ready_at
                slot.worker = None
            if self._stop.is_set():
                return
            if not self._is_ready and failure is not None:
                self._give_up(failure)
                return
            delay = slot.restarts.ended(served_seconds=served)
            if not self._is_ready and slot.restarts.failures >= FAILED_STARTS:
                self._give_up(f"worker {slot.number} {how}, {FAILED_STARTS} times in a row; giving up")
                return
            _log.warning(
                "worker %d %s%s; starting it again in %g s",
                slot.number,
                how,
                "" if failure is None else f" ({failure})",
                delay,
            )
            slot.restart_count += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stop.wait()

    async def _run_once(self, slot: _Slot, settings: str) -> str:
        """One life of the slot's worker; tells how it ended."""
        try:
            worker = slot.worker = await WorkerProcess.start(
                slot.number, settings, self._entry, self._directory, slot.own_port
            )
        except OSError as error:
            return f"could not be started: {error.strerror}"
        if self._stop.is_set():  # while it was being started
            worker.kill()
        return await worker.run(
            lambda: self._ready(slot), beat_seconds=self._beat_seconds, hung_seconds=self._hung_seconds
        )

    def _ready(self, slot: _Slot) -> None:
        slot.was_ready = True
        if self._is_ready or not all(slot.was_ready for slot in self._slots):
            return
        self._is_ready = True
        server = self._settings.server
        grpc, http, scrape = (
            join(server.host, port) for port in (server.grpc_port, server.http_port, server.metrics_port)
        )
        own = ",".join(slot.address for slot in self._slots if slot.address)
        workers = f"workers={server.workers}" + (f" worker_grpc={own}" if own else "")
        print(
            f"hedgerow-server ready grpc={grpc} http={http} metrics={scrape} "
            f"transport={self._settings.transport} {workers} region={server.region} "
            f"pid={os.getpid()} (Ctrl-C to stop)",
            flush=True,
        )

    def _give_up(self, reason: str) -> None:
        self.failure = self.failure or reason
        self._stop.set()

    def _force(self) -> None:
        for worker in self._workers():
            _log.warning("worker %d had not drained; killing it", worker.number)
            worker.kill()

    def _workers(self) -> list[WorkerProcess]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    async def _answer_http(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """The pages of the metrics port, as an ASGI application."""
        del receive
        match scope["path"]:
            case "/metrics":
                status, kind, body = 200, page.CONTENT_TYPE, await self._metrics()
            case "/workers":
                status, kind, body = 200, "application/json", self._describe()
            case _:
                status, kind, body = 404, "text/plain", b"metrics are at /metrics, workers at /workers\n"
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    def _describe(self) -> bytes:
        """Each worker: where it alone answers, and how it fares."""
        return msgspec.json.encode(
            [
                {
                    "worker": slot.number,
                    "grpc": slot.address,
                    "ready": slot.worker is not None and slot.worker.ready_at is not None,
                    "pid": slot.worker.process.pid if slot.worker is not None else None,
                    "restarts": slot.restart_count,
                }
                for slot in self._slots
            ]
        )

    async def _metrics(self) -> bytes:
        asked = [asyncio.create_task(worker.collect()) for worker in self._workers()]
        if asked:
            _, late = await asyncio.wait(asked, timeout=COLLECT_SECONDS)
            for task in late:
                task.cancel()
        return page.render(
            {str(worker.number): worker.dump for worker in self._workers()},
            {str(slot.number): slot.ended for slot in self._slots},
            restarts={str(slot.number): slot.restart_count for slot in self._slots},
            supervisor=metrics.process_usage(),
        )
