"""From an alias in a real MLflow to snapshots on servers' streams, and back."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time

import grpc
import pytest
import pytest_asyncio
from control_plane import ControlPlane, PlayedServer, champion, find, held, shared_mlflow, tiny_model
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import manifest

# MLflow alone takes a minute to start on a busy machine.
pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def mlflow():
    return shared_mlflow()


@pytest.fixture
def model(mlflow):
    """A served model with two good versions; version 1 is champion."""
    name = mlflow.model()
    for factor in (1, 2):
        spec = b"batching: {max_batch_size: 8}\n"
        mlflow.version(name, {"model.onnx": tiny_model(factor), "serving.yaml": spec}, {"owner": "ada"})
    mlflow.champion(name, "1")
    yield name
    mlflow.retire(name)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def control(mlflow, tmp_path_factory):
    """One for all tests here: each brings models of its own, and to import MLflow's client takes seconds."""
    state = tmp_path_factory.mktemp("control")
    async with ControlPlane(mlflow.uri, state, control__ack_timeout_seconds=1.5) as running:
        yield running


async def test_a_version_is_warm_everywhere_before_a_route_leads_to_it(mlflow, model, control):
    async with PlayedServer(control, "a/0") as a, PlayedServer(control, "b/0") as b:
        for server in (a, b):
            await server.until_champion(model, "1")
        newcomer = mlflow.model()
        mlflow.version(newcomer, {"model.onnx": tiny_model(5)})
        mlflow.champion(newcomer, "1")
        first = await a.until(lambda s: find(s, newcomer))
        assert not find(first, newcomer).routes
        await a.until_champion(newcomer, "1")
        mlflow.retire(newcomer)
        mlflow.champion(model, "2")
        moved = await a.until_champion(model, "2")
        assert held(moved, model) == ["1", "2"]
        before = [s for s in a.snapshots if "2" in held(s, model) and s.version < moved.version]
        assert before
        assert all(champion(s, model) == "1" for s in before)
        versions = [s.version for s in a.snapshots]
        assert versions == sorted(set(versions))


async def test_a_snapshot_tells_all_about_a_version_and_its_files_can_be_had(mlflow, model, control):
    async with PlayedServer(control, "a/0") as server:
        snapshot = await server.until_champion(model, "1")
    version = find(snapshot, model).versions[0]
    assert version.path == "model.onnx"
    assert version.serving.batching.max_batch_size == 8
    assert dict(version.tags) == {"owner": "ada"}
    assert manifest.digest(version.files) == version.digest
    for file in version.files:
        request = pb.FetchFileRequest(digest=version.digest, path=file.path)
        content = b"".join([part.chunk async for part in control.artifacts.FetchFile(request)])
        assert len(content) == file.size
        assert hashlib.sha256(content).hexdigest() == file.sha256
    for digest, path, code in [
        (version.digest, "../../state.json", grpc.StatusCode.INVALID_ARGUMENT),
        ("sha256:../..", "model.onnx", grpc.StatusCode.INVALID_ARGUMENT),
        (version.digest, "nothing", grpc.StatusCode.NOT_FOUND),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.artifacts.FetchFile(pb.FetchFileRequest(digest=digest, path=path)).read()
        assert caught.value.code() is code


async def test_moving_the_alias_is_on_the_stream_soon(mlflow, model, control, record_property):
    """Measures alias moved to snapshot received; the bound only says that nothing hangs."""
    async with PlayedServer(control, "a/0") as server:
        await server.until_champion(model, "1")
        seconds = []
        for turn in range(10):
            version = "21"[turn % 2]
            began = time.perf_counter()
            await asyncio.to_thread(mlflow.champion, model, version)
            seen = len(server.snapshots)
            while champion(server.snapshots[-1], model) != version:
                await asyncio.sleep(0.001)
                assert time.perf_counter() - began < 20, control.logged()
            seconds.append(time.perf_counter() - began)
            assert len(server.snapshots) > seen
    print(
        f"alias moved to snapshot: first {seconds[0]:.3f} s, median {statistics.median(seconds[1:]):.3f} s,"
        f" max of the rest {max(seconds[1:]):.3f} s (poll 0.2 s)"
    )
    record_property("alias_to_snapshot_seconds", seconds)


async def test_a_refused_version_fails_with_the_servers_reason_and_the_last_good_one_stays(
    mlflow, model, control
):
    async with (
        PlayedServer(control, "a/0") as good,
        PlayedServer(control, "b/0", refuse={(model, "2")}) as bad,
    ):
        await good.until_champion(model, "1")
        await bad.until_champion(model, "1")
        mlflow.champion(model, "2")
        added = await bad.until(lambda s: "2" in held(s, model))
        failed = await control.until_status(model, "2", "failed")
        assert "refused by server b/0: out of memory" in failed.reason
        last = await good.until(lambda s: s.version > added.version and held(s, model) == ["1"])
        assert champion(last, model) == "1"
        await asyncio.sleep(0.6)
        assert all(champion(s, model) != "2" for s in (*good.snapshots, *bad.snapshots))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model.onnx": tiny_model(3)[:60]}, ""),
        (
            {"MLmodel": b"flavors: {sklearn: {}, python_function: {}}", "model.pkl": b"x"},
            "only ONNX is served",
        ),
        ({"weights.bin": b"x"}, "there is no model.onnx among the files (found: weights.bin)"),
        ({"model.onnx": tiny_model(3), "serving.yaml": b"batchin: 1"}, "did you mean 'batching'?"),
        (
            {"MLmodel": b"flavors: {onnx: {data: ../../x}}", "model.onnx": b"x"},
            "'../../x' is not a plain relative",
        ),
    ],
    ids=["truncated", "pickle", "nothing", "bad-spec", "outside"],
)
async def test_a_version_that_cannot_be_served_fails_and_the_last_good_one_stays(
    mlflow, model, control, files, reason
):
    async with PlayedServer(control, "a/0") as server:
        await server.until_champion(model, "1")
        version = mlflow.version(model, files)
        mlflow.champion(model, version)
        failed = await control.until_status(model, version, "failed")
        assert reason in failed.reason
        assert failed.reason
        await asyncio.sleep(0.5)
        assert champion(server.snapshots[-1], model) == "1"
        assert "will be tried again" not in failed.reason
        # And a good one afterwards goes through.
        mlflow.champion(model, "2")
        await server.until_champion(model, "2")


async def test_a_server_that_never_answers_is_left_behind(mlflow, model, control):
    async with (
        PlayedServer(control, "a/0") as good,
        PlayedServer(control, "mute/0", silent=True, has=1) as mute,
    ):
        await good.until_champion(model, "1")
        await mute.until_champion(model, "1")
        mlflow.champion(model, "2")
        await good.until_champion(model, "2")
    assert "mute/0 did not acknowledge" in control.logged()


async def test_an_alias_taken_away_retires_the_model(mlflow, model, control):
    async with PlayedServer(control, "a/0") as server:
        served = await server.until_champion(model, "1")
        mlflow.client.delete_registered_model_alias(model, "champion")
        await server.until(lambda s: s.version > served.version and find(s, model) is None)


async def test_roles_share_the_traffic_by_their_tags(mlflow, model, control):
    third = mlflow.version(model, {"model.onnx": tiny_model(3)})
    mlflow.client.set_registered_model_tag(model, "hedgerow.weight.challenger", "25")
    mlflow.client.set_registered_model_tag(model, "hedgerow.weight.economy", "lots")
    mlflow.client.set_registered_model_alias(model, "challenger", "2")
    mlflow.client.set_registered_model_alias(model, "economy", third)
    async with PlayedServer(control, "a/0") as server:
        full = await server.until(lambda s: find(s, model) and len(find(s, model).routes) == 3)
    routes = {route.variant: (route.version, route.weight) for route in find(full, model).routes}
    assert routes == {"champion": ("1", 65), "challenger": ("2", 25), "economy": (third, 10)}
    assert "'lots'; expected a whole percentage" in (await control.status(model))["1"].reason


async def test_a_rollback_flips_at_once_and_the_registry_follows(mlflow, model, control):
    async with PlayedServer(control, "a/0") as a, PlayedServer(control, "b/0") as b:
        await a.until_champion(model, "1")
        mlflow.champion(model, "2")
        await a.until_champion(model, "2")
        await b.until_champion(model, "2")
        done = await control.operator.Rollback(pb.RollbackRequest(model=model))
        assert (done.from_version, done.to_version, done.complete) == ("2", "1", True), done
        assert 0 < done.seconds < 10
        print(f"rollback with two servers: {done.seconds * 1e3:.1f} ms")
        for server in (a, b):
            flip = await server.until(lambda s: s.version == done.snapshot_version)
            assert champion(flip, model) == "1"
        async with asyncio.timeout(20):
            while mlflow.client.get_model_version_by_alias(model, "champion").version != "1":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.6)
        assert champion(a.snapshots[-1], model) == "1"
        # The registry's word counts again.
        seen = a.snapshots[-1].version
        mlflow.champion(model, "2")
        await a.until(lambda s: s.version > seen and champion(s, model) == "2")


async def test_a_rollback_without_a_predecessor_says_what_to_do(mlflow, model, control):
    async with PlayedServer(control, "a/0") as server:
        await server.until_champion(model, "1")
        for request, code, text in [
            (pb.RollbackRequest(model=model), grpc.StatusCode.FAILED_PRECONDITION, "move the champion alias"),
            (pb.RollbackRequest(model="nobody"), grpc.StatusCode.NOT_FOUND, "nobody"),
            (
                pb.RollbackRequest(model=model, version="7"),
                grpc.StatusCode.FAILED_PRECONDITION,
                "do not hold",
            ),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await control.operator.Rollback(request)
            assert caught.value.code() is code
            assert text in caught.value.details()


async def test_registry_calls_do_not_grow_with_the_number_of_servers(mlflow, model, control):
    async def calls_in(seconds: float) -> int:
        before = (await control.operator.GetStatus(pb.GetStatusRequest())).registry.calls
        await asyncio.sleep(seconds)
        return (await control.operator.GetStatus(pb.GetStatusRequest())).registry.calls - before

    async with PlayedServer(control, "n/0") as one:
        await one.until_champion(model, "1")
        alone = await calls_in(2.0)
        more = [PlayedServer(control, f"n/{i}") for i in range(1, 12)]
        for server in more:
            await server.__aenter__()
            await server.until_champion(model, "1")
        crowd = await calls_in(2.0)
        for server in more:
            await server.__aexit__()
    # Ten polls of two calls in two seconds, give or take the jitter and a slow machine; never one per server.
    assert crowd <= alone + 10
    assert crowd <= 32
