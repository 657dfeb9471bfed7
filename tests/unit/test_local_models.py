"""Models from the command line: when they count as there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec, Snapshot
from hedgerow_server.engine.desired import SnapshotRefused
from hedgerow_server.errors import FailedPrecondition
from hedgerow_server.routing.local_models import LocalModels


async def _passes(directory: Path, path: str, serving: ServingSpec) -> str:
    del directory, path, serving
    return ""


async def test_they_are_complete_only_when_they_are_in_force(tmp_path: Path) -> None:
    """Until then /health/ready says 503: passing the trial is not being loaded."""
    local = LocalModels({"m": tmp_path / "m.onnx"}, _passes)
    loaded = asyncio.Event()
    asked: list[Snapshot] = []

    async def apply(snapshot: Snapshot) -> None:
        asked.append(snapshot)
        await loaded.wait()

    loading = asyncio.create_task(local.load_all(apply))
    while not asked:  # noqa: ASYNC110  a turn of the loop at a time
        await asyncio.sleep(0)
    assert not local.complete
    loaded.set()
    await loading
    assert local.complete
    await local.unload("m")
    assert local.complete


async def test_they_are_not_complete_when_the_load_was_refused(tmp_path: Path) -> None:
    """A model may pass the trial and still not fit beside the others."""
    local = LocalModels({"m": tmp_path / "m.onnx"}, _passes)

    async def apply(snapshot: Snapshot) -> None:
        raise SnapshotRefused("no memory left", snapshot.models[0].name, "1")

    with pytest.raises(FailedPrecondition, match="no memory left"):
        await local.load_all(apply)
    assert not local.complete
