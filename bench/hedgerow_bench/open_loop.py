"""Requests at times fixed beforehand, whatever the server does.

A closed loop waits for a slow answer before it asks again and so leaves out
just the requests that would have suffered ("coordinated omission", Gil Tene,
"How NOT to Measure Latency"). Here every request has a time at which it is
due, and its latency counts from that time, also when it was sent late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hedgerow_bench.records import OVERFLOW, Answer, Log

#: Asks the server once for the n-th request; returns how that ended.
Ask = Callable[[int], Awaitable[Answer]]


async def drive(
    ask: Ask,
    due: Sequence[float],
    log: Log,
    *,
    outstanding: int,
    timeout: float,  # noqa: ASYNC109 - bounds each request, not this call
    stop: asyncio.Event,
) -> None:
    """Sends a request at each due time, until the last or until `stop`; then waits for the answers.

    Args:
        ask: Must not raise for a failed request, but return its status.
        due: Seconds of the running loop's clock, in order.
        log: Gets one entry for every request that came due.
        outstanding: Requests under way at most; one that comes due beyond
            them is not sent and logged as `OVERFLOW` with latency `timeout`.
        timeout: Seconds after which `ask` gives up by itself; twice that after
            the last request, what is still under way is cancelled and logged as `ABANDONED`.
        stop: Ends the sending early.
    """
    loop = asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()

    async def one(number: int, scheduled: float) -> None:
        lag = loop.time() - scheduled
        answer = Answer("", "ABANDONED")
        try:
            answer = await ask(number)
        finally:
            log.add(scheduled, lag, loop.time() - scheduled, *answer)

    stopped = asyncio.ensure_future(stop.wait())
    try:
        for number, scheduled in enumerate(due):
            wait = scheduled - loop.time()
            if wait > 0:
                await asyncio.wait((stopped,), timeout=wait)
            if stop.is_set():
                break
            if len(under_way) >= outstanding:
                log.add(scheduled, max(0.0, loop.time() - scheduled), timeout, "", OVERFLOW)
                # Give answers a chance even when every request is late.
                await asyncio.sleep(0)
                continue
            task = loop.create_task(one(number, scheduled))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            await asyncio.wait(under_way, timeout=2 * timeout)
    finally:
        stopped.cancel()
        left = list(under_way)
        for task in left:
            task.cancel()
        await asyncio.gather(stopped, *left, return_exceptions=True)
