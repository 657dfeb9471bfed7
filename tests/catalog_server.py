"""A catalog whose loads and time are under the test's control."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

from fleet import Clock, Loads, at_once
from hedgerow_protos.hedgerow_control_pb2 import VersionState
from hedgerow_server.engine.catalog import Catalog
from hedgerow_server.engine.loader import Loader


class Server:
    """A catalog and everything it speaks to."""

    def __init__(self, loads: Loads | None = None, **loader) -> None:
        self.clock = Clock()
        self.loads = loads or Loads()
        self.reports: list[str] = []
        self.tables = []
        self.tells_gears = "pack" in loader
        options = {"resolve": self.loads.resolve, "clock": self.clock.time} | loader
        self.catalog = Catalog(
            loader=Loader(load=self.loads.load, executor=self.loads, **options),
            publish=self.tables.append,
            report=self.report,
            drain_seconds=75.0,
            aside=at_once,
        )

    def report(self, model, version, state, reason, gear) -> None:
        name = VersionState.Name(state).removeprefix("VERSION_STATE_")
        if self.tells_gears and gear:
            name = f"{name} {gear.value}"
        self.reports.append(f"{model}@{version} {name}" + (f": {reason}" if reason else ""))

    def apply(self, wanted) -> asyncio.Task[None]:
        task = self.clock.create_task(self.catalog.apply(wanted))
        self.clock.settle()
        return task

    def finish(self, model: str, version: str, digest: str = "d") -> None:
        self.loads.finish((model, version, digest))
        self.clock.settle()

    def load_and_apply(self, wanted) -> None:
        """Applies a snapshot; every load succeeds."""
        task = self.apply(wanted)
        while self.loads.waiting:
            self.finish(*next(iter(self.loads.waiting)))
        task.result()

    def ask(self, model: str, version: str = ""):
        """A request that is under way; end it with `.release()`."""
        handle = self.catalog.table.choose(model, version, "", "r").model
        handle.in_flight += 1
        return handle

    def news(self) -> list[str]:
        news, self.reports[:] = list(self.reports), []
        return news

    def in_memory(self) -> list[str]:
        gc.collect()
        return sorted("@".join(session.key[:2]) for session in self.loads.sessions)


@contextmanager
def opening(loads: Loads | None = None, **loader) -> Iterator[Server]:
    """One that is closed in the end; a background task that has failed fails the test."""
    server = Server(loads, **loader)
    yield server
    server.clock.run_until_complete(server.catalog.close())
    server.clock.end()
