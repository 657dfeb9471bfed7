"""A scene with a version that fails: its rules answer in its place, until it is rolled back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hedgerow import AsyncClient, HedgerowError
from hedgerow_pipeline.features import IDS, INPUT, MODEL, OUTPUT, names

from hedgerow_local.demo.prepare import SERVED_WITHIN, publish, questions
from hedgerow_local.demo.stage import Contribution, SceneFailed, Stage
from hedgerow_local.demo.traffic import move_champion, roll_back

RATE, SECONDS = 50.0, 6.0
#: What version 3 says where it cannot compute: minutes by the hour of the day and what is known of it.
RULES = [
    {"name": "late_day", "when": "hour_of_day >= 17.0", "outputs": {OUTPUT: "12.0 + recent_delay / 2.0"}},
    {"name": "usual", "outputs": {OUTPUT: "recent_delay / 2.0"}},
]
#: Entries of the table in which version 3 looks the hour up. No flight leaves so early.
_HOURS = 5


class Fallback:
    """Publishes a version whose every run fails, watches the rules answer, and rolls back."""

    name = "fallback"
    title = "Publish a version that fails on every flight: its rules answer, until it is rolled back"

    async def run(self, stage: Stage) -> Contribution:
        """Reports how many requests the rules answered, and that none failed."""
        await asyncio.to_thread(_write_version_3, stage.models)
        version = await publish(stage, 3, alias=None)
        stage.tell(f"Version {version} looks the hour up in a table that ends at {_HOURS - 1} am")
        await asyncio.to_thread(move_champion, stage.endpoints.mlflow, version)
        stage.tell(f"champion -> {version}", style="bold")
        with np.load(questions(stage.models)) as asked:
            rows = {name: asked[name] for name in IDS}
        async with AsyncClient(stage.endpoints.server, retries=0) as client:
            await _until(client, rows, version)
            during = await _ask(client, rows)
            await roll_back(stage)
            after = await _ask(client, rows)
        _tell(stage, "Meanwhile", during)
        _tell(stage, "After the rollback", after)
        stage.expect(set(during) <= _RULE_OUTCOMES, f"Not all was answered by rules: {dict(during)}")
        # On a busy machine some take long enough to be hedged.
        stage.expect(
            set(after) <= {"primary", "hedge"}, f"After the rollback not all is as before: {dict(after)}"
        )
        return {
            "fallback": {
                "version": version,
                "requests": during.total(),
                "outcomes": dict(during),
                "outcomes_after_rollback": dict(after),
            }
        }


_RULE_OUTCOMES = {f"fallback: {rule['name']}" for rule in RULES}


async def _ask(client: AsyncClient, rows: dict[str, Any]) -> Counter[str]:
    """Asks at a fixed rate; how each request ended, with the rule where one answered."""
    count = int(RATE * SECONDS)
    start = time.monotonic()

    async def one(number: int) -> str:
        await asyncio.sleep(max(0.0, start + number / RATE - time.monotonic()))
        row = number % len(rows[IDS[0]])
        try:
            result = await client.infer(MODEL, {n: a[row : row + 1] for n, a in rows.items()}, timeout=2)
        except HedgerowError as error:
            return error.code.name
        outcome = str(result.parameters.get("hedgerow_outcome", "primary"))
        return f"{outcome}: {result.parameters['hedgerow_rule']}" if outcome == "fallback" else outcome

    return Counter(await asyncio.gather(*(one(number) for number in range(count))))


async def _until(client: AsyncClient, rows: dict[str, Any], version: str) -> None:
    """Waits for the first answer of a version, whoever gives it."""
    deadline = time.monotonic() + SERVED_WITHIN
    while time.monotonic() < deadline:
        try:
            result = await client.infer(MODEL, {n: a[:1] for n, a in rows.items()}, timeout=2)
        except HedgerowError as error:
            raise SceneFailed(f"A request failed while version {version} came in: {error}") from error
        if result.model_version == version:
            return
        await asyncio.sleep(0.05)
    raise SceneFailed(f"Version {version} did not answer within {SERVED_WITHIN:.0f} s")


def _tell(stage: Stage, when: str, outcomes: Counter[str]) -> None:
    said = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
    stage.tell(f"{when}: {outcomes.total():,} requests, {said}", style="bold")


def _write_version_3(models: Path) -> None:
    """Version 2 with a mistake that no warm-up finds, and rules beside it."""
    import onnx  # noqa: PLC0415 - publishing has imported it by now
    from onnx import helper, numpy_helper  # noqa: PLC0415

    directory = models / "v3"
    directory.mkdir()
    model = onnx.load(models / "v2" / "model.onnx")
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == OUTPUT:
                node.output[place] = "without_hours"
    hour = names(2).index("hour_of_day")
    constants = {"hour": np.array([hour]), "of_hours": np.zeros((_HOURS, 1), np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        (
            helper.make_node("Gather", [INPUT, "hour"], ["hour_column"], axis=1),
            helper.make_node("Cast", ["hour_column"], ["hour_index"], to=onnx.TensorProto.INT64),
            helper.make_node("GatherND", ["of_hours", "hour_index"], ["for_hour"]),
            helper.make_node("Add", ["without_hours", "for_hour"], [OUTPUT]),
        )
    )
    onnx.save(model, directory / "model.onnx")
    serving = yaml.safe_load((models / "v2" / "serving.yaml").read_text())
    serving["fallback"] = {"rules": RULES}
    (directory / "serving.yaml").write_text(yaml.safe_dump(serving, sort_keys=False))
