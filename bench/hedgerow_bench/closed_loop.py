"""As fast as it goes: a fixed number of callers, each asking again when answered.

For throughput only: its latencies leave out what a waiting caller did not ask.
"""

from __future__ import annotations

import asyncio

from hedgerow_bench.open_loop import Ask
from hedgerow_bench.records import Log


async def drive(ask: Ask, log: Log, *, callers: int, until: float) -> None:
    """Keeps `callers` requests under way until a time of the running loop's clock.

    Args:
        ask: Must not raise for a failed request, but return its status.
        log: Gets one entry a request; a request is due when its caller is free.
        callers: Requests under way at any time.
        until: Seconds of the loop's clock; requests sent before it are waited for.
    """
    loop = asyncio.get_running_loop()

    async def caller(first: int) -> None:
        number = first
        while (sent := loop.time()) < until:
            answer = await ask(number)
            log.add(sent, 0.0, loop.time() - sent, *answer)
            number += callers

    async with asyncio.TaskGroup() as group:
        for first in range(callers):
            group.create_task(caller(first))
