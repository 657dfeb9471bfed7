"""A registry in memory, the tags that weigh its models' roles, and a watcher that reads it when told to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from hedgerow_control.registry.client import NoSuchVersion
from hedgerow_control.registry.desired import DesiredState, DesiredVersion, ListedModel
from hedgerow_control.registry.watcher import Watcher


def tags(**by_role: str) -> dict[str, str]:
    return {f"hedgerow.weight.{role}": text for role, text in by_role.items()}


class FakeRegistry:
    """A registry in memory that counts what it is asked."""

    def __init__(self):
        self.models: dict[str, ListedModel] = {}
        self.gone: set[tuple[str, str]] = set()
        self.error: Exception | None = None
        self.calls = 0
        self.seconds = 0.0
        self.asked: list[tuple[str, str]] = []
        #: Tags of versions, by model and number.
        self.tags: dict[tuple[str, str], dict[str, str]] = {}

    def served_models(self):
        self.calls += 1
        if self.error:
            raise self.error
        return list(self.models.values())

    def version(self, name, version):
        self.calls += 1
        self.asked.append((name, version))
        if (name, version) in self.gone:
            raise NoSuchVersion
        return DesiredVersion(version, f"store:/{name}/{version}", dict(self.tags.get((name, version), {})))

    def alias(self, name, alias):
        return self.models[name].aliases.get(alias)

    def move_alias(self, name, alias, version):
        self.models[name].aliases[alias] = version

    def put(self, name, tags=None, newest="", **aliases):
        self.models[name] = ListedModel(name, aliases, tags or {}, newest)


@contextlib.asynccontextmanager
async def watching(registry, before=None):
    readings: list[DesiredState] = []
    watcher = Watcher(
        registry,
        poll_seconds=3600.0,
        on_change=readings.append,
        random=lambda: 0.5,
        clock=itertools.count().__next__,
        before=before,
    )
    task = asyncio.create_task(watcher.run())
    try:
        await watcher.refresh()
        yield watcher, readings
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
