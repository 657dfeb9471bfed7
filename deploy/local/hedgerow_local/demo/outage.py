"""A scene under load: PostgreSQL and Valkey die and come back; and what callers saw of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
from hedgerow_bench.records import OK, Records

from hedgerow_local.child import ChildFailed
from hedgerow_local.demo.plot_features import draw
from hedgerow_local.demo.prepare import STALE_TTL
from hedgerow_local.demo.stage import Contribution, SceneFailed, Stage

#: Seconds with PostgreSQL down before Valkey goes, too; with what is known too old; after both are back.
ALONE, TOO_OLD, AFTER = 4.0, 4.0, 8.0
#: Seconds in which features should be as fresh again as they were.
FRESH_WITHIN = 5.0
#: Before the kill, seconds that tell how fresh that was; and the part of it that is good enough.
BEFORE, ENOUGH = 5.0, 0.95


class Outage:
    """Kills the feature store, then the cache, and starts both again."""

    name = "outage"
    title = "Kill PostgreSQL, then Valkey, and start both again, under load"

    async def run(self, stage: Stage) -> Contribution:
        """Notes the marks from which `Account` computes the outage's numbers."""
        await self._kill(stage, "postgres", "known values turn stale")
        await asyncio.sleep(ALONE)
        await self._kill(stage, "valkey", "the server goes on with what its process remembers")
        too_old = stage.marks["postgres_killed"] + STALE_TTL
        await asyncio.sleep(too_old - asyncio.get_running_loop().time())
        stage.tell(f"No value may be older than {STALE_TTL:g} s: defaults from here on")
        await asyncio.sleep(TOO_OLD)
        stage.tell("Starting PostgreSQL and Valkey again")
        stage.mark("restarted")
        assert stage.stack is not None
        try:
            await asyncio.gather(stage.stack.start_again("postgres"), stage.stack.start_again("valkey"))
        except ChildFailed as error:
            raise SceneFailed(str(error)) from error
        stage.mark("restored")
        await asyncio.sleep(AFTER)
        return {}

    async def _kill(self, stage: Stage, part: str, consequence: str) -> None:
        assert stage.stack is not None
        stage.tell(f"kill -9 {part}: {consequence}", style="bold")
        stage.mark(f"{part}_killed")
        await stage.stack.kill_part(part)


def features_of(records: Records) -> dict[str, int]:
    """Right answers by how old their features were."""
    return dict(Counter(records.features[records.status == OK].tolist()))


def account_for_outage(stage: Stage, records: Records) -> dict[str, Any]:
    """Computes the outage's numbers, complains of what should not be, draws features.png."""
    outage = outage_numbers(records, stage.marks)
    stage.expect(outage["too_old"] == 0, f"{outage['too_old']} replies had values older than the views allow")
    stage.expect(outage["during"].get("stale", 0) > 0, "No reply was stale while PostgreSQL was down")
    stage.expect(outage["during"].get("default", 0) > 0, "No reply was made from defaults")
    stage.expect(
        outage["fresh_again_seconds"] < FRESH_WITHIN,
        f"Replies were not as fresh as before {FRESH_WITHIN:g} s after PostgreSQL and Valkey were back",
    )
    draw(records, stage.marks, stage.root / "features.png")
    return outage


def outage_numbers(records: Records, marks: dict[str, float]) -> dict[str, Any]:
    """The outage as callers saw it.

    Args:
        records: Every request.
        marks: `postgres_killed`, `valkey_killed`, `restarted` (when their starts began) and `restored`
            (when both were ready), in seconds of the records' clock.
    """
    killed, restored = marks["postgres_killed"], marks["restored"]
    sent, replied = records.scheduled + records.lag, records.scheduled + records.latency
    stale = replied[(records.features == "stale") & (replied >= killed)]
    # Nobody has asked the store since it was killed, so what is sent later than that finds no value.
    late = (sent > killed + STALE_TTL) & (replied < marks["restarted"])
    during = records.window(killed, restored)
    return {
        "first_stale_seconds": round(float(stale.min()) - killed, 3) if len(stale) else float("nan"),
        "during": features_of(during),
        "failed_during": during.failed,
        "p99_ms_during": during.percentiles_ms().get("p99"),
        "too_old": int(np.count_nonzero(late & np.isin(records.features, ("fresh", "stale")))),
        "restart_seconds": round(restored - marks["restarted"], 2),
        "fresh_again_seconds": round(_fresh_from(records, killed, restored) - restored, 3),
    }


def _fresh_from(records: Records, killed: float, restored: float) -> float:
    """When the first second began that had as many fresh replies as before the kill; infinite if none did.

    Not the last reply that is not fresh: on a busy machine one in some hundred finds the store slow
    at any time.
    """
    before = records.window(killed - BEFORE, killed)
    enough = ENOUGH * float(np.mean(before.features == "fresh"))
    after = records.window(restored, float("inf"))
    for start in after.scheduled.tolist():
        if start + 1 > float(after.scheduled[-1]):
            break
        if float(np.mean(after.window(start, start + 1).features == "fresh")) >= enough:
            return float(start)
    return float("inf")
