"""Hedgerow's own join in a process by itself: `python -m hedgerow_bench.features_join CACHE`.

The objects that a server's worker has: `Features` with its joiner, reader, lanes and
breakers, on uvloop, and a real cache. The in-process values are switched off, so
that every request asks the cache. Reads orders from stdin, one JSON object a line,
and answers each with one:

    {"entities": 1, "seconds": 1.0}                  closed loop, one request at a time
    {"entities": 1, "seconds": 5.0, "rate": 500}     open loop, Poisson arrivals

A request begins with ids as a caller's INT64 tensor and ends with the model's input
as a NumPy array, FP32 [entity, feature]; every array is held against what was written.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.features.binding import Binding
from hedgerow_server.features.cache import RedisCache
from hedgerow_server.features.features import Features
from hedgerow_server.features.freshness import Freshness
from hedgerow_server.features.join import Joined
from hedgerow_server.settings import Features as Settings

from hedgerow_bench import features_data as data
from hedgerow_bench import models
from hedgerow_bench.cores import available, pinned
from hedgerow_bench.schedule import offsets

_MOMENT = struct.Struct("<d")
#: Seconds between the order and the first request of an open loop.
_LEAD = 0.5
#: Seconds of an open loop that do not count: its first requests at once open connections to the cache.
_WARM_UP = 1.0
_QUESTIONS = 512


class Request:
    """What asks for features: one request, and its times on the monotonic clock."""

    __slots__ = ("deadline", "ended", "ids", "lag", "scheduled")

    def __init__(self, ids: npt.NDArray[np.int64], scheduled: float, lag: float = 0.0) -> None:
        self.ended = False
        self.deadline = scheduled + 60.0
        self.ids = ids
        self.scheduled = scheduled
        self.lag = lag


class Bench:
    """The join, and what came out of it.

    Args:
        cache: URL of the cache.
        budget_ms: What one request may wait.
    """

    def __init__(self, cache: str, budget_ms: float = 1000.0) -> None:
        # Neither bound must cut off a slow read: it is to be measured.
        self._budget = budget_ms / 1000
        settings = Settings(budget_ms=budget_ms, cache_timeout_ms=budget_ms, local_ttl_ms=0)
        source = RedisCache(cache, connections=settings.cache_connections)
        self.features = Features(settings, store=None, cache=source, done=self._done)
        spec = TensorSpec(models.INPUT, DATATYPES["FP32"], (-1, data.FEATURES))
        signature = Signature((spec,), (TensorSpec(models.OUTPUT, DATATYPES["FP32"], (-1, 1)),), 1024)
        self._binding = Binding(data.serving().features, signature, self.features.views.find)
        self._expected = data.values()
        self._waiter: asyncio.Future[None] | None = None
        self.latency: list[float] = []
        self.scheduled: list[float] = []
        self.lag: list[float] = []
        self.wrong = 0

    def add(self, request: Request) -> None:
        """Takes a request; `flush` asks for what those of one moment want."""
        ids = request.ids
        self.features.joiner.add(request, self._binding, [ids.tobytes()], [ids.shape])

    def flush(self) -> None:
        """Ends a moment."""
        self.features.joiner.flush()

    def _done(self, finished: Sequence[Joined]) -> None:
        for joined in finished:
            request: Any = joined.asker
            # Without parts it failed, which the comparison finds.
            part: Any = joined.parts[0] if joined.parts else b""
            array = np.frombuffer(part, np.float32).reshape(joined.shapes[0] if joined.shapes else 0)
            self.latency.append(time.monotonic() - request.scheduled)
            self.scheduled.append(request.scheduled)
            self.lag.append(request.lag)
            right = np.array_equal(array, self._expected[request.ids])
            if not (right and joined.freshness is Freshness.FRESH):
                self.wrong += 1
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None

    async def one_at_a_time(self, entities: int, seconds: float, seed: int) -> None:
        """Asks, waits, asks again."""
        loop = asyncio.get_running_loop()
        asked = data.questions(entities, _QUESTIONS, seed)
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            waiter = self._waiter = loop.create_future()
            self.add(Request(asked[number % _QUESTIONS], time.monotonic()))
            self.flush()
            await waiter
            number += 1

    async def at_rate(self, entities: int, seconds: float, rate: float, seed: int, pacer: list[int]) -> None:
        """Asks when a request is due, whatever is still under way; times count from then."""
        asked = data.questions(entities, _QUESTIONS, seed)
        random = np.random.default_rng(seed)
        began = time.monotonic() + _LEAD
        due = began + offsets(rate, _WARM_UP + seconds, "poisson", random)
        with pinned(pacer):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(data.PACER)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(due.tolist()).encode() + b"\n")
        number, left = 0, b""
        while chunk := await process.stdout.read(65536):
            left += chunk
            whole = len(left) - len(left) % _MOMENT.size
            for (written,) in _MOMENT.iter_unpack(left[:whole]):
                self.add(Request(asked[number % _QUESTIONS], due[number], written - due[number]))
                number += 1
            left = left[whole:]
            self.flush()
        await process.wait()
        # What is still under way ends by itself, at the latest when the request's budget does.
        await asyncio.sleep(2 * self._budget)
        self.wrong += len(due) - len(self.latency)
        counted = [place for place, at in enumerate(self.scheduled) if at >= began + _WARM_UP]
        for kept in (self.latency, self.scheduled, self.lag):
            kept[:] = [kept[place] for place in counted]

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carries out one order; its answer."""
        for kept in (self.latency, self.scheduled, self.lag):
            kept.clear()
        self.wrong = 0
        cpu = time.process_time()
        if "rate" in order:
            await self.at_rate(
                order["entities"], order["seconds"], order["rate"], order["seed"], order["pacer"]
            )
        else:
            await self.one_at_a_time(order["entities"], order["seconds"], order["seed"])
        return {
            "latency": self.latency,
            "scheduled": self.scheduled,
            "lag": self.lag,
            "failed": self.wrong,
            "cpu": (time.process_time() - cpu) / order["seconds"],
        }


async def main(cache: str) -> None:
    """Obeys orders from stdin until it ends."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bench = Bench(cache)
    # As the server does after its start.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    print(json.dumps({"ready": list(available())}), flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await bench.obey(json.loads(line))), flush=True)
    finally:
        await bench.features.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
