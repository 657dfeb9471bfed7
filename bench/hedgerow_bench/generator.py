"""The load generator's process: a plan on stdin, news as JSON lines on stdout.

    {"event": "started", "at": 12.3}                          seconds of the monotonic clock
    {"event": "version", "version": "2", "at": 15.0}          first reply of a version
    {"event": "progress", "requests": 900, "failed": 0, ...}  every second
    {"event": "finished", "cpu": 0.31}                        the records are written

A line, or the end of stdin, stops the sending early; so it does not outlive
whoever started it. It is a process of its own because a generator that shares
an interpreter with anything else measures that, too.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from hedgerow import AsyncClient

from hedgerow_bench import closed_loop, open_loop
from hedgerow_bench.asking import Asker, Questions
from hedgerow_bench.plan import Plan
from hedgerow_bench.records import OK, Answer, Log, percentiles_ms
from hedgerow_bench.schedule import offsets

#: Seconds between the plan's arrival and the first request.
HEAD_START = 0.2


async def run(plan: Plan, stop: asyncio.Event) -> None:
    """Carries out a plan and writes its records."""
    loop = asyncio.get_running_loop()
    log = Log()
    seen: set[str] = set()
    cpu = time.process_time()
    # Retries would hide failures, and the time that they cost.
    async with AsyncClient(plan.target, timeout=plan.timeout, channels=plan.channels, retries=0) as client:
        ask = Asker(client, plan.model, Questions.read(Path(plan.inputs)), plan.timeout)

        async def ask_and_tell(number: int) -> Answer:
            answer = await ask(number)
            if answer.status == OK and answer.version not in seen:
                seen.add(answer.version)
                tell("version", version=answer.version, at=loop.time())
            return answer

        # Connections are made before the clock starts; the run is about requests.
        await client.live(timeout=plan.timeout)
        start = loop.time() + HEAD_START
        tell("started", at=start)
        progress = asyncio.create_task(_progress(log))
        try:
            if plan.mode == "closed":
                await closed_loop.drive(ask_and_tell, log, callers=plan.callers, until=start + plan.seconds)
            else:
                random = np.random.default_rng(plan.seed)
                due = start + offsets(plan.rate, plan.seconds, plan.arrivals, random)
                await open_loop.drive(
                    ask_and_tell,
                    due.tolist(),
                    log,
                    outstanding=plan.outstanding,
                    timeout=plan.timeout,
                    stop=stop,
                )
        finally:
            progress.cancel()
    log.records().save(plan.records_path)
    seconds = max(1e-9, loop.time() - start)
    tell("finished", cpu=round((time.process_time() - cpu) / seconds, 3))


async def _progress(log: Log) -> None:
    told = 0
    while True:
        await asyncio.sleep(1)
        now = len(log.status)
        statuses = log.status[:now]
        tell(
            "progress",
            requests=now,
            failed=now - statuses.count(OK),
            versions=dict(Counter(log.version[told:now])),
            features=dict(Counter(log.features[told:now])),
            latency_ms=percentiles_ms(np.asarray(log.latency[told:now])),
        )
        told = now


def tell(event: str, **facts: object) -> None:
    """Writes one line of news."""
    print(json.dumps({"event": event, **facts}), flush=True)


async def main() -> None:
    """Reads the plan, runs it, stops when told to."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    plan = Plan.from_json(await reader.readline())
    stop = asyncio.Event()

    async def listen() -> None:
        await reader.readline()
        stop.set()

    listener = asyncio.create_task(listen())
    await run(plan, stop)
    listener.cancel()


def loop_factory() -> asyncio.AbstractEventLoop:
    """A loop on select(2): epoll's timers are whole milliseconds, select's are microseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
