"""The load generator's timing, in virtual time."""

import asyncio

import numpy as np
import pytest
from hedgerow_bench import closed_loop, open_loop
from hedgerow_bench.records import OK, OVERFLOW, Log

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


def due(count, gap=0.01):
    start = asyncio.get_running_loop().time()
    return [start + number * gap for number in range(count)]


async def drive(ask, times, **settings):
    log = Log()
    settings = {"outstanding": 1000, "timeout": 5.0, "stop": asyncio.Event()} | settings
    await open_loop.drive(ask, times, log, **settings)
    return log.records()


async def test_requests_leave_on_time_while_earlier_ones_are_unanswered():
    """A server that takes a second is still asked a hundred times a second."""
    loop = asyncio.get_running_loop()
    sent = []

    async def slow(_number):
        sent.append(loop.time())
        await asyncio.sleep(1)
        return "1", OK

    times = due(200)
    records = await drive(slow, times)
    assert sent == pytest.approx(times)
    assert records.latency == pytest.approx(np.ones(200))
    assert records.failed == 0


async def test_latency_counts_from_the_due_time_also_when_sent_late():
    """No coordinated omission: what a stall delays is charged with the delay."""
    loop = asyncio.get_running_loop()

    async def quick(_number):
        await asyncio.sleep(0.001)
        return "1", OK

    times = [loop.time() - 0.5, loop.time() - 0.25, loop.time() + 0.1]
    records = await drive(quick, times)
    assert records.latency == pytest.approx([0.501, 0.251, 0.001])
    assert records.lag == pytest.approx([0.5, 0.25, 0.0])


async def test_what_exceeds_the_outstanding_limit_is_a_failure_and_not_hidden():
    async def stuck(_number):
        await asyncio.sleep(3)
        return "1", OK

    records = await drive(stuck, due(50), outstanding=10, timeout=4.0)
    assert len(records) == 50
    assert records.summary()["statuses"] == {OK: 10, OVERFLOW: 40}
    assert records.failed == 40
    assert records.percentiles_ms()["p50"] == pytest.approx(4000, rel=1e-3)


async def test_an_answer_that_never_comes_is_abandoned_in_bounded_time():
    loop = asyncio.get_running_loop()

    async def never(_number):
        await asyncio.Event().wait()
        return "1", OK

    before = loop.time()
    records = await drive(never, due(3), timeout=2.0)
    assert loop.time() - before == pytest.approx(4.02)
    assert records.summary()["statuses"] == {"ABANDONED": 3}


async def test_stop_ends_the_sending_and_waits_for_the_answers():
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.105, stop.set)

    async def slow(_number):
        await asyncio.sleep(1)
        return "1", OK

    records = await drive(slow, due(1000), stop=stop)
    assert len(records) == 11
    assert records.failed == 0


async def test_closed_loop_keeps_its_callers_busy_until_the_end():
    loop = asyncio.get_running_loop()
    numbers = []

    async def ask(number):
        numbers.append(number)
        await asyncio.sleep(0.1)
        return "1", OK

    log = Log()
    await closed_loop.drive(ask, log, callers=4, until=loop.time() + 1.05)
    assert len(log.status) == 4 * 11
    assert sorted(numbers) == list(range(44))
