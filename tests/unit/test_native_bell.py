"""How the native transport wakes its loop: real sockets, a real client, as little room as can be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Self

import grpc
import pytest
from fakes_engine import INLINE, THREADED, RequestPath, endless, model, request, table, tensors
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from hedgerow_server.call import Call
from hedgerow_server.rpc import native
from hedgerow_server.rpc.native import NativeTransport

#: Only a hang is caught by it.
HANG_SECONDS = 30

Open = Callable[..., Awaitable[tuple[NativeTransport, RequestPath]]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Open]:
    """Starts a transport in front of a request path; closes both."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(
            *models: object, inline_below: float = INLINE
        ) -> tuple[NativeTransport, RequestPath]:
            path = await RequestPath.open(table(*models), inline_below=inline_below)  # type: ignore[arg-type]
            stack.push_async_callback(path.engine.close)
            transport = NativeTransport(path.answerer, "127.0.0.1:0", str(tmp_path / "none.sock"))
            stack.push_async_callback(lambda: transport.close())  # noqa: PLW0108  a test may have closed it
            transport.start()
            return transport, path

        yield open_one


def stub_of(channel: grpc.aio.Channel) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(channel)


#: The thread receives, the loop whenever it can, and both in turn.
RECEIVERS = pytest.mark.parametrize(
    "streak", [native.STREAK, 0, 2], ids=["thread mostly", "loop mostly", "in turn"]
)


@RECEIVERS
@pytest.mark.parametrize("inline_below", [INLINE, THREADED], ids=["inline", "threaded"])
@pytest.mark.parametrize(
    ("batch", "backlog"), [(native.BATCH, native.BACKLOG), (1, 1), (2, 4)], ids=["usual", "one", "few"]
)
async def test_no_call_is_forgotten_in_thousands_of_short_bursts(
    start: Open, monkeypatch: pytest.MonkeyPatch, batch: int, backlog: int, streak: int, inline_below: float
) -> None:
    """Each burst ends in silence: a wake-up that was lost would leave its last call waiting for ever."""
    monkeypatch.setattr(native, "BATCH", batch)
    monkeypatch.setattr(native, "BACKLOG", backlog)
    monkeypatch.setattr(native, "STREAK", streak)
    transport, _ = await start(model("several"), inline_below=inline_below)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
        ask = stub_of(channel).ModelInfer
        async with asyncio.timeout(HANG_SECONDS):
            for burst in range(200):
                sent = [
                    request({"a": [[float(i), 1]], "b": [[burst, 2]]}, id=str(i))
                    for i in range(burst % 8 + 1)
                ]
                replies = await asyncio.gather(*[ask(each, timeout=HANG_SECONDS) for each in sent])
                for i, reply in enumerate(replies):
                    assert (reply.id, tensors(reply)["sum"].tolist()) == (str(i), [[float(i + burst), 3.0]])
    assert not transport._calls
    assert not transport._inbox


@RECEIVERS
async def test_calls_that_are_cancelled_at_any_moment_are_let_go(
    start: Open, monkeypatch: pytest.MonkeyPatch, streak: int
) -> None:
    monkeypatch.setattr(native, "STREAK", streak)
    monkeypatch.setattr(native, "BATCH", 1)
    monkeypatch.setattr(native, "BACKLOG", 2)
    of = model("slow", milliseconds=1)
    transport, path = await start(of, inline_below=THREADED)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
        ask = stub_of(channel).ModelInfer
        async with asyncio.timeout(HANG_SECONDS):
            for turns in range(30):
                calls = [ask(request({"x": [[float(i)]]}), timeout=HANG_SECONDS) for i in range(6)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for call in calls[::2]:
                    call.cancel()
                for i, call in enumerate(calls):
                    if i % 2:
                        assert tensors(await call)["y"].tolist() == [[float(i)]]
            while transport._calls:  # noqa: ASYNC110  the last cancellation is on its way
                await asyncio.sleep(0.001)
            await path.answerer.idle()


class Watched:
    """A front that remembers what the loop has received itself, and how many calls were under way then."""

    def __init__(self, transport: NativeTransport, path: RequestPath) -> None:
        self._front, self._path = transport._front, path
        self.received = self.empty = 0
        self.under_way: list[int] = []
        transport._front = self  # type: ignore[assignment]

    def recv_batch_details(self, most: int, timeout_ms: int | None = None) -> list[object] | None:
        if timeout_ms is not None:
            self.under_way.append(self._path.answerer.in_flight)
        events: list[object] | None = self._front.recv_batch_details(most, timeout_ms)  # type: ignore[assignment]
        if timeout_ms is not None:
            self.received += len(events or ())
            self.empty += not events
        return events

    def __getattr__(self, name: str) -> object:
        return getattr(self._front, name)


class Asking:
    """A caller in a thread of its own, with one request after the other until it is left."""

    def __init__(self, transport: NativeTransport, sent: object, seconds: float = HANG_SECONDS) -> None:
        self._transport, self._sent, self._seconds = transport, sent, seconds
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.answers = self.errors = 0

    def _ask(self) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{self._transport.port}") as channel:
            ask = GRPCInferenceServiceStub(channel).ModelInfer
            while not self._leave.is_set():
                try:
                    ask(self._sent, timeout=self._seconds)
                except grpc.RpcError:
                    self.errors += 1
                else:
                    self.answers += 1

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave.set()
        await asyncio.to_thread(self._thread.join)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not what():  # noqa: ASYNC110  the threads tell nobody
            await asyncio.sleep(0.001)


def _callers() -> set[str]:
    return {frame.name for frame in traceback.extract_stack()}


SEVERAL = request({"a": [[1, 2]], "b": [[3, 4]]})


async def test_the_loop_receives_while_calls_come_thick_and_fast_and_the_thread_after_it(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "SOON_NS", 1_000_000_000)
    transport, path = await start(model("several"))
    front = Watched(transport, path)
    for _ in range(3):
        before = front.received
        async with Asking(transport, SEVERAL) as asking:
            await until(lambda before=before: front.received > before + 20)
        assert not asking.errors
        # Nobody asks any more.
        await until(transport._go_on.is_set)
        assert transport._streak < native.STREAK


async def test_the_loop_receives_nothing_while_a_call_is_under_way(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run would end while the loop waits for other calls."""
    monkeypatch.setattr(native, "STREAK", 0)
    transport, path = await start(model("slow", milliseconds=5), inline_below=THREADED)
    front = Watched(transport, path)
    async with contextlib.AsyncExitStack() as stack:
        askings = [
            await stack.enter_async_context(Asking(transport, request({"x": [[float(i)]]}))) for i in range(3)
        ]
        await until(lambda: all(asking.answers > 10 for asking in askings))
    assert not any(front.under_way)


async def test_everything_else_gets_its_turn_while_the_loop_receives(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "STREAK", 0)
    transport, path = await start(model("several"))
    front = Watched(transport, path)
    async with Asking(transport, SEVERAL):
        await until(lambda: front.received > 20)
        turns, before = 0, front.received
        while turns < 50:
            await asyncio.sleep(0.001)
            turns += 1
        assert front.received > before


class Hurried(deque[tuple[int, list[object], bool]]):
    """An inbox whose batches the loop takes, and receives what follows, before the thread goes on."""

    def __init__(self, transport: NativeTransport) -> None:
        super().__init__()
        self._transport = transport
        transport._inbox = self  # type: ignore[assignment]

    def append(self, batch: tuple[int, list[object], bool]) -> None:
        super().append(batch)
        os.eventfd_write(self._transport._bell, 1)
        assert self._transport._go_on.wait(HANG_SECONDS)


class Counted:
    """A front that knows how many receive from it at once."""

    def __init__(self, transport: NativeTransport) -> None:
        self._front = transport._front
        self._receiving = self.most = 0
        transport._front = self  # type: ignore[assignment]

    def recv_batch_details(self, *args: int) -> object:
        self._receiving += 1
        self.most = max(self.most, self._receiving)
        try:
            return self._front.recv_batch_details(*args)
        finally:
            self._receiving -= 1

    def __getattr__(self, name: str) -> object:
        return getattr(self._front, name)


async def test_one_receives_however_soon_the_loop_takes_the_last_batch_of_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread must have said that it stops by then, and its bell, too late now, must change nothing."""
    monkeypatch.setattr(native, "STREAK", 0)
    path = await RequestPath.open(table(model("several")))
    transport = NativeTransport(path.answerer, "127.0.0.1:0", str(tmp_path / "none.sock"))
    inbox, front = Hurried(transport), Counted(transport)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(path.engine.close)
        stack.push_async_callback(transport.close)
        transport.start()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{transport.port}"))
        ask = stub_of(channel).ModelInfer
        for number in range(20):
            await asyncio.gather(*[ask(SEVERAL, timeout=HANG_SECONDS) for _ in range(number % 4 + 1)])
            await until(transport._go_on.is_set)
        assert (front.most, len(inbox)) == (1, 0)


async def test_a_bell_that_rings_for_nothing_says_nothing_about_how_soon_batches_come(start: Open) -> None:
    transport, _ = await start(model("several"))
    transport._streak, transport._last_ns = 5, 7
    transport._rung = True
    os.eventfd_write(transport._bell, 1)
    await until(lambda: not transport._rung)
    assert (transport._streak, transport._last_ns) == (5, 7)


@pytest.mark.parametrize("step", ["_sort", "_answer"])
@pytest.mark.parametrize(("receiver", "after"), [("_take", 0), ("_linger", 20)])
async def test_a_defect_does_not_end_the_receiving(
    start: Open, monkeypatch: pytest.MonkeyPatch, receiver: str, after: int, step: str
) -> None:
    """Before a batch is sorted, whose calls then wait in vain, or after it was answered."""
    monkeypatch.setattr(native, "STREAK", 0)
    transport, path = await start(model("several"))
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    front = Watched(transport, path)
    right = getattr(transport, step)
    failed: list[bool] = []

    def fail_once(*args: object) -> None:
        fails = front.received >= after and receiver in _callers() and not failed
        if not fails or step == "_answer":
            right(*args)
        if fails:
            failed.append(True)
            raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(transport, step, fail_once)
    async with Asking(transport, SEVERAL, seconds=0.5) as asking:
        await until(lambda: failed)
        before, answers = front.received, asking.answers
        await until(lambda: front.received > before + 20 and asking.answers > answers + 20)


async def test_closing_while_the_loop_receives_ends_the_thread(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "STREAK", 0)
    transport, path = await start(model("several"))
    front = Watched(transport, path)
    async with Asking(transport, SEVERAL, seconds=0.5):
        await until(lambda: front.received > 20)
        async with asyncio.timeout(HANG_SECONDS):
            await transport.close()
        assert transport._thread is not None
        assert not transport._thread.is_alive()
    transport.close = _closed  # type: ignore[method-assign]


async def test_closing_while_the_inbox_is_full_ends_the_receiving_thread(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for room that only the loop can make; both must come to an end."""
    monkeypatch.setattr(native, "BATCH", 1)
    monkeypatch.setattr(native, "BACKLOG", 1)
    transport, path = await start(model("several"))
    assert transport._loop is not None
    # As if the loop were busy: nothing is taken out.
    transport._loop.remove_reader(transport._bell)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
        ask = request({"a": [[1, 2]], "b": [[3, 4]]})
        calls = [stub_of(channel).ModelInfer(ask, timeout=HANG_SECONDS) for _ in range(5)]
        async with asyncio.timeout(HANG_SECONDS):
            while transport._room.is_set():  # noqa: ASYNC110  the thread tells nobody
                await asyncio.sleep(0.001)
            assert len(transport._inbox) == 1
            transport._loop.add_reader(transport._bell, transport._take)
            await transport.close()
            assert transport._thread is not None
            assert not transport._thread.is_alive()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert len(ended) == 5
            await path.answerer.idle()
    transport.close = _closed  # type: ignore[method-assign]


async def _closed() -> None:
    """It is closed already."""


async def test_a_transport_that_never_began_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    close = os.close

    def note(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    monkeypatch.setattr(os, "close", note)
    path = await RequestPath.open(table(endless()))
    transport = NativeTransport(path.answerer, "127.0.0.1:0", str(tmp_path / "none.sock"))
    await transport.close()
    assert transport._bell in closed
    await path.engine.close()


async def test_time_in_the_inbox_counts(start: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that has had too much to do must not run what is over by now."""
    transport, path = await start(model("several"))
    left: list[float] = []
    answer = path.answerer.answer

    def watch(calls: Sequence[Call]) -> None:
        left.extend(call.remaining for call in calls if call.remaining is not None)
        answer(calls)

    monkeypatch.setattr(path.answerer, "answer", watch)
    with grpc.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
        await asyncio.to_thread(grpc.channel_ready_future(channel).result, HANG_SECONDS)
        sent = request({"a": [[1.0, 1]], "b": [[1.0, 2]]})
        asked = GRPCInferenceServiceStub(channel).ModelInfer.future(sent, timeout=HANG_SECONDS)
        await asyncio.sleep(0)
        time.sleep(1.0)  # noqa: ASYNC251  the loop is busy; and gRPC's own thread may take a while to send
        await asyncio.to_thread(asked.result)
    assert 0 < left[0] < HANG_SECONDS - 0.25
