"""What the tests of clients with backups share: what they send, many calls at once, and what must be left."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time

import grpc
import hedgerow
import numpy as np
from client_peer import Asyncio, Blocking
from hedgerow import Hedging

CODES = grpc.StatusCode
X = np.arange(6, dtype=np.float32).reshape(2, 3)
#: For tests in which nobody should be hurried by a busy machine.
LATE = Hedging(after=5.0)


def hedger(client):
    return client.client._hedger


def nothing_is_left(client):
    """All lanes are free, and no request is under way; losers may take a moment."""
    until = time.monotonic() + 10
    while "0 calls" not in repr(client.client) and time.monotonic() < until:
        if isinstance(client, Asyncio):
            client.runner.run(asyncio.sleep(0.01))
        else:
            time.sleep(0.01)
    assert "0 calls" in repr(client.client)
    assert not hedger(client).calls
    if isinstance(client, Asyncio):
        client.runner.run(asyncio.sleep(0))
        assert len(asyncio.all_tasks(client.runner.get_loop())) == 0


def at_once(client, count, ask):
    """The results of so many calls, 64 under way together; `ask(n)` gives the arguments of `infer`."""
    if isinstance(client, Blocking):

        def one(number):
            args, kwargs = ask(number)
            try:
                return client.client.infer(*args, **kwargs)
            except hedgerow.HedgerowError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            return list(pool.map(one, range(count)))

    async def both():
        limit = asyncio.Semaphore(64)

        async def one(number):
            args, kwargs = ask(number)
            async with limit:
                try:
                    return await client.client.infer(*args, **kwargs)
                except hedgerow.HedgerowError as error:
                    return error

        return await asyncio.gather(*(one(number) for number in range(count)))

    return client.runner.run(both())


def plain(number):
    return ("m", {"x": X}), {}
