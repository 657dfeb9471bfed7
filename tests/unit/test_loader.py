"""Loads and packings that are given up: their threads go on, and others must not notice."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hedgerow_protos.hedgerow_control_pb2 import ModelVersion, ServingSpec
from hedgerow_server.engine import memory
from hedgerow_server.engine.gears import Source
from hedgerow_server.engine.loader import Loader
from hedgerow_server.engine.loader_threads import LoaderThreads
from hedgerow_server.engine.loading import LoadRefused
from hedgerow_server.engine.model_file import ModelFile

HANG_SECONDS = 20


class Packings:
    """Packings that go on until the test lets them end; counts how many go on at once."""

    def __init__(self) -> None:
        self.let_go = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.under_way = self.most = self.begun = 0

    def __call__(self, model: Any, serving: ServingSpec) -> Any:
        with self.lock:
            self.begun += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        assert self.let_go.acquire(timeout=HANG_SECONDS)
        with self.lock:
            self.under_way -= 1
        return model


async def resolve(name: str, version: ModelVersion) -> Path:
    raise AssertionError((name, version))


def loader(pack: Packings, *, load_seconds: float = HANG_SECONDS, most: int = 8) -> Loader:
    def load(*_: object) -> Any:
        raise AssertionError("nothing is loaded here")

    threads = LoaderThreads(most, nice=0)
    return Loader(resolve=resolve, load=load, pack=pack, executor=threads, load_seconds=load_seconds)


async def begun(pack: Packings, times: int) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while pack.begun < times:  # noqa: ASYNC110  it happens in a thread
            await asyncio.sleep(0.001)


async def test_a_packing_that_was_given_up_is_ended_before_the_next_begins() -> None:
    """A version that is dropped while it is packed must not leave a second pack's worth of memory behind."""
    pack = Packings()
    brings = loader(pack)
    model: Any = object()
    for number in range(1, 4):
        given_up = asyncio.create_task(brings.pack(model, ServingSpec()))
        if number == 1:
            await begun(pack, 1)
        else:
            await asyncio.sleep(0.02)
        given_up.cancel()
        await asyncio.wait([given_up])
    assert pack.begun == 1, "those that came after it had nothing begun when they were given up"
    last = asyncio.create_task(brings.pack(model, ServingSpec()))
    pack.let_go.release()
    await begun(pack, 2)
    pack.let_go.release()
    async with asyncio.timeout(HANG_SECONDS):
        assert await last is model
    assert pack.most == 1


async def test_what_was_packed_for_nobody_is_let_go_where_it_was_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Destroyed with its pages, under the GIL, 200 MB stopped the event loop for 20 ms."""
    let_go: list[tuple[str, list[object], list[Path]]] = []
    ended = threading.Event()

    def note(sessions: list[object], weights: Any) -> None:
        let_go.append((threading.current_thread().name, list(sessions), list(weights)))
        ended.set()

    monkeypatch.setattr(memory, "let_go", note)
    pack = Packings()
    brings = loader(pack)
    source = Source(Path("m"), "model.onnx", ModelFile(external={"model.onnx.data"}))
    model: Any = SimpleNamespace(source=source)
    given_up = asyncio.create_task(brings.pack(model, ServingSpec()))
    await begun(pack, 1)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert not let_go
    pack.let_go.release()
    assert await asyncio.to_thread(ended.wait, HANG_SECONDS)
    assert let_go == [("loader", [model], [Path("m/model.onnx.data")])]
    wanted = asyncio.create_task(brings.pack(model, ServingSpec()))
    pack.let_go.release()
    async with asyncio.timeout(HANG_SECONDS):
        assert await wanted is model
    assert len(let_go) == 1


async def test_a_packing_that_hangs_keeps_the_others_waiting_no_longer_than_a_load_may_take() -> None:
    pack = Packings()
    brings = loader(pack, load_seconds=0.05)
    model: Any = object()
    with pytest.raises(LoadRefused, match="within"):
        await brings.pack(model, ServingSpec())
    second = asyncio.create_task(brings.pack(model, ServingSpec()))
    await begun(pack, 2)
    pack.let_go.release(2)
    await asyncio.wait([second])


async def test_a_packing_that_cannot_begin_gives_its_place_back() -> None:
    pack = Packings()
    brings = loader(pack, most=0)
    for _ in range(3):
        async with asyncio.timeout(HANG_SECONDS):
            with pytest.raises(LoadRefused):
                await brings.pack(object(), ServingSpec())  # type: ignore[arg-type]
