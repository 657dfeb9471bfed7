"""Scenes before the load: train, start, load the features, publish the first version."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import hedgerow
import numpy as np
from hedgerow import AsyncClient, HedgerowError, InferResult
from hedgerow_pipeline.features import IDS, INPUT, MODEL, OUTPUT

from hedgerow_local.child import ChildFailed
from hedgerow_local.demo.stage import Contribution, SceneFailed, Stage
from hedgerow_local.mlflow_server import QUIET
from hedgerow_local.stack import Stack

#: Seconds in which a published version must be served; generous, for slow machines.
SERVED_WITHIN = 60.0
#: Of the views, in seconds. Short, so that an outage of half a minute shows all there is to see.
TTL, STALE_TTL = 2.0, 10.0


class Train:
    """Trains both versions in a process of their own, which gives its memory back."""

    name = "train"
    title = "Train two versions of an arrival-delay model on the flights of 2013"

    async def run(self, stage: Stage) -> Contribution:
        """Reports the scores of both versions on held-out days."""
        stage.tell("Starting scikit-learn in a process of its own")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hedgerow_pipeline",
            "--out",
            str(stage.models),
            "--ttl",
            f"{TTL:g}s",
            "--stale-ttl",
            f"{STALE_TTL:g}s",
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the demo, which then ends this.
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                stage.tell(line.decode().rstrip())
        finally:
            if process.returncode is None and not process.stdout.at_eof():
                process.kill()
            code = await process.wait()
        if code:
            raise SceneFailed(f"Training ended with exit code {code}; its messages are above.")
        report = json.loads((stage.models / "report.json").read_text())
        await asyncio.to_thread(_write_questions, stage.models)
        scores = ("version", "description", "mae", "rmse", "rows", "bytes", "onnx_difference_minutes")
        return {
            "model": {
                "name": MODEL,
                "unit": "minutes",
                "baseline": report["baseline"],
                "versions": [{key: entry[key] for key in scores} for entry in report["versions"]],
            }
        }


def questions(models: Path) -> Path:
    """The load's inputs, with what each version answers to them."""
    return models / "questions.npz"


def _write_questions(models: Path) -> None:
    import onnxruntime as ort  # noqa: PLC0415 - takes a second, needed only here

    arrays: dict[str, Any] = {}
    with np.load(models / "sample.npz") as sample:
        arrays |= {name: sample[name] for name in IDS}
        for version in ("1", "2"):
            session = ort.InferenceSession(
                models / f"v{version}" / "model.onnx", providers=["CPUExecutionProvider"]
            )
            # What scikit-learn trained on, as the views should give it.
            rows = sample[f"{INPUT}:{version}"]
            arrays[f"expected:{version}:{OUTPUT}"] = session.run([OUTPUT], {INPUT: rows})[0]
    np.savez(questions(models), **arrays)


class Start:
    """Starts the local stack on free ports."""

    name = "start"
    title = "Start MLflow, PostgreSQL, Valkey, the control plane, a server and its backup region"

    async def run(self, stage: Stage) -> Contribution:
        """Reports nothing but its time."""
        stack = Stack(
            stage.root / "stack", ports="free", tell=lambda name, line: stage.tell(f"{name}: {line}")
        )
        try:
            stage.stack = await stage.exits.enter_async_context(stack)
        except ChildFailed as error:
            raise SceneFailed(str(error)) from error
        return {}


class LoadFeatures:
    """Declares the feature views and loads their values."""

    name = "features"
    title = "Declare feature views and load what is known of planes, airports and hours"

    async def run(self, stage: Stage) -> Contribution:
        """Reports the rows of each view and how long they took."""
        from hedgerow import features  # noqa: PLC0415 - pyarrow takes a second, needed only here

        store, files = stage.endpoints.store, stage.models / "features"
        stage.tell("hedgerow features apply views.yaml", style="bold")
        try:
            views = await asyncio.to_thread(features.apply, [files / "views.yaml"], store=store)
            loaded = []
            for view in (applied.view for applied in views):
                (file,) = files.glob(f"{view}.*")
                stage.tell(f"hedgerow features load {view} {file.name}", style="bold")
                one = await asyncio.to_thread(features.load, view, file, store=store)
                stage.tell(f"{one.rows:,} rows in {one.seconds:.1f} s")
                loaded.append(one)
        except HedgerowError as error:
            raise SceneFailed(f"Features could not be loaded: {error}") from error
        return {
            "features": {
                "ttl_seconds": TTL,
                "stale_ttl_seconds": STALE_TTL,
                "loaded": {
                    one.view: {"rows": one.rows, "rows_per_second": round(one.rows_per_second)}
                    for one in loaded
                },
            }
        }


class PublishFirst:
    """Publishes version 1 as champion and waits until it answers."""

    name = "publish"
    title = "Publish version 1 to MLflow and give it the alias champion"

    async def run(self, stage: Stage) -> Contribution:
        """Reports how long it took from the alias to the first answer."""
        version = await publish(stage, 1, alias="champion")
        published = time.monotonic()
        stage.tell(f"Registered as version {version}; waiting for the servers")
        ids = _first_question(stage)
        async with AsyncClient(stage.endpoints.server) as client:
            result = await _first_answer(client, stage, ids)
            seconds = time.monotonic() - published
            # The first one may have been made from defaults: nobody had asked for these features before.
            while result.features != "fresh" and time.monotonic() < published + SERVED_WITHIN:
                await asyncio.sleep(0.1)
                result = await client.infer(MODEL, ids, timeout=2)
        minutes = float(result[OUTPUT].ravel()[0])
        said = ", ".join(f"{name} {column[0]}" for name, column in ids.items())
        stage.tell(f"Version {result.model_version} answers after {seconds:.2f} s: {said}")
        stage.tell(f"{minutes:+.1f} minutes, from {result.features} features", style="bold")
        return {"publish": {"registered_to_served_ms": round(seconds * 1000, 1)}}


async def publish(stage: Stage, version: int, *, alias: str | None) -> str:
    """Publishes what lies in `v1`, `v2` or so on; returns the number MLflow gave it."""
    os.environ.update(QUIET)
    # MLflow takes seconds to import; off the loop, which has news to print meanwhile.
    hedgerow_publish = await asyncio.to_thread(lambda: hedgerow.publish)

    published = await asyncio.to_thread(
        hedgerow_publish,
        stage.models / f"v{version}" / "model.onnx",
        MODEL,
        registry_uri=stage.endpoints.mlflow,
        alias=alias,
        serving=stage.models / f"v{version}" / "serving.yaml",
        version_tags={"owner": "demo"},
    )
    return published.version


def _first_question(stage: Stage) -> dict[str, Any]:
    with np.load(questions(stage.models)) as asked:
        return {name: asked[name][:1] for name in IDS}


async def _first_answer(client: AsyncClient, stage: Stage, ids: dict[str, Any]) -> InferResult:
    deadline = time.monotonic() + SERVED_WITHIN
    while True:
        try:
            return await client.infer(MODEL, ids, timeout=2)
        except HedgerowError as error:
            if time.monotonic() > deadline:
                assert stage.stack is not None
                raise SceneFailed(
                    f"Version 1 was not served within {SERVED_WITHIN:.0f} s; the server says: {error}."
                    f" See {stage.stack.root}/log/control.log and server.log."
                ) from error
        await asyncio.sleep(0.02)
