"""The main job: versions change under load and nothing is lost. Figures go to var/e2e/swaps.json."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest
from fleet_stack import MODEL, operator, published_stack, questions, until_retired
from hedgerow_bench.load import Load
from hedgerow_bench.plan import Plan
from mlflow import MlflowClient

MOVES, SECONDS, RATE = 20, 60.0, 300.0


@pytest.mark.timeout(240)
async def test_twenty_alias_moves_under_load_lose_nothing(tmp_path: Path):
    """No failed request, no reply from a version after its acknowledged retirement, every number right."""
    lines = tmp_path / "requests.jsonl"
    async with published_stack(tmp_path, versions=3, HEDGEROW_LOG__REQUESTS=str(lines)) as stack:
        registry = MlflowClient(tracking_uri=stack.endpoints.mlflow, registry_uri=stack.endpoints.mlflow)
        plan = Plan(
            target=stack.endpoints.server,
            model=MODEL,
            inputs=str(questions(tmp_path, 3)),
            records=str(tmp_path / "records.npz"),
            rate=RATE,
            seconds=SECONDS + 120,  # it is finished early; a slow machine may take longer
        )
        moves: list[tuple[float, str, str]] = []
        retired: list[tuple[float, str, float]] = []
        async with operator(stack.endpoints.control) as control, Load(plan) as load:
            started = time.monotonic()
            champion = "1"
            for move in range(MOVES):
                # 1, 2, 3, 1, ...: some versions are still in memory, some were dropped meanwhile.
                version = str(int(champion) % 3 + 1)
                at = time.monotonic()
                await asyncio.to_thread(registry.set_registered_model_alias, MODEL, "champion", version)
                moves.append((at, champion, version))
                acknowledged = await until_retired(control, champion)
                next_move = started + (move + 1) * SECONDS / MOVES
                # Also on a machine that is late, long enough for the new version's first reply.
                await asyncio.sleep(max(1.0, next_move - time.monotonic()))
                retired.append((acknowledged, champion, time.monotonic()))
                champion = version
            outcome = await load.finish(early=True)
    records = outcome.records
    ended = records.scheduled + records.latency

    assert len(records) > RATE * SECONDS * 0.9
    assert records.failed == 0, np.unique(records.status, return_counts=True)
    # By the servers' own logs: a client sees a reply some milliseconds after it was given.
    wall = time.time() - time.monotonic()
    answered = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(answered) >= len(records)
    for acknowledged, version, until in retired:
        late = [
            line["time"] - wall - acknowledged
            for line in answered
            if line["version"] == version and acknowledged < line["time"] - wall < until
        ]
        assert not late, f"replies of version {version} so long after its retirement: {late}"

    served_ms = []
    for (at, _, version), (_, _, until) in zip(moves, retired, strict=True):
        replies = ended[(records.version == version) & (ended > at) & (ended < until)]
        assert replies.size, f"version {version} never answered after its move"
        served_ms.append(round((float(replies.min()) - at) * 1000, 1))
    assert max(served_ms) < 10_000
    report = {
        "requests": len(records),
        "failed": records.failed,
        "moves": MOVES,
        "alias_to_first_reply_ms": {
            "p50": float(np.percentile(served_ms, 50)),
            "p99": float(np.percentile(served_ms, 99)),
            "max": max(served_ms),
        },
        "alias_to_retirement_acknowledged_ms": {
            "max": round(
                max((a - at) * 1000 for (at, _, _), (a, _, _) in zip(moves, retired, strict=True)), 1
            )
        },
        "latency_ms": records.percentiles_ms(),
    }
    _save(report)


def _save(report: dict[str, object]) -> None:
    path = Path("var/e2e/swaps.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
