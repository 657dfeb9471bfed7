"""The control plane as a process: started wrong, cut off, killed, and hinted at."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time

import grpc
import pytest
import pytest_asyncio
from control_plane import (
    HANG,
    ControlPlane,
    PlayedServer,
    champion,
    forwarded,
    free_port,
    shared_mlflow,
    tiny_model,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hedgerow_control.registry import webhook
from hedgerow_protos import hedgerow_control_pb2 as pb

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def mlflow():
    return shared_mlflow()


@pytest.fixture
def model(mlflow):
    """A served model, version 1 champion, version 2 beside it."""
    name = mlflow.model()
    for factor in (1, 2):
        mlflow.version(name, {"model.onnx": tiny_model(factor)})
    mlflow.champion(name, "1")
    yield name
    mlflow.retire(name)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(mlflow, tmp_path_factory):
    """A control plane for the tests that leave it as it was."""
    async with ControlPlane(mlflow.uri, tmp_path_factory.mktemp("control")) as control:
        yield control


async def start(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """Runs hedgerow-control until it ends by itself; its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hedgerow_control", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment or None,
    )
    said, _ = await asyncio.wait_for(process.communicate(), HANG)
    return process.returncode, said.decode()


async def test_an_unknown_key_is_named_with_the_right_one(tmp_path):
    config = tmp_path / "hedgerow.toml"
    config.write_text("[registry]\npol_seconds = 2\n")
    code, said = await start("--config", str(config))
    assert code == 2
    assert "did you mean 'poll_seconds'?" in said
    assert "Traceback" not in said


async def test_a_port_or_a_directory_in_use_is_a_clear_error(tmp_path):
    async with ControlPlane("http://127.0.0.1:1", tmp_path / "state") as first:
        grpc_port, http_port = (address.rsplit(":", 1)[1] for address in (first.grpc, first.http))
        other = ("--state-dir", str(tmp_path / "other"))
        for arguments, hint in [
            ((*other, "--grpc-port", grpc_port, "--http-port", "0"), "--grpc-port"),
            ((*other, "--grpc-port", "0", "--http-port", http_port), "--http-port"),
            (
                ("--state-dir", str(tmp_path / "state"), "--grpc-port", "0", "--http-port", "0"),
                "another control plane",
            ),
        ]:
            code, said = await start(*arguments)
            assert code == 1, said
            assert hint in said
            assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_cleanly_with_servers_connected(tmp_path, number):
    async with (
        ControlPlane("http://127.0.0.1:1", tmp_path / "state") as control,
        PlayedServer(control, "a/0"),
    ):
        control.process.send_signal(number)
        assert await asyncio.wait_for(control.process.wait(), HANG) == 0
    assert "Traceback" not in control.logged()


async def test_without_a_registry_it_lives_says_so_and_goes_on_when_it_appears(mlflow, model, tmp_path):
    port = free_port()
    async with ControlPlane(f"http://127.0.0.1:{port}", tmp_path / "state") as control:
        assert (await control.get("/health/live"))[0] == 200
        code, body = await control.get("/health/ready")
        assert (code, json.loads(body)["ready"]) == (503, False)
        async with asyncio.timeout(HANG):
            while not (await control.operator.GetStatus(pb.GetStatusRequest())).registry.error:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.operator.Refresh(pb.RefreshRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with forwarded(port, mlflow.port), PlayedServer(control, "a/0") as server:
            await server.until_champion(model, "1")
            assert (await control.get("/health/ready"))[0] == 200
        # And away again: what is served stays, and so does the way to say what is wrong.
        async with asyncio.timeout(HANG):
            while (await control.operator.GetStatus(pb.GetStatusRequest())).registry.reachable:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await control.get("/health/ready"))[0] == 200
        async with PlayedServer(control, "b/0") as server:
            await server.until_champion(model, "1")


async def test_killed_and_restarted_it_gives_out_the_same_snapshot_without_the_registry(
    mlflow, model, tmp_path
):
    state = tmp_path / "state"
    async with ControlPlane(mlflow.uri, state) as control:
        async with PlayedServer(control, "a/0") as server:
            await server.until_champion(model, "1")
            mlflow.champion(model, "2")
            before = await server.until_champion(model, "2")
        await control.kill()
    async with (
        ControlPlane("http://127.0.0.1:1", state) as again,
        PlayedServer(again, "a/0", has=before.version) as server,
    ):
        after = await server.until_champion(model, "2")
        assert after.version == before.version
        assert list(after.models) == list(before.models)
        version = after.models[0].versions[0]
        request = pb.FetchFileRequest(digest=version.digest, path=version.path)
        assert [part async for part in again.artifacts.FetchFile(request)]
        # It can still roll back, with the registry away.
        done = await again.operator.Rollback(pb.RollbackRequest(model=model))
        assert (done.to_version, done.complete) == ("1", True)
        assert done.snapshot_version > before.version
    # The rollback survives another restart, and the registry hears of it then.
    async with ControlPlane(mlflow.uri, state) as third, PlayedServer(third, "a/0") as server:
        assert champion(await server.until(lambda s: bool(s.models)), model) == "1"
        async with asyncio.timeout(HANG):
            while mlflow.client.get_model_version_by_alias(model, "champion").version != "1":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        assert all(champion(s, model) == "1" for s in server.snapshots)


async def test_with_its_state_lost_it_goes_on_above_what_servers_have_and_keeps_their_routes(
    mlflow, model, tmp_path
):
    async with (
        ControlPlane(mlflow.uri, tmp_path / "state") as control,
        PlayedServer(control, "a/0", has=500) as server,
    ):
        await server.until_champion(model, "1")
        newest = await server.until(lambda s: s.version > 500)
        assert champion(newest, model) == "1"
        assert all(champion(s, model) == "1" for s in server.snapshots)


async def test_a_webhook_is_a_hint_to_poll_now_if_it_is_genuine(mlflow, model, tmp_path):
    settings = {"control__webhook_secret": "s3cret"}
    async with (
        ControlPlane(mlflow.uri, tmp_path / "state", poll=600, **settings) as control,
        PlayedServer(control, "a/0") as server,
    ):
        await server.until_champion(model, "1")
        mlflow.champion(model, "2")
        body = b'{"entity": "model_version_alias", "action": "created"}'
        stamp = str(int(time.time()))

        def post(secret: bytes, content: bytes = body) -> dict[str, object]:
            return {
                "data": content,
                "method": "POST",
                "headers": {
                    "X-MLflow-Signature": webhook.signature(secret, "d", stamp, content),
                    "X-MLflow-Delivery-Id": "d",
                    "X-MLflow-Timestamp": stamp,
                },
            }

        assert (await control.get("/webhooks/mlflow", **post(b"guess")))[0] == 401
        assert (await control.get("/webhooks/mlflow", **post(b"s3cret", b"x" * 70_000)))[0] == 413
        await asyncio.sleep(0.3)
        assert champion(server.snapshots[-1], model) == "1"
        assert (await control.get("/webhooks/mlflow", **post(b"s3cret")))[0] == 202
        await server.until_champion(model, "2")


async def test_metrics_health_and_reflection_say_what_goes_on(running, model):
    control = running
    async with PlayedServer(control, "a/0") as server:
        snapshot = await server.until_champion(model, "1")
        text = (await control.get("/metrics"))[1].decode()
        assert f"hedgerow_control_snapshot_version {float(snapshot.version)}" in text
        assert 'hedgerow_control_nodes{state="connected"} 1.0' in text
        for family in ("registry_polls_total", "registry_calls_total", "nacks_total", "fetch_seconds_total"):
            assert f"hedgerow_control_{family} " in text
        health = health_pb2_grpc.HealthStub(control.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="hedgerow.control.v1.Snapshots"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        code, body = await control.get("/health/dependencies")
        assert (code, json.loads(body)["registry"]["reachable"]) == (200, True)
        assert (await control.get("/webhooks/mlflow", data=b"x", method="POST"))[0] == 404


async def test_statistics_of_several_servers_are_one(running, model):
    control = running
    async with PlayedServer(control, "a/0") as a, PlayedServer(control, "b/0") as b:
        await a.until_champion(model, "1")
        await b.until_champion(model, "1")
        # 90 answers in (0.9, 1.1] ms on one server, 10 in about 10 ms on the other.
        quick, slow = [0] * 89, [0] * 89
        quick[27], slow[40] = 90, 10
        for server, buckets in ((a, quick), (b, slow)):
            stats = pb.VersionStats(
                model=model, model_version="1", succeeded=sum(buckets), latency_buckets=buckets
            )
            await server.say(stats=pb.Stats(versions=[stats]))
        async with asyncio.timeout(HANG):
            while (status := (await control.status(model))["1"]).succeeded != 100:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert status.nodes_ready == 2
        assert 0.9 < status.p50_ms < 1.1
        assert 8 < status.p99_ms < 11


async def test_a_stream_must_begin_with_a_hello_and_the_newest_of_a_node_wins(running):
    async with PlayedServer(running, "x" * 256) as nameless:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await nameless.task
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    async with PlayedServer(running, "twice/0") as old, PlayedServer(running, "twice/0"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(asyncio.shield(old.task), HANG)
        # INTERNAL is grpc.aio's own word where a write of ours meets the end of the stream.
        assert caught.value.code() in {grpc.StatusCode.ABORTED, grpc.StatusCode.INTERNAL}
        nodes = (await running.operator.GetStatus(pb.GetStatusRequest())).nodes
        assert [node.connected for node in nodes if node.node == "twice/0"] == [True]
