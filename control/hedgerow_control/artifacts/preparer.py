"""Brings wanted versions to the point where servers may have them: fetched, verified, tried.

What is prepared once stays so; what was refused stays refused until the
version's source changes or its failure is forgotten; what merely went wrong is
tried again, ever later.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from hedgerow_protos import hedgerow_control_pb2 as pb

from hedgerow_control.artifacts.fetch import ArtifactRefused, ArtifactSource, FetchFailed, Limits, fetch
from hedgerow_control.artifacts.store import ArtifactStore
from hedgerow_control.artifacts.trial import TrialFailed, TrialRefused

logger = logging.getLogger(__name__)

Key = tuple[str, str]
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0
#: A trial load may take much memory, so few at a time.
_AT_ONCE = 2
#: A reason travels to whoever asks for the status.
_REASON_CHARACTERS = 2000

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Preparation:
    """Where one version is: `registered` (waiting), `fetched`, `verified` or `failed`."""

    source: str
    stage: str = "registered"
    reason: str = ""
    attempts: int = 0
    #: Set once verified: digest, files, path and serving.
    prepared: pb.ModelVersion | None = None


class Preparer:
    """Owns one task for each version under preparation. `states` tells where each is."""

    def __init__(
        self,
        store: ArtifactStore,
        *,
        connect: Callable[[str, str], ArtifactSource],
        trial: Callable[[Path, pb.ModelVersion], Awaitable[None]],
        limits: Limits,
    ) -> None:
        self.states: dict[Key, Preparation] = {}
        #: Time spent fetching, in sum, and how often.
        self.fetch_seconds = 0.0
        self.fetches = 0
        self._store = store
        self._connect = connect
        self._trial = trial
        self._limits = limits
        #: Called after each change in `states`.
        self.on_change: Callable[[], None] = lambda: None
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._working = 0
        # Threads of their own: a download cannot be stopped, only abandoned, and what the
        # rest of the process does in threads must not wait behind a store that hangs.
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")

    @property
    def busy(self) -> bool:
        """Whether files may be on their way into the store."""
        return self._working > 0

    def want(self, versions: Mapping[Key, str]) -> None:
        """Sets what is wanted, as (model, version) to source; forgets and stops the rest."""
        for key in [key for key in self.states if versions.get(key) != self.states[key].source]:
            self._forget(key)
        for key, source in versions.items():
            if key not in self.states:
                self.states[key] = Preparation(source)
                self._start(key)

    def forget_failure(self, key: Key) -> None:
        """Lets the next `want` try a version anew that failed, at once and whatever the failure was."""
        if key in self.states and self.states[key].stage == "failed":
            self._forget(key)

    def restore(self, key: Key, state: Preparation) -> None:
        """Takes over what an earlier process knew, before the first `want`."""
        self.states[key] = state

    async def close(self) -> None:
        """Stops all work."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget(self, key: Key) -> None:
        del self.states[key]
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()

    def _start(self, key: Key) -> None:
        task = asyncio.create_task(self._prepare(key), name=f"prepare {key[0]}/{key[1]}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))

    def _ended(self, key: Key, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if key in self.states and not task.cancelled() and task.exception() is not None:
            logger.error("preparing %s version %s broke", *key, exc_info=task.exception())
            self._set(key, stage="failed", reason="an internal error; see the control plane's log")

    def _set(self, key: Key, **changes: object) -> None:
        self.states[key] = replace(self.states[key], **changes)  # type: ignore[arg-type]
        self.on_change()

    async def _prepare(self, key: Key) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            attempts = self.states[key].attempts + 1
            try:
                async with self._places:
                    prepared = await self._attempt(key)
            except (ArtifactRefused, TrialRefused) as error:
                logger.warning("%s version %s refused: %s", *key, error)
                self._set(key, stage="failed", reason=_short(error), attempts=attempts)
                return
            except (FetchFailed, TrialFailed, OSError) as error:
                logger.warning("%s version %s: %s; next attempt in %.0f s", *key, error, delay)
                reason = f"{_short(error)} (attempt {attempts}; will be tried again)"
                self._set(key, stage="failed", reason=reason, attempts=attempts)
                await asyncio.sleep(delay)
                delay = min(LAST_RETRY_SECONDS, delay * 2)
            else:
                was = f", rewritten from {prepared.source_digest}" if prepared.source_digest else ""
                logger.info("%s version %s verified: %s%s", *key, prepared.digest, was)
                self._set(key, stage="verified", reason="", attempts=attempts, prepared=prepared)
                return

    async def _attempt(self, key: Key) -> pb.ModelVersion:
        self._working += 1
        try:
            prepared = await self._fetch_and_try(key)
            # Together with the end of being busy, so that no pruning comes between.
            self.states[key] = replace(self.states[key], prepared=prepared)
            return prepared
        finally:
            self._working -= 1

    async def _fetch_and_try(self, key: Key) -> pb.ModelVersion:
        started = time.perf_counter()
        abandoned = threading.Event()
        incoming = self._store.incoming()
        try:
            directory = await _to_its_end(incoming.__enter__)
            try:
                prepared = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._fetch, key, directory, abandoned
                )
            finally:
                self.fetch_seconds += time.perf_counter() - started
                self.fetches += 1
            self._set(key, stage="fetched", reason="")
            await self._trial(directory, prepared)
            await _to_its_end(self._store.keep, directory, prepared.digest)
        finally:
            abandoned.set()
            # In a thread: removing gigabytes takes time.
            await _to_its_end(incoming.__exit__, None, None, None)
        prepared.version = key[1]
        return prepared

    def _fetch(self, key: Key, directory: Path, abandoned: threading.Event) -> pb.ModelVersion:
        """Runs in a thread that goes on for a while when nobody waits for it any more."""
        try:
            return fetch(lambda: self._connect(*key), directory, self._limits, abandoned.is_set)
        finally:
            if abandoned.is_set():
                shutil.rmtree(directory, ignore_errors=True)


async def _to_its_end(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Runs something short in a thread; if cancelled, returns when it has ended, not before."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **options))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _REASON_CHARACTERS else text[:_REASON_CHARACTERS] + "…"
