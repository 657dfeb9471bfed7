"""A real MLflow, a real control plane, and a server that the test plays."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from functools import cache
from pathlib import Path
from typing import Self

import grpc
import onnx
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import hedgerow_control_pb2_grpc as services
from onnx import TensorProto, helper

#: A test that waits longer hangs.
HANG = 40.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tiny_model(factor: float) -> bytes:
    """Y = x * factor over float[n, 4]."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4], [factor] * 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Mlflow:
    """MLflow's server on SQLite, as the local stack runs it: ready in half the time of `mlflow server`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with socket.socket() as listener, (self.directory / "mlflow.log").open("ab") as log:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "hedgerow_local.mlflow_server"),
                    *("--fd", str(listener.fileno()), "--directory", str(self.directory)),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        # Ends at the ready line or with the process; the test's own timeout bounds it.
        line = self.process.stdout.readline()
        if not line.startswith(b"mlflow ready"):
            self.stop()
            raise AssertionError((self.directory / "mlflow.log").read_text()[-3000:])

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    @property
    def client(self):
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def model(self, prefix: str = "tiny") -> str:
        """Registers a new served model without versions."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        self.client.create_registered_model(name, tags={"hedgerow.serve": "true"})
        return name

    def version(self, name: str, files: dict[str, bytes], tags: dict[str, str] | None = None) -> str:
        """Registers a version of the given files; returns its number."""
        folder = self.directory / uuid.uuid4().hex
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        client = self.client
        run = client.create_run("0")
        client.log_artifacts(run.info.run_id, str(folder), "model")
        source = f"{run.info.artifact_uri}/model"
        return str(client.create_model_version(name, source, run.info.run_id, tags=tags).version)

    def champion(self, name: str, version: str) -> None:
        self.client.set_registered_model_alias(name, "champion", version)

    def retire(self, *names: str) -> None:
        for name in names:
            self.client.delete_registered_model(name)


@cache
def shared_mlflow() -> Mlflow:
    """One MLflow for all tests of a run: it takes long to start. Each test registers models of its own."""
    directory = tempfile.TemporaryDirectory(prefix="mlflow-")
    server = Mlflow(Path(directory.name))
    atexit.register(directory.cleanup)
    atexit.register(server.stop)
    return server


@contextlib.asynccontextmanager
async def forwarded(port: int, target: int):
    """Whatever connects to `port` reaches `target` meanwhile; before and after, nobody listens there."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.close()

    open_now: set[asyncio.StreamWriter] = set()

    async def connect(near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far_in, far_out = await asyncio.open_connection("127.0.0.1", target)
        open_now.add(near_out)
        await asyncio.gather(pump(near_in, far_out), pump(far_in, near_out))
        open_now.discard(near_out)

    server = await asyncio.start_server(connect, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for writer in open_now:  # kept alive by their callers
            writer.transport.abort()


class ControlPlane:
    """`hedgerow-control` as a process of its own."""

    def __init__(self, uri: str, state: Path, *, poll: float = 0.2, **settings: object) -> None:
        self.uri = uri
        self.state = state
        self.environment = {
            **os.environ,
            "HEDGEROW_REGISTRY__POLL_SECONDS": str(poll),
            **{f"HEDGEROW_{key.upper()}": str(value) for key, value in settings.items()},
        }

    async def __aenter__(self) -> Self:
        self.state.mkdir(parents=True, exist_ok=True)
        self.log = (self.state / "control.log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hedgerow_control", "--registry-uri", self.uri),
            *("--state-dir", str(self.state), "--grpc-port", "0", "--http-port", "0"),
            stdout=asyncio.subprocess.PIPE,
            stderr=self.log,
            env=self.environment,
            cwd=self.state,
        )
        line = (await asyncio.wait_for(self.process.stdout.readline(), HANG)).decode()
        assert line.startswith("hedgerow-control ready "), line + self.logged()
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        self.grpc, self.http = words["grpc"], words["http"]
        self.channel = grpc.aio.insecure_channel(self.grpc)
        self.operator = services.OperatorStub(self.channel)
        self.artifacts = services.ArtifactsStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        if self.process.returncode is None:
            self.process.terminate()
            code = await asyncio.wait_for(self.process.wait(), HANG)
            assert code == 0, self.logged()
        self.log.close()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    def logged(self) -> str:
        return (self.state / "control.log").read_text()

    async def status(self, model: str) -> dict[str, pb.ModelVersionStatus]:
        """The model's versions by number."""
        answer = await self.operator.GetStatus(pb.GetStatusRequest())
        return {v.version: v for m in answer.models if m.name == model for v in m.versions}

    async def until_status(self, model: str, version: str, stage: str) -> pb.ModelVersionStatus:
        async with asyncio.timeout(HANG):
            while True:
                found = (await self.status(model)).get(version)
                if found is not None and found.stage == stage:
                    return found
                await asyncio.sleep(0.05)

    async def get(self, path: str, **more: object) -> tuple[int, bytes]:
        def read() -> tuple[int, bytes]:
            request = urllib.request.Request(f"http://{self.http}{path}", **more)  # type: ignore[arg-type]
            try:
                with urllib.request.urlopen(request, timeout=10) as reply:
                    return reply.status, reply.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        return await asyncio.to_thread(read)


class PlayedServer:
    """A server's side of the snapshot stream; it answers by itself as it is told to.

    Args:
        control: whose address to dial.
        node: its name.
        refuse: versions, as (model, version), that it answers with NACK.
        silent: whether it never answers.
        has: the snapshot it says it serves.
    """

    def __init__(self, control: ControlPlane, node: str, *, refuse=(), silent=False, has: int = 0) -> None:
        self.control = control
        self.node = node
        self.refuse = set(refuse)
        self.silent = silent
        self.has = has
        self.snapshots: list[pb.Snapshot] = []
        self.times: list[float] = []
        self._arrived = asyncio.Event()
        # A stream takes one write at a time.
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        # A channel of its own: closing it is the server's death.
        self.channel = grpc.aio.insecure_channel(self.control.grpc, [("grpc.use_local_subchannel_pool", 1)])
        self.stream = services.SnapshotsStub(self.channel).Subscribe()
        hello = pb.Hello(node=self.node, region="here", snapshot_version=self.has, release="test")
        await self.stream.write(pb.SubscribeRequest(hello=hello))
        self.task = asyncio.create_task(self._answer())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await self.task
        await self.channel.close()

    async def _answer(self) -> None:
        serving: dict[str, set[str]] = {}
        async for response in self.stream:
            snapshot = response.snapshot
            self.snapshots.append(snapshot)
            self.times.append(time.perf_counter())
            self._arrived.set()
            if self.silent:
                continue
            refused = [
                (m.name, v.version)
                for m in snapshot.models
                for v in m.versions
                if (m.name, v.version) in self.refuse
            ]
            if refused:
                await self.say(
                    nack=pb.Nack(
                        nonce=snapshot.nonce,
                        snapshot_version=snapshot.version,
                        reason="out of memory",
                        model=refused[0][0],
                        model_version=refused[0][1],
                    )
                )
                continue
            await self.say(ack=pb.Ack(nonce=snapshot.nonce, snapshot_version=snapshot.version))
            for model in snapshot.models:
                routed = {route.version for route in model.routes}
                for version in serving.get(model.name, set()) - routed:
                    await self.report(model.name, version, pb.VERSION_STATE_DRAINING)
                    await self.report(model.name, version, pb.VERSION_STATE_READY)
                for version in routed:
                    await self.report(model.name, version, pb.VERSION_STATE_SERVING)
                serving[model.name] = routed

    async def say(self, **kind: object) -> None:
        async with self._writing:
            await self.stream.write(pb.SubscribeRequest(**kind))

    async def report(self, model: str, version: str, state: int) -> None:
        await self.say(report=pb.VersionReport(model=model, model_version=version, state=state))

    async def until(self, condition) -> pb.Snapshot:
        """The first snapshot, past or to come, that fulfils a condition."""
        seen = 0
        async with asyncio.timeout(HANG):
            while True:
                for snapshot in self.snapshots[seen:]:
                    if condition(snapshot):
                        return snapshot
                seen = len(self.snapshots)
                self._arrived.clear()
                await self._arrived.wait()

    async def until_champion(self, model: str, version: str) -> pb.Snapshot:
        return await self.until(lambda snapshot: champion(snapshot, model) == version)


def find(snapshot: pb.Snapshot, model: str) -> pb.Model | None:
    return next((m for m in snapshot.models if m.name == model), None)


def champion(snapshot: pb.Snapshot, model: str) -> str | None:
    found = find(snapshot, model)
    return next((r.version for r in found.routes if r.variant == "champion"), None) if found else None


def held(snapshot: pb.Snapshot, model: str) -> list[str]:
    found = find(snapshot, model)
    return [v.version for v in found.versions] if found else []
