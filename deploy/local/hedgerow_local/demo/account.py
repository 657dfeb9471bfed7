"""The last scene: stop the load, hold every request against what should have happened."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from hedgerow_bench.records import Records

from hedgerow_local.demo.outage import account_for_outage, features_of
from hedgerow_local.demo.plot import draw
from hedgerow_local.demo.stage import Contribution, SceneFailed, Stage

#: Seconds after the alias move that count as "during the swap", at least.
DURING = 5.0
#: A generator that needs more of a core than this is measured instead of the server.
BUSY_GENERATOR = 0.8


class Account:
    """Computes the numbers of report.json from the record of every request."""

    name = "account"
    title = "Count every request"

    async def run(self, stage: Stage) -> Contribution:
        """Reports requests, failures, versions, latencies, swap and rollback."""
        assert stage.load is not None
        outcome = await stage.load.finish(early=True)
        records, marks = outcome.records, stage.marks
        if not len(records):
            raise SceneFailed("The load generator sent nothing.")
        swap, rollback = swap_numbers(records, marks), rollback_numbers(records, marks)
        outage = await asyncio.to_thread(account_for_outage, stage, records)
        summary = records.summary()
        stage.expect(records.failed == 0, f"{records.failed} requests failed: {summary['statuses']}")
        stage.expect(
            sorted(summary["versions"]) == ["1", "2"],
            f"Versions 1 and 2 should answer, not {summary['versions']}",
        )
        stage.expect(
            rollback["sent_later_answered_by_bad_version"] == 0,
            "Version 2 answered requests sent after every server had acknowledged its retirement",
        )
        await asyncio.to_thread(
            draw, records, marks, swap["alias_to_served_ms"] / 1000, stage.root / "latency.png"
        )
        versions = ", ".join(f"{count:,} by version {name}" for name, count in summary["versions"].items())
        stage.tell(f"{len(records):,} requests, {records.failed} failed; answered {versions}")
        return {
            "requests": len(records),
            "failed": records.failed,
            "statuses": summary["statuses"],
            "versions_seen": sorted(summary["versions"]),
            "answers_by_version": summary["versions"],
            "latency_ms": summary["latency_ms"],
            "swap": swap,
            "rollback": rollback,
            "features": {"answers": features_of(records), "outage": outage},
            "load": {
                "generator_cpu": outcome.cpu,
                "generator_lag_ms": summary["generator_lag_ms"],
                "generator_was_the_limit": outcome.cpu > BUSY_GENERATOR,
            },
        }


def swap_numbers(records: Records, marks: dict[str, float]) -> dict[str, Any]:
    """The swap as callers saw it.

    Args:
        records: Every request.
        marks: `load_started`, `publish_started`, `alias_moved` (when the call to the registry
            began) and `rollback`, in seconds of the records' clock.
    """
    moved = marks["alias_moved"]
    new = records.answered_by("2")
    new = new[new >= moved]
    old = records.answered_by("1")
    old = old[(old >= moved) & (old < marks["rollback"])]
    served = float(new.min()) if len(new) else float("nan")
    before = records.window(marks["load_started"], marks["publish_started"])
    during_until = min(max(moved + DURING, served + 2), marks["rollback"])
    during = records.window(moved, during_until)
    return {
        "alias_to_served_ms": round((served - moved) * 1000, 1),
        "last_reply_of_old_version_ms": round((float(old.max()) - moved) * 1000, 1) if len(old) else None,
        "p99_ms_before": before.percentiles_ms().get("p99"),
        "p99_ms_during": during.percentiles_ms().get("p99"),
        "max_ms_during": during.percentiles_ms().get("max"),
        "seconds_before": round(marks["publish_started"] - marks["load_started"], 1),
        "seconds_during": round(during_until - moved, 1),
        "failed_during": during.failed,
    }


def rollback_numbers(records: Records, marks: dict[str, float]) -> dict[str, Any]:
    """The rollback as callers saw it: `ms` is from the command to the last reply of version 2."""
    command, acknowledged = marks["rollback"], marks["rollback_acknowledged"]
    bad = records.answered_by("2")
    bad = bad[bad >= command]
    # Sent after the acknowledgement, whenever they were due.
    sent_later = (records.scheduled + records.lag > acknowledged) & (records.version == "2")
    during = records.window(command, command + DURING)
    return {
        "ms": round((float(bad.max()) - command) * 1000, 1) if len(bad) else 0.0,
        "command_to_acknowledged_ms": round((acknowledged - command) * 1000, 1),
        "sent_later_answered_by_bad_version": int(np.count_nonzero(sent_later)),
        "p99_ms_during": during.percentiles_ms().get("p99"),
        "failed_during": during.failed,
    }
