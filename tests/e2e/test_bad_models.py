"""Bad versions, published past the client's checks: each fails with its reason, and no caller notices."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import zoo
from fleet_stack import MODEL, operator, published_stack, questions, until_served
from hedgerow_bench.load import Load
from hedgerow_bench.plan import Plan
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.hedgerow_control_pb2_grpc import OperatorStub
from mlflow import MlflowClient

#: Small, so that the endless ones end soon.
LIMITS = {
    "HEDGEROW_ARTIFACTS__TRIAL_MEMORY_BYTES": str(512 << 20),
    "HEDGEROW_ARTIFACTS__TRIAL_CPU_SECONDS": "3",
    "HEDGEROW_ARTIFACTS__TRIAL_WALL_SECONDS": "20",
}
#: For a busy machine: what is measured is that nobody waits for the bad versions.
FAILED_WITHIN = 60.0


@dataclass(frozen=True)
class Bad:
    """How a version's folder is made, and what its reason must say."""

    build: Callable[[Path], Path]
    says: str


def pickled(path: Path) -> Path:
    """As `mlflow.sklearn.log_model` leaves it: opened, this pickle would leave a file behind."""
    path.with_name("MLmodel").write_text(
        "flavors: {sklearn: {pickled_model: model.pkl}, python_function: {}}"
    )
    path.with_name("model.pkl").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % bytes(path.parent / "opened"))
    return path


BAD = {
    "truncated": Bad(zoo.truncated, "truncated"),
    "absolute path": Bad(
        lambda path: zoo.external(path, "/etc/hostname", write=False),
        "'/etc/hostname' is not a relative path",
    ),
    "parent folder": Bad(
        lambda path: zoo.external(path, "../../state.json", write=False),
        "'../../state.json' points outside the model's folder",
    ),
    "custom operator": Bad(zoo.custom_operator, "which ONNX Runtime"),
    "zipmap": Bad(zoo.zipmap, '"zipmap": False'),
    "never returns": Bad(zoo.never_returns, "more than 3 s of CPU time"),
    "allocates without end": Bad(zoo.allocates_without_end, "more than 512 MiB"),
    "pickled": Bad(pickled, "only ONNX is served"),
}


@pytest.mark.timeout(240)
async def test_bad_champions_fail_with_a_reason_and_the_good_version_answers_every_request(tmp_path: Path):
    async with published_stack(tmp_path, versions=1, **LIMITS) as stack:
        registry = MlflowClient(tracking_uri=stack.endpoints.mlflow, registry_uri=stack.endpoints.mlflow)
        plan = Plan(
            target=stack.endpoints.server,
            model=MODEL,
            inputs=str(questions(tmp_path, 1)),
            records=str(tmp_path / "records.npz"),
            rate=50.0,
            seconds=len(BAD) * FAILED_WITHIN,
        )
        async with operator(stack.endpoints.control) as control, Load(plan) as load:
            for name, bad in BAD.items():
                folder = tmp_path / name.replace(" ", "-")
                folder.mkdir()
                bad.build(folder / "model.onnx")
                version = await asyncio.to_thread(register, registry, folder)
                await asyncio.to_thread(registry.set_registered_model_alias, MODEL, "champion", version)
                reason = await until_failed(control, version)
                assert bad.says in reason, f"{name}: {reason}"
                assert not (folder / "opened").exists()
            outcome = await load.finish(early=True)
            # After all of them a good one goes through.
            good = tmp_path / "good"
            zoo.mlp(good / "model.onnx", seed=7)
            version = await asyncio.to_thread(register, registry, good)
            await asyncio.to_thread(registry.set_registered_model_alias, MODEL, "champion", version)
            await until_served(stack.endpoints.server, version)
    records = outcome.records
    assert len(records) > 100
    assert records.failed == 0
    assert set(records.version) == {"1"}


def register(registry: MlflowClient, folder: Path) -> str:
    """Registers a folder as it is, with MLflow's own calls."""
    run = registry.create_run("0")
    registry.log_artifacts(run.info.run_id, os.fspath(folder), "model")
    source = f"{run.info.artifact_uri}/model"
    return str(registry.create_model_version(MODEL, source, run.info.run_id).version)


async def until_failed(control: OperatorStub, version: str) -> str:
    """The reason why a version failed; routes lead to version 1 meanwhile."""
    async with asyncio.timeout(FAILED_WITHIN):
        while True:
            status = await control.GetStatus(pb.GetStatusRequest(), timeout=5)
            (model,) = status.models
            assert {route.version for route in model.routes} == {"1"}
            found = next((v for v in model.versions if v.version == version), None)
            if found is not None and found.stage == "failed":
                # The control plane itself found it, and no server ever heard of it.
                assert "refused by server" not in found.reason
                return found.reason
            await asyncio.sleep(0.1)
