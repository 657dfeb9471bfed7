"""What hedging costs while nothing is slow: `python -m hedgerow_bench.hedge_cost`.

The request path of a server without its sockets, once with a backup and once without, over the same
requests in turn. Processor time of one thread, which other processes hardly touch; medians of rounds.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hedgerow_protos.hedgerow_control_pb2 import Route, ServingSpec
from hedgerow_protos.hedging import Budget
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.answer import Answerer
from hedgerow_server.call import Call
from hedgerow_server.engine import loading
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.runners import Engine
from hedgerow_server.gate.deadlines import Deadlines
from hedgerow_server.resilience.backup import Backup
from hedgerow_server.resilience.hedger import Hedger
from hedgerow_server.routing.table import RouteTable
from hedgerow_server.telemetry.request_log import RequestLog
from rich.console import Console
from rich.table import Table

from hedgerow_bench import mlp

ROUNDS = 101
#: Requests in one round of one case.
REQUESTS = 1024
#: Requests that arrive in one turn of the loop.
BATCHES = (1, 16, 64)


class _Nobody:
    """The sink of all calls."""

    def respond(self, *_: object) -> None:
        """Takes an answer."""

    def fail(self, *_: object) -> None:
        """Fails the bench."""
        raise AssertionError


_NOBODY = _Nobody()


@dataclass(frozen=True, slots=True)
class Server:
    """A request path and its threads."""

    answerer: Answerer
    engine: Engine
    hedger: Hedger | None


async def start(directory: Path, *, hedged: bool, inline: bool = True) -> Server:
    """A request path that serves the bench's perceptron; `hedged`: with a backup, which never answers."""
    loaded = loading.load(directory, "model.onnx", ServingSpec())
    model = Model("m", "1", "digest", loaded, ServingSpec())
    engine = Engine(runners=2, inline_below=1e9 if inline else 0.0)
    answerer = Answerer(
        engine, RequestLog(None), deadlines=Deadlines(), max_message_bytes=1 << 20, region="here"
    )
    hedger = None
    if hedged:
        # Port 9 of this machine, which discards; nothing is sent, since nothing is slow.
        hedger = Hedger([Backup("127.0.0.1:9")], Budget(0.02), after=0.03, adaptive=True)
        answerer.hedge_with(hedger)
    await engine.start(answerer.finish, answerer.expire)
    answerer.use(
        RouteTable.build(1, {"m": {"1": model}}, {"m": [Route(variant="champion", version="1", weight=100)]})
    )
    return Server(answerer, engine, hedger)


def request() -> bytes:
    """One row for the perceptron."""
    made = ModelInferRequest(model_name="m")
    made.inputs.add(name=mlp.INPUT, datatype="FP32", shape=[1, mlp.WIDTH])
    made.raw_input_contents.append(np.ones((1, mlp.WIDTH), np.float32).tobytes())
    return made.SerializeToString()


def arrivals(payload: bytes, size: int, count: int) -> list[list[Call]]:
    """Calls as a transport hands them over, `size` at a time."""
    return [
        [Call(payload, (), None, _NOBODY, i, time.perf_counter_ns()) for i in range(size)]
        for _ in range(count // size)
    ]


def measure(server: Server, payload: bytes, size: int) -> float:
    """Microseconds of the processor for one request."""
    turns = arrivals(payload, size, REQUESTS)
    answer = server.answerer.answer
    began = time.thread_time_ns()
    for turn in turns:
        answer(turn)
    took = time.thread_time_ns() - began
    assert server.answerer.in_flight == 0
    return took / REQUESTS / 1000


def allocated(server: Server, payload: bytes, size: int) -> tuple[int, int]:
    """Most bytes in use at once while a turn is answered, and blocks that are left of a thousand requests."""
    peaks, blocks = [], []
    for _ in range(20):
        (turn,) = arrivals(payload, size, size)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        server.answerer.answer(turn)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
        del turn
        gc.collect()
        before = sys.getallocatedblocks()
        turns = arrivals(payload, size, REQUESTS)
        for turn in turns:
            server.answerer.answer(turn)
        del turns, turn
        gc.collect()
        blocks.append(sys.getallocatedblocks() - before)
    return int(statistics.median(peaks)), int(statistics.median(blocks))


async def run(console: Console) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as directory:
        mlp.write(Path(directory) / "model.onnx", 0)
        plain, hedged = [await start(Path(directory), hedged=hedged) for hedged in (False, True)]
    payload = request()
    table = Table(
        "requests a turn",
        "without, µs",
        "with a backup, µs",
        "difference, µs (quartiles)",
        "bytes at most, without / with",
        "blocks left of 1,024",
        box=None,
    )
    gc.disable()
    for size in BATCHES:
        times: list[tuple[float, float]] = []
        for i in range(ROUNDS + 3):
            first, second = (plain, hedged) if i % 2 else (hedged, plain)
            one, other = measure(first, payload, size), measure(second, payload, size)
            times.append((one, other) if i % 2 else (other, one))
            gc.collect()
        del times[:3]  # heads are learnt, caches filled
        without, beside = (statistics.median(column) for column in zip(*times, strict=True))
        differences = [other - one for one, other in times]
        low, middle, high = statistics.quantiles(differences, n=4)
        memory = [allocated(server, payload, size) for server in (plain, hedged)]
        table.add_row(
            str(size),
            f"{without:.2f}",
            f"{beside:.2f}",
            f"{middle:+.3f} ({low:+.3f} to {high:+.3f})",
            " / ".join(str(peak) for peak, _ in memory),
            " / ".join(str(left) for _, left in memory),
        )
    console.print(f"Processor time of one request, answered in its turn; medians of {ROUNDS} rounds")
    console.print(table)
    console.print(f"For one that is not: watched and let go in {_watched(hedged, payload):.2f} µs")
    for server in (plain, hedged):
        if server.hedger is not None:
            await server.hedger.close()
        await server.engine.close()


def _watched(server: Server, payload: bytes) -> float:
    """Microseconds to watch a call that a thread runs, and to forget it when it is answered in time."""
    hedger = server.hedger
    assert hedger is not None
    ((call,),) = arrivals(payload, 1, 1)
    server.answerer.answer([call])
    costs = []
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        for _ in range(REQUESTS):
            hedger.watch(call)
            hedger.ended(call)
        costs.append((time.thread_time_ns() - began) / REQUESTS / 1000)
    return statistics.median(costs)


def main() -> None:
    """Prints microseconds a request."""
    asyncio.run(run(Console()))


if __name__ == "__main__":
    main()
