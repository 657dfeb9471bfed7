"""Puts into the cache what the store has said; nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from hedgerow_protos.breaker import Breaker

from hedgerow_server.features.clock import Clock
from hedgerow_server.features.freshness import Known
from hedgerow_server.features.sources import Cache, SourceError
from hedgerow_server.features.view import View

log = logging.getLogger(__name__)

#: Values that may wait; what comes on top is dropped, and asked of the store again some time.
MAX_WAITING = 20_000
#: Values in one round trip.
MAX_PIPELINE = 500


class CacheWriter:
    """Writes values in pipelines, one after the other.

    Owns: the task that writes.

    Args:
        cache: Where to.
        breaker: Of the cache; nothing is written past an open one.
        clock: The process's clocks.
        timeout: Seconds for one pipeline.
    """

    def __init__(self, cache: Cache, breaker: Breaker, clock: Clock, *, timeout: float) -> None:
        self._cache = cache
        self._breaker = breaker
        self._clock = clock
        self._timeout = timeout
        self._waiting: deque[tuple[View, bytes, Known]] = deque()
        self._task: asyncio.Task[None] | None = None
        #: Values that the cache took, and those that it did not get.
        self.written = 0
        self.dropped = 0

    def write(self, view: View, values: Sequence[tuple[bytes, Known]]) -> None:
        """Takes values to write; never blocks."""
        room = MAX_WAITING - len(self._waiting)
        self._waiting.extend((view, key, known) for key, known in values[:room])
        self.dropped += max(0, len(values) - room)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._write_all(), name="feature cache writes"
            )

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), MAX_PIPELINE)
                await self._write([self._waiting.popleft() for _ in range(count)])
        finally:
            self._task = None

    async def _write(self, values: Sequence[tuple[View, bytes, Known]]) -> None:
        token = self._breaker.acquire()
        if token is None:
            self.dropped += len(values)
            return
        try:
            wall, now = self._clock.wall(), self._clock.monotonic()
            packed = [(key, *view.to_cache(known, wall, now)) for view, key, known in values]
            async with asyncio.timeout(self._timeout):
                await self._cache.write(packed)
        except TimeoutError:
            token.failure(f"no answer within {self._timeout:g} s")
        except SourceError as error:
            token.failure(str(error))
        except Exception:
            token.failure("a defect; the process's log has its stack trace")
            log.exception("the feature cache could not be written")
        else:
            token.success()
            self.written += len(values)
            return
        finally:
            token.ignore()  # in case of a cancellation; else it has ended
        self.dropped += len(values)

    async def close(self) -> None:
        """Stops; what waits is dropped."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
