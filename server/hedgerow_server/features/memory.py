"""A store and a cache in memory, for tests of what stands on them; they can be made to fail.

They answer after a turn of the loop, as real ones do, or never while they hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from hedgerow_server.features.sources import Row, SourceError
from hedgerow_server.features.view import View


class Fault(Enum):
    """How a source behaves."""

    NONE = "answers"
    DOWN = "refuses at once"
    HANGS = "accepts and never answers"


class _Faulty:
    def __init__(self) -> None:
        self.fault = Fault.NONE
        #: Seconds until it answers.
        self.delay = 0.0
        #: Calls that it has seen.
        self.calls = 0

    async def _answer(self) -> None:
        self.calls += 1
        await asyncio.sleep(self.delay)
        if self.fault is Fault.HANGS:
            await asyncio.Event().wait()
        if self.fault is Fault.DOWN:
            raise SourceError("it is down")


class MemoryStore(_Faulty):
    """Rows by view and entity."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0
        self.rows: dict[tuple[str, bytes], Row] = {}

    async def read(self, view: View, entities: Sequence[bytes]) -> Mapping[bytes, Row]:
        """See `Store`; answers with what it has when it is asked."""
        found = {
            entity: self.rows[view.ref, entity] for entity in entities if (view.ref, entity) in self.rows
        }
        await self._answer()
        return found

    async def close(self) -> None:
        """Does nothing."""


class MemoryCache(_Faulty):
    """Values by key, until their time is over.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        #: Key to value and the time at which it goes.
        self.values: dict[bytes, tuple[bytes, float]] = {}

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """See `Cache`."""
        await self._answer()
        now = self._clock()
        return [found[0] if (found := self.values.get(key)) and found[1] > now else None for key in keys]

    async def write(self, values: Sequence[tuple[bytes, bytes, int]]) -> None:
        """See `Cache`."""
        await self._answer()
        for key, value, milliseconds in values:
            self.values[key] = value, self._clock() + milliseconds / 1000

    async def close(self) -> None:
        """Does nothing."""
