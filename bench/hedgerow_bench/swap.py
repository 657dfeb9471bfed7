"""Latency while versions change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hedgerow import AsyncClient

from hedgerow_bench import mlp
from hedgerow_bench.load import Load
from hedgerow_bench.plan import Plan
from hedgerow_bench.process import NotReady
from hedgerow_bench.records import Records, percentiles_ms
from hedgerow_bench.subject import write_questions
from hedgerow_bench.throughput import BUSY, Tell

#: Seconds in which a published version must answer.
SERVED_WITHIN = 60.0


async def swap(
    server: str, registry: str, moves: int, seconds: float, rate: float, directory: Path, tell: Tell
) -> dict[str, Any]:
    """Moves `champion` between two versions under load, evenly over the time.

    Args:
        server: gRPC address of a server whose control plane watches the registry.
        registry: MLflow's URI.
        moves: Number of alias moves.
        seconds: Length of the load.
        rate: Requests per second.
        directory: For files.
        tell: Hears the progress.

    Returns:
        Failures, latency, and `alias_to_served_ms`: from the start of the call that
        moves the alias to the first reply of the version it moved to.
    """
    model = f"bench-swap-{int(time.time())}"
    versions = await asyncio.to_thread(_publish_two, model, registry, directory)
    tell(f"{model}: versions {', '.join(versions)} registered")
    inputs = directory / "swap-inputs.npz"
    write_questions(inputs, {version: seed for seed, version in enumerate(versions)})
    await _until_served(server, model)
    plan = Plan(server, model, str(inputs), str(directory / "swap.npz"), rate=rate, seconds=seconds)
    moved: list[tuple[str, float]] = []
    async with Load(plan) as load:
        for number in range(moves):
            due = load.started + (number + 0.5) * seconds / moves
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            version = versions[(number + 1) % 2]
            moved.append((version, time.monotonic()))
            await asyncio.to_thread(_move, model, registry, version)
            tell(f"{number + 1}/{moves}: champion -> {version}")
        outcome = await load.finish()
    waits = alias_to_served(outcome.records, moved)
    return {
        "moves": moves,
        "moves_served": int(np.count_nonzero(np.isfinite(waits))),
        "alias_to_served_ms": percentiles_ms(waits[np.isfinite(waits)]),
        "generator_cpu": outcome.cpu,
        "generator_was_the_limit": outcome.cpu > BUSY,
    } | outcome.records.summary()


def alias_to_served(records: Records, moved: Sequence[tuple[str, float]]) -> Any:
    """Seconds from each move to the first reply of its version before the next move; inf if none.

    Args:
        records: Every request.
        moved: The version and the time of each move, in order.

    Returns:
        float64 [moves].
    """
    ends = [at for _, at in moved[1:]] + [float("inf")]
    waits = []
    for (version, at), end in zip(moved, ends, strict=True):
        replies = records.answered_by(version)
        replies = replies[(replies >= at) & (replies < end)]
        waits.append(float(replies.min()) - at if len(replies) else float("inf"))
    return np.asarray(waits)


def _publish_two(model: str, registry: str, directory: Path) -> list[str]:
    from hedgerow import publish  # noqa: PLC0415 - imports MLflow

    versions = []
    for seed, alias in ((0, "champion"), (1, None)):
        mlp.write(directory / f"swap-{seed}.onnx", seed)
        published = publish(directory / f"swap-{seed}.onnx", model, registry_uri=registry, alias=alias)
        versions.append(published.version)
    return versions


def _move(model: str, registry: str, version: str) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415

    MlflowClient(registry, registry).set_registered_model_alias(model, "champion", version)


async def _until_served(server: str, model: str) -> None:
    try:
        async with AsyncClient(server) as client, asyncio.timeout(SERVED_WITHIN):
            # The server has no call that waits for a model.
            while not await client.model_ready(model, timeout=2):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise NotReady(f"{model} was published, but not served within {SERVED_WITHIN:.0f} s") from None
