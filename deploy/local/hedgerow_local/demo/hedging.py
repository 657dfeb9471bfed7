"""A scene of two servers that stall: what hedging to the backup region makes of the tail."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from hedgerow_bench import counters
from hedgerow_bench.load import Load
from hedgerow_bench.plan import Plan
from hedgerow_bench.records import Records
from hedgerow_pipeline.features import MODEL

from hedgerow_local.child import ChildFailed
from hedgerow_local.demo.plot_hedging import draw
from hedgerow_local.demo.prepare import questions
from hedgerow_local.demo.stage import Contribution, SceneFailed, Stage

RATE, SECONDS = 250.0, 16.0
STALL_PERCENT, STALL_MS = 1, 500
#: Hedges for each hundred requests: the server's default budget.
BUDGET_PERCENT = 2.0
#: Requests before the first that counts: connections open, and features come into the process.
WARM_UP_SECONDS = 2.0


class Hedging:
    """Asks two servers at once that both stall now and then; one of them hedges."""

    name = "hedging"
    title = f"Stall {STALL_PERCENT} % of calls for {STALL_MS} ms, with and without hedging to the backup"

    async def run(self, stage: Stage) -> Contribution:
        """Reports both tails, and the requests that the backup got, as it counted them."""
        assert stage.stack is not None
        stalling = {
            "HEDGEROW_FAULT__DELAY_PERCENT": str(STALL_PERCENT),
            "HEDGEROW_FAULT__DELAY_MS": str(STALL_MS),
        }
        hedging = {"HEDGEROW_HEDGE__BACKUPS": stage.endpoints.backup, "HEDGEROW_HEDGE__ADAPTIVE": "true"}
        try:
            without, hedged = await asyncio.gather(
                stage.stack.add_server("stalling", "east", stalling),
                stage.stack.add_server("hedging", "east", {**stalling, **hedging}),
            )
        except ChildFailed as error:
            raise SceneFailed(str(error)) from error
        stage.tell(f"{RATE:.0f} requests a second to each, for {SECONDS:.0f} s")
        before = await counters.read(stage.endpoints.backup_metrics)
        runs = await self._ask(stage, {"without": without["grpc"], "with": hedged["grpc"]})
        after = await counters.read(stage.endpoints.backup_metrics)
        for name in ("stalling", "hedging"):
            await stage.stack.stop_server(name)
        extra = (after.statuses - before.statuses).total()
        sent = len(runs["with"])
        warm = {name: _warm(records) for name, records in runs.items()}
        tails = {name: records.percentiles_ms() for name, records in warm.items()}
        stalled = {name: int((r.latency >= STALL_MS / 1000).sum()) for name, r in warm.items()}
        await asyncio.to_thread(draw, warm, stage.root / "hedging.png")
        for name, records in runs.items():
            tail = tails[name]
            stage.expect(records.failed == 0, f"{records.failed} requests {name} hedging failed")
            stage.tell(
                f"{name} hedging: p50 {tail['p50']:.1f} ms, p99 {tail['p99']:.1f} ms,"
                f" p99.9 {tail['p99_9']:.0f} ms"
            )
        more = 100 * extra / sent
        stage.tell(f"The backup got {extra} of {sent:,} requests: {more:.2f} % more work", style="bold")
        stage.expect(
            stalled["with"] < stalled["without"],
            f"Hedging did not shorten the tail: {stalled} requests took as long as a stall",
        )
        stage.expect(
            extra <= sent * BUDGET_PERCENT / 100 + 10,
            f"The backup got {extra} hedges for {sent} requests; the budget is {BUDGET_PERCENT:g} % and 10",
        )
        return {
            "hedging": {
                "stalled_percent": STALL_PERCENT,
                "stall_ms": STALL_MS,
                "latency_ms": tails,
                "as_long_as_a_stall": stalled,
                "requests": sent,
                "hedges_at_backup": extra,
                "extra_percent": round(more, 3),
            }
        }

    async def _ask(self, stage: Stage, targets: dict[str, str]) -> dict[str, Records]:
        async with AsyncExitStack() as exits:
            loads: dict[str, Any] = {
                name: await exits.enter_async_context(
                    Load(
                        Plan(
                            target=target,
                            model=MODEL,
                            inputs=str(questions(stage.models)),
                            records=str(stage.root / f"hedging-{name}.npz"),
                            rate=RATE,
                            seconds=SECONDS,
                        )
                    )
                )
                for name, target in targets.items()
            }
            return {name: (await load.finish()).records for name, load in loads.items()}


def _warm(records: Records) -> Records:
    return records.window(float(records.scheduled[0]) + WARM_UP_SECONDS, float("inf"))
