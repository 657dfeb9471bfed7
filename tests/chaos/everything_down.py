"""The whole stack under load, one part after the other killed, and then the model fails too.

    PYTHONPATH=tests:tests/chaos python tests/chaos/everything_down.py

    the registry, the control plane, the cache, the store, the backup region die ─▶ the model answers
    requests come that it cannot compute ─▶ its rules answer, each in time and marked
    everything is started again, and a version published that can ─▶ that answers

Every reply is judged by its numbers; see fares.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import fares
import hedgerow
import numpy as np
from fares import MODEL, NEW_KINDS, STALE_TTL, Reply
from hedgerow import features
from hedgerow_bench import counters
from hedgerow_local.endpoints import Endpoints
from hedgerow_local.stack import Stack
from server_process import HANG_SECONDS

RATE = 60.0
#: Seconds that each request has.
DEADLINE = 2.0
#: In the order in which they die.
PARTS = ("mlflow", "control", "valkey", "postgres", "backup")
#: Seconds between two deaths.
PAUSE = 0.5
#: What is slow on a busy machine is not the outage that is tried: six times the default.
_SETTINGS = {"HEDGEROW_FEATURES__BUDGET_MS": "300"}

Holds = Callable[[Reply], bool]


class Rig:
    """The running stack and its callers; holds the replies so far, and when what happened."""

    def __init__(self, stack: Stack, callers: asyncio.subprocess.Process) -> None:
        self.stack = stack
        self.replies: list[Reply] = []
        #: Seconds of the monotonic clock, by what began then.
        self.marks: dict[str, float] = {}
        self._callers = callers
        self._follower = asyncio.create_task(self._follow())

    @property
    def endpoints(self) -> Endpoints:
        """Where the stack answers."""
        assert self.stack.endpoints is not None
        return self.stack.endpoints

    def mark(self, name: str) -> float:
        """Begins a phase."""
        self.marks[name] = time.monotonic()
        return self.marks[name]

    def ask_for(self, kinds: range) -> None:
        """Has the callers ask for other kinds from now on."""
        assert self._callers.stdin is not None
        self._callers.stdin.write(f"{kinds.start} {kinds.stop}\n".encode())

    async def until(self, holds: Holds, *, since: float, last: int = int(RATE / 2)) -> None:
        """Waits until the newest replies, all of requests sent later than `since`, are so."""
        end = time.monotonic() + HANG_SECONDS
        while True:
            newest = [reply for reply in self.replies[-last:] if reply.sent >= since]
            if len(newest) == last and all(holds(reply) for reply in newest):
                return
            assert not self._follower.done(), "the callers have ended"
            assert time.monotonic() < end, f"not in {HANG_SECONDS} s; the last: {self.replies[-3:]}"
            await asyncio.sleep(0.02)

    async def end(self) -> None:
        """Ends the callers, after their last replies."""
        assert self._callers.stdin is not None
        self._callers.stdin.close()
        await asyncio.wait_for(self._follower, HANG_SECONDS)
        assert await self._callers.wait() == 0

    async def _follow(self) -> None:
        assert self._callers.stdout is not None
        async for line in self._callers.stdout:
            self.replies.append(Reply(**json.loads(line)))

    def between(self, first: str, end: str = "") -> list[Reply]:
        """Replies to what was sent in a phase, up to another's begin."""
        until = self.marks[end] if end else float("inf")
        return [reply for reply in self.replies if self.marks[first] <= reply.sent < until]

    def wrong(self) -> list[str]:
        """What is wrong with replies: errors, other numbers, other marks."""
        return [f"{reply.problem}: {reply}" for reply in self.replies if reply.problem]

    def counted(self, name: str) -> float:
        """A counter of the primary's metrics page; blocks."""
        with urllib.request.urlopen(f"http://{self.endpoints.server_metrics}/metrics", timeout=10) as page:
            return counters.total(page.read().decode(), name)

    def logged(self) -> Counter[tuple[str, str]]:
        """Callers and rules in the primary's request log, with how many requests were answered so."""
        file = self.stack.root / "log" / "server-requests.log"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return Counter((line["user"], line["rule"]) for line in lines if line["outcome"] == "fallback")


@contextlib.asynccontextmanager
async def running(root: Path) -> AsyncIterator[Rig]:
    """The stack with version 1 served in both regions, and callers, whose answers are fresh."""
    async with Stack(root / "stack", ports="free", settings=_SETTINGS) as stack:
        assert stack.endpoints is not None
        view, values = fares.write_store(root)
        await asyncio.to_thread(features.apply, [view], store=stack.endpoints.store)
        at = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
        await asyncio.to_thread(features.load, fares.VIEW, values, store=stack.endpoints.store, at=at)
        await publish(root, stack.endpoints, 1)
        callers = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("fare_callers.py")),
            *(stack.endpoints.server, str(RATE), str(DEADLINE)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            rig = Rig(stack, callers)
            await rig.until(lambda reply: not reply.error and reply.features == "fresh", since=0.0)
            yield rig
        finally:
            if callers.returncode is None:
                callers.kill()
                await callers.wait()


async def publish(root: Path, endpoints: Endpoints, version: int) -> None:
    """Publishes a version as champion, and waits until both regions answer from it."""
    model = fares.write_model(root / f"v{version}" / "model.onnx", version)
    await asyncio.to_thread(
        hedgerow.publish, model, MODEL, registry_uri=endpoints.mlflow, serving=fares.SERVING
    )
    for target in (endpoints.server, endpoints.backup):
        await _until_served(target, str(version))


async def _until_served(target: str, version: str) -> None:
    inputs = {"route": np.array([fares.NOWHERE], object), "kind": np.zeros(1, np.float32)}
    end = time.monotonic() + HANG_SECONDS
    async with hedgerow.AsyncClient(target) as client:
        while True:
            with contextlib.suppress(hedgerow.HedgerowError):
                if (await client.infer(MODEL, inputs, timeout=2)).model_version == version:
                    return
            assert time.monotonic() < end, f"{target} does not answer from version {version}"
            await asyncio.sleep(0.05)


async def tell(rig: Rig, root: Path) -> None:
    """The story; marks `whole`, each part's death, `failing`, `restarting`, `restored`, `healed`."""
    rig.mark("whole")
    await asyncio.sleep(1)
    for part in PARTS:
        killed = rig.mark(part)
        await rig.stack.kill_part(part)
        await rig.until(lambda reply: reply.outcome in {"primary", "hedge"}, since=killed)
        await asyncio.sleep(PAUSE)
    failing = rig.mark("failing")
    rig.ask_for(NEW_KINDS)
    await rig.until(lambda reply: reply.outcome == "fallback", since=failing)
    # All that was known is too old in the end.
    too_old = rig.marks["postgres"] + STALE_TTL
    await rig.until(
        lambda reply: (reply.outcome, reply.features) == ("fallback", "default"),
        since=too_old,
        last=int(RATE),
    )
    restarting = rig.mark("restarting")
    async with asyncio.TaskGroup() as group:
        for part in PARTS:
            group.create_task(rig.stack.start_again(part))
    await rig.until(
        lambda reply: reply.features != "default" or reply.route == fares.NOWHERE, since=restarting
    )
    rig.mark("restored")
    await publish(root, rig.endpoints, 2)
    await rig.until(_is_well, since=rig.marks["restored"], last=int(RATE))
    rig.mark("healed")
    await asyncio.sleep(1)
    await rig.end()


def _is_known(reply: Reply) -> bool:
    return reply.features == ("default" if reply.route == fares.NOWHERE else "fresh")


def _is_well(reply: Reply) -> bool:
    return reply.version == "2" and reply.outcome in {"primary", "hedge"}


def figures(rig: Rig) -> dict[str, Any]:
    """How many requests there were in each phase, and who answered them."""
    names = [*rig.marks]
    found: dict[str, Any] = {"requests": len(rig.replies), "deadline_seconds": DEADLINE}
    for name, following in zip(names, [*names[1:], ""], strict=True):
        replies = rig.between(name, following)
        found[name] = {
            "requests": len(replies),
            "outcomes": Counter(reply.error or reply.outcome for reply in replies),
            "features": Counter(reply.features for reply in replies),
            "ms": _percentiles([reply.replied - reply.due for reply in replies]),
        }
    return found


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{at}": round(float(np.percentile(seconds, at)) * 1000, 1) for at in (50, 99, 100)}


async def main() -> None:
    """Prints the figures; exits with 1 if a reply was wrong or none."""
    with tempfile.TemporaryDirectory(prefix="hedgerow-") as directory:
        began = time.monotonic()
        async with running(Path(directory)) as rig:
            await tell(rig, Path(directory))
        print(json.dumps(figures(rig) | {"seconds": round(time.monotonic() - began, 1)}, indent=2))
        print("\n".join(rig.wrong()[:10]))
        sys.exit(bool(rig.wrong()))


if __name__ == "__main__":
    asyncio.run(main())
