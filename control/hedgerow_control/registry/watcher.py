"""Polls the registry and tells when what it asks for has changed.

`reader` says what one poll asks and what it makes of the answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from hedgerow_control.registry.client import RegistryClient, RegistryError
from hedgerow_control.registry.desired import DesiredState
from hedgerow_control.registry.reader import Reader

logger = logging.getLogger(__name__)

#: An unreachable registry is asked this often at least.
MAX_BACKOFF_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RegistryState:
    """How the watching goes."""

    polls: int = 0
    failures: int = 0
    #: Consecutive ones.
    failing: int = 0
    error: str = ""
    #: Monotonic time of the last good read; None before the first.
    read_at: float | None = None


class Watcher:
    """Owns the registry thread. `desired` is the last good reading, None before the first.

    Args:
        client: called in that thread only.
        poll_seconds: between two polls, give or take a tenth.
        on_change: is given each reading that differs from the one before.
        random: 0 to 1, for the jitter.
        clock: seconds, monotonic.
        before: the last reading of an earlier process; see `Reader`.
    """

    def __init__(
        self,
        client: RegistryClient,
        *,
        poll_seconds: float,
        on_change: Callable[[DesiredState], None],
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        before: DesiredState | None = None,
    ) -> None:
        self.state = RegistryState()
        self.desired: DesiredState | None = None
        self._client = client
        self._poll_seconds = poll_seconds
        self._on_change = on_change
        self._random = random
        self._clock = clock
        self._reader = Reader(client, before)
        self._hint = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")

    @property
    def calls(self) -> int:
        """Requests made to the registry."""
        return self._client.calls

    @property
    def call_seconds(self) -> float:
        """Time spent in them, in sum."""
        return self._client.seconds

    def hint(self) -> None:
        """Something may have changed: poll now. Many hints before the poll are one."""
        self._hint.set()

    async def refresh(self) -> None:
        """Returns after a poll that began after the call; raises `RegistryError` if it failed."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self.hint()
        await done

    async def run(self) -> None:
        """Polls until cancelled."""
        try:
            while True:
                self._hint.clear()
                waiting, self._waiting = self._waiting, []
                await self._poll(waiting)
                try:
                    await asyncio.wait_for(self._hint.wait(), self._delay())
                except TimeoutError:
                    continue
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def call(self, function: Callable[[RegistryClient], None]) -> None:
        """Runs a blocking registry call in the watcher's thread, in turn with the polls."""
        await asyncio.get_running_loop().run_in_executor(self._thread, function, self._client)

    def _delay(self) -> float:
        # Jitter so that several control planes, or one restarted with its registry, do not march in step.
        jitter = 0.9 + 0.2 * self._random()
        if not self.state.failing:
            return self._poll_seconds * jitter
        backoff = self._poll_seconds * 2.0 ** min(self.state.failing, 10)
        return min(MAX_BACKOFF_SECONDS, backoff) * jitter

    async def _poll(self, waiting: list[asyncio.Future[None]]) -> None:
        error: RegistryError | None = None
        try:
            loop = asyncio.get_running_loop()
            changed = await loop.run_in_executor(self._thread, self._reader.read)
        except Exception as failure:  # noqa: BLE001 - see the next line
            # Whatever answers at that address: an older release, a proxy, something else.
            error = failure if isinstance(failure, RegistryError) else RegistryError(_explain(failure))
            if not self.state.failing:
                logger.warning("the registry cannot be read, the last good state goes on: %s", error)
            state = self.state
            self.state = replace(
                state,
                polls=state.polls + 1,
                failures=state.failures + 1,
                failing=state.failing + 1,
                error=str(error),
            )
        else:
            if self.state.failing:
                logger.info("the registry can be read again after %d failed polls", self.state.failing)
            self.state = replace(
                self.state, polls=self.state.polls + 1, failing=0, error="", read_at=self._clock()
            )
            if changed is not None:
                self.desired = changed
                self._on_change(changed)
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


def _explain(error: Exception) -> str:
    return f"the registry's answer cannot be understood ({type(error).__name__}: {str(error)[:500]})"
