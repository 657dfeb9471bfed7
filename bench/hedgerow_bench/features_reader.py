"""A reader of features in a process of its own, which obeys orders: Hedgerow's join, or Feast."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hedgerow_bench.cores import pinned
from hedgerow_bench.process import NotReady

#: A run's latencies are one line.
_LONGEST_LINE = 64 * 1024**2
_GRACE = 10.0


class Reader:
    """A running reader.

    Args:
        process: With orders on its stdin, and answers on its stdout.
        name: For people.
        log: Where its stderr goes.
    """

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    async def carry_out(self, within: float, **order: Any) -> Mapping[str, Any]:
        """Gives an order and waits for its answer.

        Args:
            within: Seconds that this may take, beside the order's own.
            order: See `features_join`.

        Raises:
            NotReady: It ended or was silent; says its last line.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # the answer tells
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
        return await self.answer(within + order["seconds"])

    async def answer(self, within: float) -> Mapping[str, Any]:
        """The next line; raises as `carry_out`."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise NotReady(f"{self.name} did not answer within {within:.0f} s (see {self._log})") from None
        if not line:
            said = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()]
            raise NotReady(f"{self.name} ended: {said[-1][:300] if said else f'see {self._log}'}")
        found: dict[str, Any] = json.loads(line)
        return found


@asynccontextmanager
async def reading(
    name: str, command: Sequence[str], log: Path, cores: Sequence[int], environment: Mapping[str, str]
) -> AsyncIterator[Reader]:
    """Starts a reader on these cores, waits until it is ready, and ends it.

    Raises:
        NotReady: It did not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file, pinned(cores):
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            env=dict(environment),
            limit=_LONGEST_LINE,
            # Ctrl-C is for whoever started it; stdin's end stops it.
            start_new_session=True,
        )
    try:
        reader = Reader(process, name, log)
        await reader.answer(90.0)
        yield reader
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_GRACE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
