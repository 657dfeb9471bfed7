"""Scenes before the load: train, start, publish the first version."""

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
from hedgerow_pipeline.features import INPUT, MODEL, NAMES, OUTPUT

from hedgerow_local.child import ChildFailed
from hedgerow_local.demo.stage import Contribution, SceneFailed, Stage
from hedgerow_local.mlflow_server import QUIET
from hedgerow_local.stack import Stack

#: Seconds in which a published version must be served; generous, for slow machines.
SERVED_WITHIN = 60.0


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
        arrays[INPUT] = sample[INPUT]
    for version in ("1", "2"):
        session = ort.InferenceSession(
            models / f"v{version}" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        arrays[f"expected:{version}:{OUTPUT}"] = session.run([OUTPUT], {INPUT: arrays[INPUT]})[0]
    np.savez(questions(models), **arrays)


class Start:
    """Starts the local stack on free ports."""

    name = "start"
    title = "Start MLflow, the control plane, a server and its backup region"

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


class PublishFirst:
    """Publishes version 1 as champion and waits until it answers."""

    name = "publish"
    title = "Publish version 1 to MLflow and give it the alias champion"

    async def run(self, stage: Stage) -> Contribution:
        """Reports how long it took from the alias to the first answer."""
        version = await publish(stage, 1, alias="champion")
        published = time.monotonic()
        stage.tell(f"Registered as version {version}; waiting for the servers")
        async with AsyncClient(stage.endpoints.server) as client:
            result = await _first_answer(client, stage)
        seconds = time.monotonic() - published
        minutes = float(result[OUTPUT].ravel()[0])
        stage.tell(f"Version {result.model_version} answers after {seconds:.2f} s: {minutes:+.1f} minutes")
        return {"publish": {"registered_to_served_ms": round(seconds * 1000, 1)}}


async def publish(stage: Stage, version: int, *, alias: str | None) -> str:
    """Publishes one of the trained versions; returns the number MLflow gave it."""
    os.environ.update(QUIET)
    # MLflow takes seconds to import; off the loop, which has news to print meanwhile.
    hedgerow_publish = await asyncio.to_thread(lambda: hedgerow.publish)

    with np.load(stage.models / "sample.npz") as sample:
        row = sample[INPUT][:1]
    published = await asyncio.to_thread(
        hedgerow_publish,
        stage.models / f"v{version}" / "model.onnx",
        MODEL,
        registry_uri=stage.endpoints.mlflow,
        alias=alias,
        serving={
            "batching": {"max_batch_size": 64},
            # Unknown weather is NaN, and the model was trained with it.
            "nan": {"inputs": "allow", "outputs": "reject"},
            "warmup": {
                "inputs": {INPUT: {"shape": [1, len(NAMES)], "values": np.nan_to_num(row).ravel().tolist()}}
            },
        },
        version_tags={"owner": "demo"},
    )
    return published.version


async def _first_answer(client: AsyncClient, stage: Stage) -> InferResult:
    with np.load(stage.models / "sample.npz") as sample:
        row = sample[INPUT][:1]
    deadline = time.monotonic() + SERVED_WITHIN
    while True:
        try:
            return await client.infer(MODEL, {INPUT: row}, timeout=2)
        except HedgerowError as error:
            if time.monotonic() > deadline:
                assert stage.stack is not None
                raise SceneFailed(
                    f"Version 1 was not served within {SERVED_WITHIN:.0f} s; the server says: {error}."
                    f" See {stage.stack.root}/log/control.log and server.log."
                ) from error
        await asyncio.sleep(0.02)
