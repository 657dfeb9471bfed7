"""Starts a load generator in its own process, follows its news, gets its records."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from hedgerow_bench.cores import pinned
from hedgerow_bench.plan import Plan
from hedgerow_bench.records import Records
from hedgerow_bench.wire_plan import WirePlan

News = Mapping[str, Any]


class LoadError(Exception):
    """The load generator ended without records."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    records: Records
    #: Processor time the generator used, in parts of one core. Near 1 the
    #: generator was the limit, and its numbers tell about itself.
    cpu: float


class Load:
    """A load generator under way; an async context manager that never leaves it behind.

    Args:
        plan: What to do: a `Plan` for the generator that checks answers through
            the client library, a `WirePlan` for the fast one.
        tell: Called with each of the generator's news (see `generator`).
        cores: Where it runs; None: anywhere.
    """

    def __init__(
        self,
        plan: Plan | WirePlan,
        tell: Callable[[News], None] = lambda _news: None,
        *,
        cores: Sequence[int] | None = None,
    ) -> None:
        self._plan = plan
        self._tell = tell
        self._cores = cores
        self._process: asyncio.subprocess.Process | None = None
        self._follower: asyncio.Task[float] | None = None
        self._first_reply: dict[str, asyncio.Future[float]] = {}
        self.started = 0.0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        began: asyncio.Future[None] = loop.create_future()
        self._plan.records_path.parent.mkdir(parents=True, exist_ok=True)
        self._plan.records_path.unlink(missing_ok=True)
        module = "generator" if isinstance(self._plan, Plan) else "wire_generator"
        with pinned(self._cores):
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"hedgerow_bench.{module}",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Ctrl-C is for whoever started it; stdin's end stops it.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(self._plan.to_json().encode() + b"\n")
        self._follower = asyncio.create_task(self._follow(self._process, began))
        try:
            await asyncio.wait((began, self._follower), return_when=asyncio.FIRST_COMPLETED)
            if not began.done():
                await self._follower
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        assert self._process is not None
        assert self._follower is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._follower.cancel()
        await asyncio.gather(self._follower, return_exceptions=True)

    def first_reply(self, version: str) -> asyncio.Future[float]:
        """Resolves to the time of a version's first reply: seconds of the monotonic clock."""
        if version not in self._first_reply:
            self._first_reply[version] = asyncio.get_running_loop().create_future()
        return self._first_reply[version]

    async def finish(self, *, early: bool = False) -> Outcome:
        """Waits for the run's end and reads its records.

        Args:
            early: Stop sending now instead of at the planned end.

        Raises:
            LoadError: The generator failed; its stderr says why.
        """
        assert self._process is not None
        assert self._follower is not None
        if early and self._process.stdin is not None:
            self._process.stdin.close()
        cpu = await asyncio.shield(self._follower)
        records = await asyncio.to_thread(Records.read, self._plan.records_path)
        return Outcome(records, cpu)

    async def _follow(self, process: asyncio.subprocess.Process, began: asyncio.Future[None]) -> float:
        assert process.stdout is not None
        cpu: float | None = None
        while line := await process.stdout.readline():
            news = json.loads(line)
            match news["event"]:
                case "started":
                    self.started = news["at"]
                    began.set_result(None)
                case "version":
                    reply = self.first_reply(news["version"])
                    if not reply.done():
                        reply.set_result(news["at"])
                case "finished":
                    cpu = news["cpu"]
            self._tell(news)
        code = await process.wait()
        if code or cpu is None:
            raise LoadError(f"The load generator ended with code {code}; its messages are above.")
        return cpu
