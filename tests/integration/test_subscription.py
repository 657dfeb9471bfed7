"""The subscription against a real gRPC control plane on a socket, and models loaded by ONNX Runtime."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
import zoo
from fleet import version_of
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DRAINING,
    VERSION_STATE_DROPPED,
    VERSION_STATE_FAILED,
    VERSION_STATE_SERVING,
    FetchFileResponse,
    Hello,
    Model,
    Route,
    ServingSpec,
    Snapshot,
    SubscribeResponse,
)
from hedgerow_protos.hedgerow_control_pb2_grpc import (
    ArtifactsServicer,
    SnapshotsServicer,
    add_ArtifactsServicer_to_server,
    add_SnapshotsServicer_to_server,
)
from hedgerow_server.engine.catalog import Catalog
from hedgerow_server.engine.files import ArtifactStore
from hedgerow_server.engine.loader import Loader
from hedgerow_server.engine.loading import load
from hedgerow_server.routing.applying import Applier
from hedgerow_server.routing.backoff import Backoff
from hedgerow_server.routing.control_channel import RemoteFiles, connect
from hedgerow_server.routing.last_good import LastGood
from hedgerow_server.routing.reports import Reports
from hedgerow_server.routing.subscription import Subscription

HANG = 30


async def until(true) -> None:
    """Waits for something that will come to be."""
    async with asyncio.timeout(HANG):
        while not true():  # noqa: ASYNC110  the condition lies in the code under test or on the disk
            await asyncio.sleep(0.01)


class Control(SnapshotsServicer, ArtifactsServicer):
    """A control plane: sends what the test says, keeps what servers say."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.streams = 0
        self.said: asyncio.Queue = asyncio.Queue()
        self.to_send: asyncio.Queue = asyncio.Queue()
        self.fetches = 0
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server()
        add_SnapshotsServicer_to_server(self, self._server)
        add_ArtifactsServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Subscribe(self, requests, context):  # noqa: N802  gRPC's name
        self.streams += 1

        async def listen():
            async for request in requests:
                self.said.put_nowait(request)

        listening = asyncio.create_task(listen())
        try:
            while True:
                yield SubscribeResponse(snapshot=await self.to_send.get())
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.UsageError):
                await listening

    async def FetchFile(self, request, context):  # noqa: N802  gRPC's name
        self.fetches += 1
        data = self.files.get((request.digest, request.path))
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no file {request.path}")
        for start in range(0, len(data), 100):
            yield FetchFileResponse(chunk=data[start : start + 100])

    def send(
        self, number: int, versions: dict[str, tuple[bytes, int]], serving: ServingSpec | None = None
    ) -> Snapshot:
        """Sends a snapshot of model "m": version -> (the ONNX file, its weight)."""
        model = Model(name="m")
        for version, (data, weight) in versions.items():
            listed = version_of({"model.onnx": data}, version=version)
            self.files[listed.digest, "model.onnx"] = data
            listed.serving.MergeFrom(serving or ServingSpec())
            model.versions.append(listed)
            model.routes.append(Route(variant="champion", version=version, weight=weight))
        wanted = Snapshot(version=number, nonce=f"n{number}", models=[model])
        self.to_send.put_nowait(wanted)
        return wanted

    async def hear(self, kind: str):
        """The next message of a kind; what came before it is let go."""
        async with asyncio.timeout(HANG):
            while True:
                message = await self.said.get()
                if message.WhichOneof("kind") == kind:
                    return getattr(message, kind)

    async def hear_state(self, version: str, state: int):
        while True:
            report = await self.hear("report")
            if (report.model_version, report.state) == (version, state):
                return report


class Worker:
    """A server's part that follows the control plane, as app.py builds it."""

    def __init__(self, state: Path, port: int, loads=load) -> None:
        self.channel = connect(f"127.0.0.1:{port}")
        self.threads = ThreadPoolExecutor(4)
        self.store = ArtifactStore(state / "artifacts")
        self.tables = []
        files = RemoteFiles(self.channel)
        reports = Reports()
        self.catalog = Catalog(
            loader=Loader(
                resolve=lambda name, version: self.store.ensure(version, files.fetch),
                load=loads,
                executor=self.threads,
            ),
            publish=self.tables.append,
            report=reports.record,
        )
        self.subscription = Subscription(
            channel=self.channel,
            hello=Hello(node="host/0", region="local", release="0.1.0"),
            address=f"127.0.0.1:{port}",
            applier=Applier(catalog=self.catalog, last_good=LastGood(state), artifacts=self.store),
            catalog=self.catalog,
            reports=reports,
            backoff=Backoff(cap=0.2),
            stats_seconds=0.05,
        )
        self.running = asyncio.create_task(self.subscription.run())

    async def stop(self) -> None:
        self.running.cancel()
        with suppress(asyncio.CancelledError):
            await self.running
        await self.catalog.close()
        await self.channel.close()
        self.store.close()
        self.threads.shutdown(wait=False)

    async def serves(self, number: int) -> None:
        """Waits until a snapshot is in force."""
        await until(lambda: self.catalog.snapshot_version == number)

    def answer(self) -> float:
        """One request, answered by the version in service: the number that the model is made of."""
        handle = self.catalog.table.choose("m", "", "", "r").model
        x = handle.signature.inputs[0]
        row = np.zeros([1 if size < 0 else size for size in x.shape], x.datatype.dtype)
        return float(handle.run(handle.output_names, {x.name: row}, None)[0].ravel()[0])


@pytest.fixture
async def control():
    control = Control()
    await control.start()
    yield control
    await control.stop()


@pytest.fixture
async def workers():
    running = []

    def start(state, port, **more) -> Worker:
        running.append(Worker(state, port, **more))
        return running[-1]

    yield start
    for worker in running:
        await worker.stop()


@pytest.fixture
def onnx(tmp_path):
    """Makes the bytes of a model that answers with one number."""

    def made(number: float) -> bytes:
        return zoo.constant(tmp_path / "made" / f"{number}.onnx", number).read_bytes()

    return made


async def test_a_snapshot_is_fetched_loaded_routed_and_acknowledged(control, workers, tmp_path, onnx):
    worker = workers(tmp_path / "state", control.port)
    hello = await control.hear("hello")
    assert (hello.node, hello.region, hello.snapshot_version) == ("host/0", "local", 0)
    control.send(5, {"1": (onnx(11), 100)})
    await control.hear_state("1", VERSION_STATE_SERVING)
    ack = await control.hear("ack")
    assert (ack.nonce, ack.snapshot_version) == ("n5", 5)
    assert worker.answer() == 11
    status = worker.subscription.status()
    assert status["connected"] is True
    assert status["snapshot_version"] == 5
    assert status["last_error"] == ""


async def test_an_acknowledgement_does_not_wait_for_drains(control, workers, tmp_path, onnx):
    worker = workers(tmp_path / "state", control.port)
    control.send(1, {"1": (onnx(1), 100)})
    await control.hear("ack")
    held = worker.catalog.table.choose("m", "", "", "r").model
    held.in_flight += 1
    control.send(2, {"2": (onnx(2), 100)})
    assert (await control.hear_state("1", VERSION_STATE_DRAINING)).model == "m"
    assert (await control.hear("ack")).snapshot_version == 2
    held.release()
    await control.hear_state("1", VERSION_STATE_DROPPED)


async def test_a_broken_version_is_refused_by_name_and_the_last_good_one_goes_on(
    control, workers, tmp_path, onnx
):
    worker = workers(tmp_path / "state", control.port)
    control.send(1, {"1": (onnx(1), 100)})
    await control.hear("ack")
    control.send(2, {"2": (onnx(2)[:-20], 100)})
    nack = await control.hear("nack")
    assert (nack.nonce, nack.snapshot_version, nack.last_good_version) == ("n2", 2, 1)
    assert not nack.transient
    assert (nack.model, nack.model_version) == ("m", "2")
    assert nack.reason
    assert worker.answer() == 1
    # The same again costs no second load, and is refused with the reason.
    control.send(3, {"2": (onnx(2)[:-20], 100)})
    assert "not tried again" in (await control.hear("nack")).reason
    control.send(4, {"3": (onnx(3), 100)})
    assert (await control.hear("ack")).snapshot_version == 4
    assert worker.answer() == 3


async def test_a_version_whose_rules_do_not_fit_is_refused_by_rule_and_expression(
    control, workers, tmp_path, onnx
):
    """Whoever let it into the registry: the server checks rules as publishing does."""
    worker = workers(tmp_path / "state", control.port)
    control.send(1, {"1": (onnx(1), 100)})
    await control.hear("ack")
    serving = ServingSpec()
    serving.fallback.rules.add(name="flat", outputs={"y": "zzz"})
    control.send(2, {"2": (onnx(2), 100)}, serving)
    nack = await control.hear("nack")
    assert (nack.model, nack.model_version, nack.last_good_version) == ("m", "2", 1)
    assert not nack.transient
    assert "fallback.rules: rule 'flat': output 'y': \"zzz\": column 1: unknown variable" in nack.reason
    assert worker.answer() == 1
    serving.fallback.rules[0].outputs["y"] = "0.5"
    control.send(3, {"3": (onnx(3), 100)}, serving)
    assert (await control.hear("ack")).snapshot_version == 3
    assert worker.answer() == 3


async def test_a_file_that_comes_later_is_fetched_without_another_snapshot(control, workers, tmp_path, onnx):
    """A failed fetch may pass: the server tries again by itself, not in a tight loop."""
    worker = workers(tmp_path / "state", control.port)
    control.send(1, {"1": (onnx(1), 100)})
    there, control.files = control.files, {}
    nack = await control.hear("nack")
    assert "NOT_FOUND" in nack.reason
    assert nack.transient
    assert (nack.model, nack.model_version) == ("m", "1")
    assert control.fetches == 1
    control.files = there
    assert (await control.hear("ack")).snapshot_version == 1
    assert control.fetches == 2
    assert worker.answer() == 1


async def test_a_server_boots_from_the_last_good_snapshot_with_no_control_plane(
    control, workers, tmp_path, onnx
):
    first = workers(tmp_path / "state", control.port)
    control.send(7, {"1": (onnx(1), 100)})
    await control.hear("ack")
    await until((tmp_path / "state" / "last-good.snapshot").exists)
    await first.stop()
    await control.stop()

    second = workers(tmp_path / "state", control.port)
    await second.serves(7)
    assert second.answer() == 1
    await until(lambda: second.subscription.status()["last_error"])
    assert second.subscription.status()["connected"] is False

    # It comes back, and knows at once what this server has.
    control.said = asyncio.Queue()
    await control.start(control.port)
    assert (await control.hear("hello")).snapshot_version == 7
    assert (await control.hear_state("1", VERSION_STATE_SERVING)).model == "m"


@pytest.mark.parametrize("number", [3, 9])
async def test_a_control_plane_that_comes_back_with_a_lower_or_the_same_number_is_followed(
    control, workers, tmp_path, onnx, number
):
    worker = workers(tmp_path / "state", control.port)
    control.send(9, {"1": (onnx(1), 100)})
    await control.hear("ack")
    await control.stop()
    assert worker.answer() == 1
    control.said = asyncio.Queue()
    await control.start(control.port)
    assert (await control.hear("hello")).snapshot_version == 9
    control.send(number, {"2": (onnx(2), 100)})
    assert (await control.hear("ack")).snapshot_version == number
    assert worker.answer() == 2
    await worker.serves(number)


async def test_a_refused_snapshot_at_the_start_does_not_cost_the_last_good_one(
    control, workers, tmp_path, onnx
):
    """It took over from the last good snapshot while that was loading; refused, it gives way again."""
    first = workers(tmp_path / "state", control.port)
    control.send(1, {"1": (onnx(1), 100)})
    await control.hear("ack")
    await until((tmp_path / "state" / "last-good.snapshot").exists)
    await first.stop()
    control.said = asyncio.Queue()

    held = threading.Event()

    def slow_load(directory, path, serving):
        held.wait(HANG)
        return load(directory, path, serving)

    second = workers(tmp_path / "state", control.port, loads=slow_load)
    await control.hear("hello")
    control.send(2, {"2": (b"no model", 100)})
    await until(lambda: control.fetches == 2)
    assert second.catalog.snapshot_version == 0
    held.set()
    assert (await control.hear("nack")).snapshot_version == 2
    await second.serves(1)
    assert second.answer() == 1


async def test_a_failed_version_is_reported(control, workers, tmp_path, onnx):
    workers(tmp_path / "state", control.port)
    control.send(1, {"1": (b"no model", 100)})
    assert (await control.hear_state("1", VERSION_STATE_FAILED)).reason


async def test_statistics_start_at_nothing_with_each_stream(control, workers, tmp_path, onnx):
    worker = workers(tmp_path / "state", control.port)
    control.send(1, {"1": (onnx(1), 100)})
    await control.hear("ack")
    statistics = worker.catalog.table.choose("m", "", "", "r").model.statistics
    for code, microseconds in ((0, 5), (0, 11), (13, 10**9)):
        statistics.answered(code, microseconds * 1000)
    async with asyncio.timeout(HANG):
        while not ((told := await control.hear("stats")).versions and told.versions[0].succeeded):
            pass
    one = told.versions[0]
    assert (one.model, one.model_version, one.succeeded, one.failed) == ("m", "1", 2, 1)
    assert (one.latency_buckets[0], one.latency_buckets[1], one.latency_buckets[-1]) == (1, 1, 1)
    assert sum(one.latency_buckets) == 3

    await control.stop()
    control.said = asyncio.Queue()
    await control.start(control.port)
    await control.hear("hello")
    one = (await control.hear("stats")).versions[0]
    assert (one.succeeded, one.failed, sum(one.latency_buckets)) == (0, 0, 0)


async def test_kill_9_of_the_control_plane_leaves_traffic_alone(workers, tmp_path, onnx):
    """A real process, killed in the middle of the stream; then another takes its port."""
    made = tmp_path / "one.onnx"
    made.write_bytes(onnx(1))
    script = tmp_path / "control.py"
    script.write_text(
        "import asyncio, sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]\n"
        "from test_subscription import Control\n"
        "async def main():\n"
        "    control = Control()\n"
        "    await control.start(int(sys.argv[2]))\n"
        "    control.send(int(sys.argv[3]), {'1': (open(sys.argv[1], 'rb').read(), 100)})\n"
        "    print(control.port, flush=True)\n"
        "    await control.hear('ack')\n"
        "    print('acknowledged', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )

    async def start(port: int, number: int):
        return await asyncio.create_subprocess_exec(
            sys.executable, script, made, str(port), str(number), stdout=asyncio.subprocess.PIPE
        )

    process = await start(0, 4)
    port = int(await process.stdout.readline())
    worker = workers(tmp_path / "state", port)
    assert await process.stdout.readline() == b"acknowledged\n"
    process.kill()
    await process.wait()
    async with asyncio.timeout(HANG):
        while worker.subscription.connected:
            assert worker.answer() == 1
            await asyncio.sleep(0.01)
    assert worker.answer() == 1
    process = await start(port, 4)
    try:
        await process.stdout.readline()
        assert await process.stdout.readline() == b"acknowledged\n"
        assert worker.answer() == 1
    finally:
        process.kill()
        await process.wait()
