"""How the native transport wakes its loop: real sockets, a real client, as little room as can be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

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


@pytest.mark.parametrize(
    ("batch", "backlog"), [(native.BATCH, native.BACKLOG), (1, 1), (2, 4)], ids=["usual", "one", "few"]
)
async def test_no_call_is_forgotten_in_thousands_of_short_bursts(
    start: Open, monkeypatch: pytest.MonkeyPatch, batch: int, backlog: int
) -> None:
    """Each burst ends in silence: a wake-up that was lost would leave its last call waiting for ever."""
    monkeypatch.setattr(native, "BATCH", batch)
    monkeypatch.setattr(native, "BACKLOG", backlog)
    transport, _ = await start(model("several"))
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


async def test_calls_that_are_cancelled_at_any_moment_are_let_go(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
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
