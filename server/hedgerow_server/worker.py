"""One worker process: `python -m hedgerow_server.worker`, started by the supervisor alone."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import importlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop
from pydantic import ValidationError

from hedgerow_server.link import Channel, Collect, Collected, Failed, FromSupervisor, Ready, Start, worker_end
from hedgerow_server.settings import Settings
from hedgerow_server.telemetry import process_log

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


class WorkerLink:
    """A worker's side of its link: it says how it fares, and learns when to stop."""

    def __init__(
        self, channel: Channel[FromSupervisor], directory: Path, own_port: int | None = None
    ) -> None:
        self._channel = channel
        #: For sockets. Only this user can enter it; it goes with the server, however its workers end.
        self.directory = directory
        #: A gRPC port that only this worker listens on, besides the shared one.
        self.own_port = own_port
        self._dump: Callable[[], bytes] | None = None
        #: Set on SIGTERM, and when the supervisor is gone: drain, then return from `serve`.
        self.stop = asyncio.Event()
        #: Why the worker cannot serve, once it said so.
        self.failure: str | None = None

    def ready(self, grpc_port: int, http_port: int) -> None:
        """Says that this worker listens and can answer."""
        self._channel.send(Ready(grpc_port, http_port))

    def failed(self, reason: str) -> None:
        """Says that this worker cannot serve, in one line for the operator; return from `serve` after it."""
        self.failure = reason
        self._channel.send(Failed(reason))

    def answer_metrics(self, dump: Callable[[], bytes]) -> None:
        """Names what gives this worker's metrics when asked: a function that returns `metrics.dump(...)`."""
        self._dump = dump

    async def listen(self) -> None:
        """Answers the supervisor until it is gone, then sets `stop`."""
        while (message := await self._channel.receive()) is not None:
            if isinstance(message, Collect):
                self.report()
        self.stop.set()

    def report(self) -> None:
        """Sends the metrics as they are now."""
        dump = b"null"
        if self._dump is not None:
            try:
                dump = self._dump()
            except Exception:  # noqa: BLE001 - an answer must come, or the worker counts as hung
                _log.exception("metrics could not be gathered")
        self._channel.send(Collected(msgspec.Raw(dump)))


Serve = Callable[[Settings, int, WorkerLink], Awaitable[None]]


async def _run(end: socket.socket, entry: str) -> int:
    channel = await worker_end(end)
    start = await channel.receive()
    if not isinstance(start, Start):
        return 1
    link = WorkerLink(channel, Path(start.directory), start.own_port)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, link.stop.set)
    listening = asyncio.create_task(link.listen(), name="supervisor link")
    try:
        settings = Settings.model_validate_json(start.settings)
        process_log.configure(settings.log.level, f"worker {start.worker}")
        module, _, name = entry.partition(":")
        serve: Serve = getattr(importlib.import_module(module), name)
        await serve(settings, start.worker, link)
    except ValidationError as error:  # a file was removed since the supervisor looked
        link.failed("; ".join(str(e["msg"]) for e in error.errors()))
    except Exception as error:  # noqa: BLE001 - the last stop: logged, and told to the supervisor
        _log.exception("worker %d failed", start.worker)
        link.failed(f"{type(error).__name__}: {error}")
    finally:
        link.report()  # what was counted since the last scrape
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
        await channel.close()
    return 0 if link.failure is None else 1


def _die_with_parent() -> None:
    """Has the kernel kill this process when the supervisor dies, however it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    """Runs the worker until it is told to stop; 1 if it could not serve."""
    _die_with_parent()
    # Ctrl-C is the supervisor's to handle; it sends SIGTERM to drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link-fd", type=int, required=True)
    parser.add_argument("--serve", required=True, help="module:function")
    arguments = parser.parse_args()
    # If the supervisor died before prctl, the link is at its end and the worker stops by that.
    end = socket.socket(fileno=arguments.link_fd)
    end.set_inheritable(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(end, arguments.serve))


if __name__ == "__main__":
    sys.exit(main())
