"""Brings one version from wherever its files are into memory; every failure is a refusal with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from hedgerow_protos.hedgerow_control_pb2 import ModelVersion, ServingSpec

from hedgerow_server.engine import memory
from hedgerow_server.engine.desired import Key
from hedgerow_server.engine.files import ArtifactError, ArtifactRefused
from hedgerow_server.engine.loader_threads import TooManyHang
from hedgerow_server.engine.loading import LoadedModel, LoadRefused
from hedgerow_server.engine.packing import PackedSession
from hedgerow_server.engine.refusals import Refusals

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Where the files of a version are: (model's name, version) -> directory.
Resolve = Callable[[str, ModelVersion], Awaitable[Path]]


class Load(Protocol):
    """Loads and warms a model; blocks. `engine.loading.load` is one."""

    def __call__(self, directory: Path, path: str, serving: ServingSpec, /) -> LoadedModel:
        """Raises LoadRefused when the model cannot be served."""


class Pack(Protocol):
    """Makes the second gear of a model; blocks. `engine.packing.pack` is one."""

    def __call__(self, model: LoadedModel, serving: ServingSpec, /) -> PackedSession:
        """Raises LoadRefused when the packed session cannot take over."""


class Loader:
    """Fetches and loads versions, a few at a time.

    Holds: the places for loads and for packing, and what was refused lately.

    Args:
        resolve: finds a version's files; raises ArtifactError.
        load: loads a model, in a thread of `executor`.
        pack: packs a loaded model's weights, in a thread of `executor`; None: nothing is packed.
        executor: more threads than `places`: a load that is given up keeps its
            thread until it returns.
        places: versions that are fetched or loaded at the same time. Beside them one is packed.
        load_seconds: longest time of one load, warm-up included.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        resolve: Resolve,
        load: Load,
        pack: Pack | None = None,
        executor: Executor,
        places: int = 2,
        load_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolve = resolve
        self._load = load
        self._pack = pack
        self._executor = executor
        self._places = asyncio.Semaphore(places)
        # One at a time, given up or not: nobody waits for it, and each takes memory and a core.
        self._packing = asyncio.Semaphore(1)
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
                work = partial(self._load, directory, version.path, version.serving)
                return await self._in_thread(work)
        except (ArtifactRefused, LoadRefused) as error:
            raise self._refusals.remember(key, str(error), transient=False) from error
        except (ArtifactError, TooManyHang) as error:
            raise self._refusals.remember(key, str(error), transient=True) from error
        except Exception as error:
            log.exception("loading %s failed in a way nobody foresaw", key)
            reason = f"{type(error).__name__}: {error}"
            raise self._refusals.remember(key, reason, transient=False) from error

    def packs(self, loaded: LoadedModel) -> bool:
        """Whether a model has a second gear to go into."""
        return self._pack is not None and loaded.source is not None

    async def pack(self, loaded: LoadedModel, serving: ServingSpec) -> PackedSession:
        """Returns the second gear of a model, warm. May be cancelled at any time.

        Raises:
            LoadRefused: there is none, now; nothing is remembered.
        """
        assert self._pack is not None, "nothing is packed here"
        await self._packing.acquire()
        given_up = threading.Event()
        work = partial(self._pack_in_thread, loaded, serving, given_up)
        try:
            return await self._in_thread(work, self._packing.release)
        except asyncio.CancelledError:
            given_up.set()
            raise
        except LoadRefused:
            raise
        except TooManyHang as error:
            raise LoadRefused(str(error)) from None
        except Exception as error:
            log.exception("packing failed in a way nobody foresaw")
            raise LoadRefused(f"{type(error).__name__}: {error}") from None

    def _pack_in_thread(
        self, loaded: LoadedModel, serving: ServingSpec, given_up: threading.Event
    ) -> PackedSession:
        assert self._pack is not None, "nothing is packed here"
        held: list[object] = []
        try:
            packed = self._pack(loaded, serving)
            if given_up.is_set():
                held.append(packed)
                del packed
                raise LoadRefused("nobody wants it packed any more")
            return packed
        finally:
            if given_up.is_set():
                # The model may have been dropped meanwhile, so that these are the last references, also to
                # the session that it was loaded with: its pages have come back while the two were compared.
                memory.let_go(held, loaded.source.weights() if loaded.source is not None else ())

    async def _in_thread(self, work: Callable[[], T], ended: Callable[[], None] = lambda: None) -> T:
        """Runs work in a thread.

        Args:
            work: blocks.
            ended: called on the loop when the work has returned, which may be long after this was
                cancelled; or when it has taken longer than a load may, and counts as hung.
        """
        end = _Once(ended)
        try:
            begun = self._executor.submit(work)
        except BaseException:
            end()
            raise
        loop = asyncio.get_running_loop()
        overdue = loop.call_later(self._load_seconds, end)

        def conclude() -> None:
            overdue.cancel()
            end()

        def returned(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(conclude)

        begun.add_done_callback(returned)
        future = asyncio.wrap_future(begun)
        try:
            done, _ = await asyncio.wait([future], timeout=self._load_seconds)
            if not done:
                raise LoadRefused(f"did not load within {self._load_seconds:g} s")
            return future.result()
        finally:
            # Not begun: it never will be. Begun: its result is dropped when it comes.
            future.cancel()


class _Once:
    """Does something the first time that it is called. Holds: whether it was."""

    def __init__(self, what: Callable[[], None]) -> None:
        self._what: Callable[[], None] | None = what

    def __call__(self) -> None:
        what, self._what = self._what, None
        if what is not None:
            what()
