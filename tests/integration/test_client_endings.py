"""What ends a call of a client with backups ends all its attempts: a cancel, a timeout, a close, Ctrl-C."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import Counter

import hedgerow
import pytest
from client_backups import CODES, LATE, X, nothing_is_left
from client_region import Does
from hedgerow import Hedging


async def test_cancelling_a_task_cancels_all_attempts(regions):
    a, b = regions(Does(20), Does(20))
    async with hedgerow.AsyncClient(a.address, backups=[b.address]) as client:
        waiting = asyncio.create_task(client.infer("m", {"x": X}))
        assert await asyncio.to_thread(b.asked.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(a.seen[0].cancelled.wait, 10)
        assert await asyncio.to_thread(b.seen[0].cancelled.wait, 10)
        assert "0 calls" in repr(client)
        assert len(asyncio.all_tasks()) == 1


async def test_a_cancelled_task_stays_cancelled_when_its_hedge_wins_at_that_moment(regions):
    a, b = regions(Does(20), Does(0.03))
    async with hedgerow.AsyncClient(a.address, backups=[b.address], hedge=Hedging(0.01)) as client:
        ended = Counter()
        for number in range(60):
            waiting = asyncio.create_task(client.infer("m", {"x": X}))
            await asyncio.sleep(0.03 + number / 2000)
            waiting.cancel()
            try:
                await waiting
                ended["answered"] += 1
            except asyncio.CancelledError:
                assert waiting.cancelled()
                ended["cancelled"] += 1
        assert ended["cancelled"]
        assert "0 calls" in repr(client)


async def test_a_callers_timeout_ends_all_attempts(regions):
    a, b = regions(Does(20), Does(20))
    async with hedgerow.AsyncClient(a.address, backups=[b.address]) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.infer("m", {"x": X})
        assert await asyncio.to_thread(a.seen[0].cancelled.wait, 10)
        assert "0 calls" in repr(client)


def test_the_deadline_ends_all_attempts(regions, connect):
    a, b = regions(Does(20), Does(20))
    client = connect(a, b)
    began = time.monotonic()
    with pytest.raises(hedgerow.DeadlineExceeded):
        client("infer", "m", {"x": X}, timeout=0.4)
    assert time.monotonic() - began < 5
    assert a.seen[0].cancelled.wait(10)
    assert b.seen[0].cancelled.wait(10)
    nothing_is_left(client)


@pytest.mark.parametrize("when", ["first attempt", "hedged", "repeating"])
def test_closing_ends_what_is_under_way(regions, when):
    a, b = regions(Does(20), Does(20))
    hedge = LATE if when == "first attempt" else Hedging()
    if when == "repeating":
        a.does = b.does = Does(code=CODES.UNAVAILABLE, trailing=(("grpc-retry-pushback-ms", "8000"),))
    client = hedgerow.Client(a.address, backups=[b.address], hedge=hedge, timeout=20)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.infer, "m", {"x": X}) for _ in range(8)]
        until = time.monotonic() + 10
        expected = [8, 0] if when == "first attempt" else [8, 1]
        while [len(a.seen) >= expected[0], len(b.seen) >= expected[1]] != [
            True,
            True,
        ] and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        client.close()
        began = time.monotonic()
        for one in waiting:
            with pytest.raises(hedgerow.Cancelled):
                one.result(10)
        assert time.monotonic() - began < 5
    with pytest.raises(hedgerow.FailedPrecondition):
        client.infer("m", {"x": X})


async def test_closing_ends_what_is_under_way_on_asyncio(regions):
    a, b = regions(Does(20), Does(20))
    client = hedgerow.AsyncClient(a.address, backups=[b.address])
    waiting = [asyncio.create_task(client.infer("m", {"x": X})) for _ in range(8)]
    assert await asyncio.to_thread(b.asked.wait, 10)
    await client.close()
    for one in waiting:
        with pytest.raises(hedgerow.Cancelled):
            await one
    assert len(asyncio.all_tasks()) == 1
    with pytest.raises(hedgerow.FailedPrecondition):
        await client.infer("m", {"x": X})


def test_an_interrupt_ends_all_attempts(regions, monkeypatch):
    """Ctrl-C while the caller waits."""
    import _thread

    a, b = regions(Does(20), Does(20))
    with hedgerow.Client(a.address, backups=[b.address]) as client:
        threading.Timer(0.3, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            client.infer("m", {"x": X}, timeout=15)
        assert a.seen[0].cancelled.wait(10)
        assert b.seen[0].cancelled.wait(10)
        assert not client._hedger.calls


def test_the_timers_thread_ends_when_there_is_nothing_to_do(regions, monkeypatch):
    from hedgerow.hedging.timer import Timer

    monkeypatch.setattr(Timer, "IDLE", 0.1)
    (a,) = regions(Does())

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "hedgerow-timer"]

    with hedgerow.Client(a.address, backups=["127.0.0.1:1"]) as client:
        for _ in range(3):
            client.infer("m", {"x": X})
            assert len(threads()) <= 1
            until = time.monotonic() + 10
            while threads() and time.monotonic() < until:
                time.sleep(0.02)
            assert not threads()
