"""Servers without their control plane, without MLflow, and many of them on one registry."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import hedgerow
import numpy as np
import pytest
from fleet_stack import MODEL, operator, published_stack, questions, until_served
from hedgerow_bench.load import Load
from hedgerow_bench.plan import Plan
from hedgerow_protos import hedgerow_control_pb2 as pb


def _pid_of(child: object) -> int:
    process = child._process
    return int(process.pid)


@pytest.mark.timeout(180)
async def test_a_killed_control_plane_is_not_noticed_and_servers_boot_without_it(tmp_path: Path):
    """Kill -9 under load: no failed request. Then MLflow goes too, and a server restarts from its disk."""
    async with published_stack(tmp_path, versions=1) as stack:
        plan = Plan(
            target=stack.endpoints.server,
            model=MODEL,
            inputs=str(questions(tmp_path, 1)),
            records=str(tmp_path / "records.npz"),
            rate=300.0,
            seconds=10.0,
        )
        async with Load(plan) as load:
            await asyncio.sleep(3)
            for name in ("control", "mlflow"):
                os.kill(_pid_of(stack.children[name]), signal.SIGKILL)
            outcome = await load.finish()
        assert outcome.records.failed == 0
        assert len(outcome.records) > 2500

        before = await _ask(stack.endpoints.server)
        server = stack.children["server"]
        await server.stop()
        host, port = stack.endpoints.server.split(":")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hedgerow_server",
            "--grpc-port",
            port,
            "--http-port",
            "0",
            "--metrics-port",
            "0",
            env={
                **os.environ,
                "HEDGEROW_SERVER__HOST": host,
                "HEDGEROW_SERVER__CONTROL": stack.endpoints.control,
                "HEDGEROW_SERVER__STATE_DIR": str(stack.root / "server"),
                "HEDGEROW_LOG__REQUESTS": "off",
            },
        )
        try:
            await until_served(stack.endpoints.server, "1")
            after = await _ask(stack.endpoints.server)
            np.testing.assert_array_equal(after, before)
        finally:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.timeout(180)
async def test_registry_calls_do_not_grow_with_the_number_of_servers(tmp_path: Path):
    """The control plane alone asks MLflow, as often for four servers as for two."""
    async with published_stack(tmp_path, versions=1) as stack, operator(stack.endpoints.control) as control:
        two = await _registry_calls(control, seconds=6)
        more = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "hedgerow_server",
                *("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--workers", "2"),
                stdout=asyncio.subprocess.DEVNULL,
                env={
                    **os.environ,
                    "HEDGEROW_SERVER__CONTROL": stack.endpoints.control,
                    "HEDGEROW_SERVER__NODE": f"extra-{number}",
                    "HEDGEROW_SERVER__STATE_DIR": str(tmp_path / f"extra-{number}"),
                    "HEDGEROW_LOG__REQUESTS": "off",
                },
            )
            for number in range(2)
        ]
        try:
            while True:
                status = await control.GetStatus(pb.GetStatusRequest())
                if len([node for node in status.nodes if node.snapshot_version]) == 6:
                    break
                await asyncio.sleep(0.1)
            six = await _registry_calls(control, seconds=6)
        finally:
            for process in more:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in more))
        # Polls are jittered: a call more or less in six seconds.
        assert two >= 3
        assert six <= two + 3


async def _registry_calls(control: object, *, seconds: float) -> int:
    first = (await control.GetStatus(pb.GetStatusRequest())).registry.calls
    await asyncio.sleep(seconds)
    return int((await control.GetStatus(pb.GetStatusRequest())).registry.calls - first)


async def _ask(target: str) -> np.ndarray:
    async with hedgerow.AsyncClient(target) as client:
        return (await client.infer(MODEL, {"x": np.ones((1, 32), np.float32)}))["y"]
