"""A server whose features come from a PostgreSQL and a Valkey that die: what every reply may hold, and did.

The view's one field counts writes: a writer raises it all the time and notes when, so a reply's
number tells when the store can have said it last, and whether that is longer ago than the view allows.

    PYTHONPATH=tests python tests/chaos/feature_outages.py --seconds 60

kills and starts both every second for a minute, with the bounds of docs/features.md in force.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import json
import random
import struct
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import hedgerow
import numpy as np
import zoo
from feature_store import Postgres, Valkey
from hedgerow import features
from server_process import HANG_SECONDS, ServerProcess, start_server

MODEL, VIEW = "count", "beat@1"
ENTITIES = tuple(f"entity-{number}" for number in range(20))
#: Seconds, of the view.
TTL, STALE_TTL = 0.4, 2.5
#: In the reply where nothing young enough is known.
DEFAULT = -1.0
RATE, WRITES = 120.0, 25.0
#: Seconds by which the clocks of two processes may differ, and a number's time may be late.
CLOCKS = 0.03

#: Of a connection to PostgreSQL.
_FAILED = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

_SERVING = f"""
features:
  views:
    - name: beat
      version: 1
      entity: [{{name: entity, datatype: BYTES}}]
      fields: [{{name: count, datatype: FP64, default: {DEFAULT}}}]
      ttl: {TTL}
      stale_ttl: {STALE_TTL}
  inputs:
    - {{input: x, columns: [{{view: {VIEW}}}]}}
"""


@dataclass(slots=True)
class Reply:
    """What a caller got: `error`, or how old the features were and a number for each entity."""

    sent: float
    replied: float
    error: str = ""
    features: str = ""
    counts: tuple[float, ...] = ()


class Part(Protocol):
    """PostgreSQL or Valkey."""

    def start(self) -> None: ...
    def kill(self) -> None: ...


@dataclass
class Rig:
    """The running whole: the server, what it asks, the writer, and the callers' replies so far."""

    server: ServerProcess
    postgres: Postgres
    valkey: Valkey
    dsn: str
    replies: list[Reply] = field(default_factory=list)
    #: When the n-th write was begun, and when it was there; infinite if nobody knows.
    begun: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    #: The writer is to end.
    over: bool = False
    #: The writer and the callers.
    at_work: list[asyncio.Task[None]] = field(default_factory=list)
    #: When PostgreSQL was up: from its start to the end of its killing.
    up: list[list[float]] = field(default_factory=lambda: [[time.monotonic(), float("inf")]])

    async def kill(self, part: Part) -> float:
        """Kill -9; returns when it was begun: seconds of the monotonic clock."""
        at = time.monotonic()
        await asyncio.to_thread(part.kill)
        if part is self.postgres:
            self.up[-1][1] = time.monotonic()
        return at

    async def start(self, part: Part) -> float:
        """Starts it again; returns when it was ready."""
        if part is self.postgres:
            self.up.append([time.monotonic(), float("inf")])
        await asyncio.to_thread(part.start)
        return time.monotonic()

    async def until(self, holds: Callable[[Reply], bool], *, since: float, last: int = 1) -> float:
        """Waits until the newest replies, all sent later than `since`, are so; returns when that began.

        Args:
            holds: Whether a reply is as wanted.
            since: Seconds of the monotonic clock.
            last: How many replies.
        """
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            newest = [reply for reply in self.replies[-last:] if reply.sent >= since]
            if len(newest) == last and all(holds(reply) for reply in newest):
                return newest[0].replied
            for task in self.at_work:
                assert not task.done(), f"{task.get_name()} ended: {task}"
            said = f"not in {HANG_SECONDS} s; the last: {self.replies[-3:]}"
            assert time.monotonic() < deadline, f"{said}; the server: {self.server.messages()[-3000:]}"
            await asyncio.sleep(0.01)

    async def until_fresh(self, since: float) -> float:
        """Waits until all replies of half a second are fresh; returns when that half second began."""
        return await self.until(lambda reply: reply.features == "fresh", since=since, last=int(RATE / 2))

    def errors(self) -> dict[str, int]:
        """Failed requests by what went wrong."""
        return dict(Counter(reply.error for reply in self.replies if reply.error))

    def ages(self, since: float = 0.0, until: float = float("inf")) -> dict[str, int]:
        """Replies by how old they say their features are, of those sent in a time."""
        return dict(Counter(reply.features for reply in self.replies if since <= reply.sent < until))

    def wrong(self) -> list[str]:
        """Replies that hold a value older than they may, or say it is younger than it is."""
        return [problem for reply in self.replies if not reply.error for problem in self._judge(reply)]

    def _judge(self, reply: Reply) -> list[str]:
        bound = {"fresh": TTL, "stale": STALE_TTL, "default": STALE_TTL}.get(reply.features)
        if bound is None:
            return [f"says {reply.features!r}"]
        found = []
        for count in reply.counts:
            if count == DEFAULT:
                if reply.features != "default":
                    found.append(f"a default in a reply that says {reply.features}")
                continue
            age = reply.sent - self._last_said(int(count), reply.sent)
            if age > bound + CLOCKS:
                found.append(
                    f"write {count:.0f}, {age:.3f} s old at least, in a reply that says {reply.features}"
                )
        return found

    def _last_said(self, write: int, until: float) -> float:
        """The last time up to `until` at which the store can have answered with a write."""
        following = min(self.done[write + 1 :], default=float("inf"))
        latest = min(until, following)
        place = bisect.bisect(self.up, [latest, float("inf")]) - 1
        return min(latest, self.up[place][1])

    def metric(self, freshness: str) -> float:
        """The server's count of reads by freshness."""
        with urllib.request.urlopen(f"http://{self.server.metrics}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        wanted = [
            line
            for line in lines
            if line.startswith("hedgerow_feature_reads_total{") and f'freshness="{freshness}"' in line
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in wanted)

    async def metric_grows(self, freshness: str, beyond: float) -> float:
        """Waits until the server has counted more such reads; returns when that was."""
        deadline = time.monotonic() + HANG_SECONDS
        while await asyncio.to_thread(self.metric, freshness) <= beyond:
            assert time.monotonic() < deadline, f"no {freshness} reads counted in {HANG_SECONDS} s"
            await asyncio.sleep(0.02)
        return time.monotonic()

    async def _write(self) -> None:
        """Raises the count of all entities, again and again; while nobody answers, it tries."""
        connection: asyncpg.Connection[Any] | None = None
        while not self.over:
            try:
                if connection is None:
                    connection = await asyncpg.connect(self.dsn, timeout=2)
                row = struct.pack("<d", len(self.begun))
                self.begun.append(time.monotonic())
                self.done.append(float("inf"))
                await connection.execute(
                    'UPDATE feature_values SET "values" = $1, event_time = now()', row, timeout=2
                )
                self.done[-1] = time.monotonic()
            except (*_FAILED, asyncpg.InternalClientError):
                # The last of these is also what asyncpg makes of being cancelled on a dead connection.
                if connection is not None:
                    connection.terminate()
                connection = None
            await asyncio.sleep(1 / WRITES)

    async def _call(self) -> None:
        """Asks at fixed times, whatever the answers do."""
        choose = random.Random(0)
        async with hedgerow.AsyncClient(self.server.grpc, retries=0) as client, asyncio.TaskGroup() as group:
            due = time.monotonic()
            while True:
                due += 1 / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self._ask(client, choose.sample(ENTITIES, choose.randint(1, 4))))

    async def _ask(self, client: hedgerow.AsyncClient, entities: list[str]) -> None:
        sent = time.monotonic()
        try:
            result = await client.infer(MODEL, {"entity": np.array(entities)}, timeout=5)
        except hedgerow.HedgerowError as error:
            self.replies.append(Reply(sent, time.monotonic(), error=str(error)))
            return
        counts = tuple(result["y"].ravel().tolist())
        assert len(counts) == len(entities)
        self.replies.append(Reply(sent, time.monotonic(), "", result.features or "", counts))


@contextlib.asynccontextmanager
async def running(directory: Path, postgres: Postgres, valkey: Valkey, **settings: Any) -> AsyncIterator[Rig]:
    """A server with a model bound to the view, a writer and callers at work; all replies are fresh."""
    model = directory / "model"
    model.mkdir()
    zoo.identity(model / "model.onnx", "FP64", ("batch", 1))
    (model / "serving.yaml").write_text(_SERVING)
    (directory / "views.yaml").write_text(json.dumps(_view()))
    (directory / "values.csv").write_text("entity,count\n" + "".join(f"{name},0\n" for name in ENTITIES))
    dsn = await asyncio.to_thread(postgres.new_database)
    await asyncio.to_thread(features.apply, [directory / "views.yaml"], store=dsn)
    await asyncio.to_thread(_load, directory / "values.csv", dsn)
    flags = {"features__store": dsn, "features__cache": valkey.url, **settings}
    server = await asyncio.to_thread(start_server, directory, {MODEL: model}, flags)
    rig = Rig(server, postgres, valkey, dsn)
    try:
        writing = asyncio.create_task(rig._write(), name="the writer")
        calling = asyncio.create_task(rig._call(), name="the callers")
        rig.at_work = [writing, calling]
        try:
            await rig.until_fresh(since=0.0)
            yield rig
        finally:
            rig.over = True
            for task in (calling, writing):
                task.cancel()
            ended = await asyncio.gather(calling, writing, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in ended), ended
    finally:
        server.terminate()
        code = await asyncio.to_thread(server.wait)
        assert server.process.stdout is not None
        server.process.stdout.close()
    assert code == 0, server.messages()


def _view() -> dict[str, Any]:
    return {
        "name": "beat",
        "version": 1,
        "entity": [{"name": "entity", "datatype": "BYTES"}],
        "fields": [{"name": "count", "datatype": "FP64", "default": DEFAULT}],
        "ttl": TTL,
        "stale_ttl": STALE_TTL,
    }


def _load(path: Path, dsn: str) -> None:
    import datetime as dt

    features.load(VIEW, path, store=dsn, at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))


async def flap(rig: Rig, parts: list[Part], seconds: float, *, every: float = 1.0) -> float:
    """Kills all parts, starts them a period later, and so on; returns when they were up for good."""
    until = time.monotonic() + seconds
    is_up = True
    ready = time.monotonic()
    while time.monotonic() < until or not is_up:
        if is_up:
            await asyncio.gather(*(rig.kill(part) for part in parts))
        else:
            ready = max(await asyncio.gather(*(rig.start(part) for part in parts)))
        is_up = not is_up
        await asyncio.sleep(every)
    return ready


async def soak(seconds: float) -> dict[str, Any]:
    """Each outage once with its times, then flapping; what docs/features.md reports."""
    found: dict[str, Any] = {"ttl_seconds": TTL, "stale_ttl_seconds": STALE_TTL, "requests_per_second": RATE}
    with (
        tempfile.TemporaryDirectory(prefix="hedgerow-") as directory,
        contextlib.closing(Postgres()) as postgres,
        contextlib.closing(Valkey()) as valkey,
    ):
        postgres.start()
        valkey.start()
        async with running(Path(directory), postgres, valkey) as rig:
            for name, parts in {
                "PostgreSQL": [postgres],
                "Valkey": [valkey],
                "both": [postgres, valkey],
            }.items():
                found[name] = await _outage(rig, parts)
            began = time.monotonic()
            ready = await flap(rig, [postgres, valkey], seconds)
            fresh = await rig.until_fresh(ready)
            found["flapping"] = {
                "seconds": seconds,
                "replies": rig.ages(began, ready),
                "fresh_again_seconds": round(max(0.0, fresh - ready), 3),
            }
        found |= {"requests": len(rig.replies), "errors": rig.errors(), "wrong": rig.wrong()[:10]}
    return found


async def _outage(rig: Rig, parts: list[Part]) -> dict[str, Any]:
    before = await asyncio.to_thread(rig.metric, "stale")
    killed = min(await asyncio.gather(*(rig.kill(part) for part in parts)))
    times = {}
    if rig.postgres in parts:
        metric = asyncio.create_task(rig.metric_grows("stale", before))
        stale = await rig.until(lambda reply: reply.features == "stale", since=killed)
        times = {"first_stale_seconds": stale - killed, "metric_seconds": await metric - killed}
        default = await rig.until(lambda reply: reply.features == "default", since=killed)
        times["first_default_seconds"] = default - killed
    await asyncio.sleep(1)
    ready = max(await asyncio.gather(*(rig.start(part) for part in parts)))
    fresh = await rig.until_fresh(ready)
    times["fresh_again_seconds"] = max(0.0, fresh - ready)
    return {name: round(value, 3) for name, value in times.items()} | {"replies": rig.ages(killed, ready)}


def main() -> None:
    """Prints the figures; exits with 1 if a request failed, a value was too old, or it took too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of flapping")
    found = asyncio.run(soak(parser.parse_args().seconds))
    print(json.dumps(found, indent=2))
    outages = [found[name] for name in ("PostgreSQL", "Valkey", "both", "flapping")]
    slow = [one for one in outages if one["fresh_again_seconds"] > 5 or one.get("metric_seconds", 0) > 1]
    sys.exit(bool(found["errors"] or found["wrong"] or slow))


if __name__ == "__main__":
    main()
