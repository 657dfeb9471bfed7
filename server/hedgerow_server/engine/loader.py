"""Brings one version from wherever its files are into memory; every failure is a refusal with a reason."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Protocol

from hedgerow_protos.hedgerow_control_pb2 import ModelVersion, ServingSpec

from hedgerow_server.engine.desired import Key
from hedgerow_server.engine.files import ArtifactError, ArtifactRefused
from hedgerow_server.engine.loading import LoadedModel, LoadRefused
from hedgerow_server.engine.refusals import Refusals

log = logging.getLogger(__name__)

#: Where the files of a version are: (model's name, version) -> directory.
Resolve = Callable[[str, ModelVersion], Awaitable[Path]]


class Load(Protocol):
    """Loads and warms a model; blocks. `engine.loading.load` is one."""

    def __call__(self, directory: Path, path: str, serving: ServingSpec, /) -> LoadedModel:
        """Raises LoadRefused when the model cannot be served."""


class Loader:
    """Fetches and loads versions, a few at a time.

    Holds: the places for loads, and what was refused lately.

    Args:
        resolve: finds a version's files; raises ArtifactError.
        load: loads a model, in a thread of `executor`.
        executor: more threads than `places`: a load that is given up keeps its
            thread until it returns.
        places: versions that are fetched or loaded at the same time.
        load_seconds: longest time of one load, warm-up included.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        resolve: Resolve,
        load: Load,
        executor: Executor,
        places: int = 2,
        load_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolve = resolve
        self._load = load
        self._executor = executor
        self._places = asyncio.Semaphore(places)
        self._load_seconds = load_seconds
        self._refusals = Refusals(clock)

    def check(self, key: Key) -> None:
        """Raises SnapshotRefused if the version failed so lately that it is not tried again yet."""
        self._refusals.check(key)

    async def bring(self, key: Key, version: ModelVersion) -> LoadedModel:
        """Returns the version, loaded and warm. May be cancelled at any time.

        Raises:
            SnapshotRefused: it cannot be had; remembered for `check`.
        """
        try:
            async with self._places:
                directory = await self._resolve(key.model, version)
                return await self._in_thread(directory, version)
        except (ArtifactRefused, LoadRefused) as error:
            raise self._refusals.remember(key, str(error), transient=False) from error
        except ArtifactError as error:
            raise self._refusals.remember(key, str(error), transient=True) from error
        except Exception as error:
            log.exception("loading %s failed in a way nobody foresaw", key)
            reason = f"{type(error).__name__}: {error}"
            raise self._refusals.remember(key, reason, transient=False) from error

    async def _in_thread(self, directory: Path, version: ModelVersion) -> LoadedModel:
        work = partial(self._load, directory, version.path, version.serving)
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            done, _ = await asyncio.wait([future], timeout=self._load_seconds)
            if not done:
                raise LoadRefused(f"did not load within {self._load_seconds:g} s")
            return future.result()
        finally:
            # Not begun: it never will be. Begun: its result is dropped when it comes.
            future.cancel()
