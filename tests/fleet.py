"""What the tests of catalog, files and subscription share: loads and time under the test's control."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

from hedgerow_protos import manifest
from hedgerow_protos.hedgerow_control_pb2 import File, Model, ModelVersion, Route, ServingSpec, Snapshot
from hedgerow_server.engine import gears
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.loading import LoadedModel, LoadRefused
from hedgerow_server.engine.model_file import ModelFile
from hedgerow_server.engine.packing import PackedSession
from hedgerow_server.engine.signature import Signature, TensorSpec

FLOATS = Signature(
    (TensorSpec("x", DATATYPES["FP32"], (-1, 4)),), (TensorSpec("y", DATATYPES["FP32"], (-1, 1)),), 8
)


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until `advance`.

    `failures` are the exceptions of background tasks, which nobody else sees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.failures: list[Any] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    def time(self) -> float:
        return self.now

    def settle(self, turns: int = 30) -> None:
        """Runs everything that can run now."""
        for _ in range(turns):
            self.call_soon(self.stop)
            self.run_forever()

    def end(self) -> None:
        """Closes the loop; fails if a background task has failed."""
        self.run_until_complete(self.shutdown_default_executor())
        self.close()
        gc.collect()
        assert not self.failures, self.failures

    def advance(self, seconds: float) -> None:
        """Lets time pass, and runs what it brings about."""
        self.now += seconds
        self.settle()


async def at_once(work: Callable[[], object]) -> None:
    """Is the catalog's `aside`, without a thread: what is dropped is gone when the loop has settled."""
    work()


class Session:
    """Stands where an ONNX Runtime session would; lives as long as somebody holds it."""

    def __init__(self, key: tuple[str, ...]) -> None:
        self.key = key


class Loads(Executor):
    """Loads that end when the test says so; until then they hang.

    `sessions` are those that somebody still holds.
    """

    def __init__(self) -> None:
        self.waiting: dict[tuple[str, ...], tuple[Future[Any], Callable[[], Any]]] = {}
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self.begun: list[tuple[str, ...]] = []

    async def resolve(self, name: str, version: ModelVersion) -> Path:
        """Is the catalog's `resolve`: the directory's parts are the version's key."""
        return Path(name) / version.version / version.digest

    def load(self, directory: Path, path: str, serving: ServingSpec) -> LoadedModel:
        """Is the catalog's `load`."""
        session = Session(directory.parts)
        self.sessions.add(session)
        return LoadedModel(
            session,  # type: ignore[arg-type]
            FLOATS,
            0.0,
            1e-5,
            row_independent=True,
            gear=gears.Gear.MAPPED,
            source=gears.Source(directory, path, ModelFile()),
        )

    def pack(self, loaded: LoadedModel, serving: ServingSpec) -> PackedSession:
        """Is the loader's `pack`, for those who want a second gear."""
        session = Session((*loaded.session.key, "packed"))  # type: ignore[attr-defined]
        self.sessions.add(session)
        return PackedSession(session, 0.1, 1e-6)  # type: ignore[arg-type]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Called by the event loop for a load."""
        key = _key(fn)
        future: Future[Any] = Future()
        self.begun.append(key)
        self.waiting[key] = (future, lambda: fn(*args, **kwargs))
        future.add_done_callback(partial(self._ended, key))
        return future

    def _ended(self, key: tuple[str, ...], future: Future[Any]) -> None:
        # What was given up still waits to be finished by the test, but holds nothing.
        if future.cancelled() and key in self.waiting and self.waiting[key][0] is future:
            self.waiting[key] = (future, lambda: None)

    def finish(self, key: tuple[str, ...]) -> None:
        """The load succeeds."""
        future, work = self.waiting.pop(key)
        if future.set_running_or_notify_cancel():
            future.set_result(work())

    def refuse(self, key: tuple[str, ...], reason: str = "the file is truncated") -> None:
        """The load fails."""
        future, _ = self.waiting.pop(key)
        if future.set_running_or_notify_cancel():
            future.set_exception(LoadRefused(reason))


class InstantLoads(Loads):
    """Loads that succeed at once, but for versions in `broken`."""

    def __init__(self, broken: Mapping[tuple[str, str], str] | None = None) -> None:
        super().__init__()
        self.broken = dict(broken or {})

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        key = _key(fn)
        if key[:2] in self.broken:
            self.refuse(key, self.broken[key[:2]])
        else:
            self.finish(key)
        return future


def _key(work: Any) -> tuple[str, ...]:
    """What is loaded: its model, version and digest, and "packed" for its second gear."""
    first = work.args[0]
    return (*first.session.key, "packed") if isinstance(first, LoadedModel) else first.parts


def snapshot(
    number: int, models: Mapping[str, Mapping[str, int | None]], digests: Mapping[tuple[str, str], str] = {}
) -> Snapshot:
    """A snapshot of model -> version -> weight; None: listed without a route."""
    return Snapshot(
        version=number,
        nonce=f"n{number}",
        models=[
            Model(
                name=name,
                versions=[
                    ModelVersion(version=version, digest=digests.get((name, version), "d"), path="model.onnx")
                    for version in versions
                ],
                routes=[
                    Route(variant="champion", version=version, weight=weight)
                    for version, weight in versions.items()
                    if weight is not None
                ],
            )
            for name, versions in models.items()
        ],
    )


def version_of(files: Mapping[str, bytes], *, version: str = "1", path: str = "model.onnx") -> ModelVersion:
    """A version whose manifest fits these files."""
    listed = [
        File(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    ]
    return ModelVersion(version=version, digest=manifest.digest(listed), files=listed, path=path)


class Source:
    """Gives files in chunks, as the control plane does."""

    def __init__(self, files: Mapping[str, bytes], chunk: int = 5) -> None:
        self.files = dict(files)
        self.chunk = chunk
        self.fetched: list[str] = []
        self.begun = asyncio.Event()

    async def fetch(self, digest: str, path: str) -> AsyncGenerator[bytes, None]:
        """Is the store's `fetch`."""
        self.fetched.append(path)
        self.begun.set()
        data = self.files[path]
        for start in range(0, len(data), self.chunk):
            await asyncio.sleep(0)
            yield data[start : start + self.chunk]


class CancelledAt:
    """Awaits a coroutine, and has the task cancelled where it suspends for the n-th time."""

    def __init__(self, work: Any, suspension: int) -> None:
        self._work = work
        self._left = suspension

    def __await__(self) -> Generator[Any, Any, Any]:
        work = self._work.__await__() if hasattr(self._work, "__await__") else self._work
        thrown: BaseException | None = None
        while True:
            try:
                waits_for = work.send(None) if thrown is None else work.throw(thrown)
            except StopIteration as end:
                return end.value
            self._left -= 1
            if self._left == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                thrown = None
                yield waits_for
            except BaseException as error:  # noqa: BLE001  a cancellation too goes to the coroutine
                thrown = error
