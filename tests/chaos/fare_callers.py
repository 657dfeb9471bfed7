"""Asks for fares at fixed times, whatever the answers do; a process of its own, so that nobody disturbs it.

    fare_callers.py HOST:PORT RATE SECONDS

gives each request so many seconds, and writes a line of JSON when it has ended; reads which kinds to ask for,
`FIRST END` a line, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

import hedgerow
import numpy as np
from fares import CALLER, DISTANCES, MODEL, OLD_KINDS, Reply

_ROUTES = tuple(DISTANCES)


class Callers:
    """Holds which kinds are asked for now."""

    def __init__(self, client: hedgerow.AsyncClient, out: TextIO) -> None:
        self.kinds: Sequence[int] = OLD_KINDS
        self._client = client
        self._out = out
        self._choose = random.Random(0)

    async def ask(self, due: float) -> None:
        """One request, and its line."""
        route, kind = self._choose.choice(_ROUTES), self._choose.choice(self.kinds)
        sent = time.monotonic()
        inputs = {"route": np.array([route], object), "kind": np.array([kind], np.float32)}
        try:
            result = await self._client.infer(MODEL, inputs, route_key=CALLER)
        except hedgerow.HedgerowError as error:
            reply = Reply(due, sent, time.monotonic(), route, kind, error.code.name)
        else:
            rule = str(result.parameters.get("hedgerow_rule", ""))
            said = (result.outcome, result.features or "", rule, result.model_version)
            reply = Reply(due, sent, time.monotonic(), route, kind, "", *said, result["fare"].item())
        self._out.write(json.dumps(asdict(reply)) + "\n")


async def main(target: str, rate: float, seconds: float) -> None:
    """Asks until the input ends; then waits for the last answers."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with (
        hedgerow.AsyncClient(target, timeout=seconds, retries=0) as client,
        asyncio.TaskGroup() as group,
    ):
        callers = Callers(client, sys.stdout)
        listening = group.create_task(_listen(reader, callers))
        start, number = time.monotonic(), 0
        while not listening.done():
            number += 1
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(callers.ask(due))


async def _listen(reader: asyncio.StreamReader, callers: Callers) -> None:
    while line := await reader.readline():
        callers.kinds = range(*map(int, line.split()))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a file
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
