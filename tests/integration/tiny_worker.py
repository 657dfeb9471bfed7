"""A worker that is small enough to see through, and a server made of it, for test_workers.py.

`python tiny_worker.py JSON` runs the real supervisor with the settings in JSON;
its workers run `serve` below. A connection gets the worker's process id, after
what the first byte sent asks for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

from hedgerow_server.engine.statistics import VersionStatistics
from hedgerow_server.ports import listen
from hedgerow_server.settings import Settings
from hedgerow_server.telemetry import metrics
from hedgerow_server.worker import WorkerLink
from hedgerow_server.workers import run


async def serve(settings: Settings, worker: int, link: WorkerLink) -> None:
    """Answers connections on the gRPC port until it is told to stop, then finishes those it has."""
    faults = os.environ.get("TINY_FAULTS", "").split()
    if "killed-at-start" in faults:
        os.kill(os.getpid(), signal.SIGKILL)
    if "killed-oddly-at-start" in faults:
        os.kill(os.getpid(), 40)  # a real-time signal: it has no name
    if "exits-at-start" in faults:
        sys.exit(3)
    if "refuse" in faults:
        link.failed("model iris was refused: it is no model")
        return
    if "raise" in faults:
        raise RuntimeError("a defect")
    statistics = VersionStatistics()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await reader.read(1)
        match command:
            case b"k":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"h":
                time.sleep(3600)  # noqa: ASYNC251 - the whole loop is to stand still
            case b"s":
                await asyncio.sleep(0.3)  # a request in flight
            case b"e":
                await asyncio.sleep(3600)  # one that never ends
        statistics.answered(0, 1_000_000)
        writer.write(str(os.getpid()).encode())
        await writer.drain()
        writer.close()

    answering: set[asyncio.Task[None]] = set()
    link.answer_metrics(
        lambda: metrics.dump(
            versions=[("m", "1", statistics)],
            retired=metrics.Retired(),
            in_flight=len(answering),
            queue_depth=0,
        )
    )
    server_settings = settings.server

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(answer(reader, writer))
        answering.add(task)
        task.add_done_callback(answering.discard)

    server = await asyncio.start_server(accept, sock=listen(server_settings.host, server_settings.grpc_port))
    link.ready(server_settings.grpc_port, server_settings.http_port)
    await link.stop.wait()
    server.close()
    if answering:
        await asyncio.wait(answering)


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    sys.exit(run(Settings(server=options.pop("server")), entry="tiny_worker:serve", **options))
