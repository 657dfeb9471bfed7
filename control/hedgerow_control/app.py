"""Builds the control plane from its settings and runs it; the only place that builds things."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from hedgerow_protos import hedgerow_control_pb2_grpc as services
from hedgerow_protos.pool import POOL

from hedgerow_control import http, metrics
from hedgerow_control.artifacts.fetch import Limits, MlflowArtifacts
from hedgerow_control.artifacts.preparer import Preparer
from hedgerow_control.artifacts.service import ArtifactService
from hedgerow_control.artifacts.store import ArtifactStore
from hedgerow_control.artifacts.trial import TrialLimits, trial
from hedgerow_control.operator_service import OperatorService
from hedgerow_control.registry.client import MlflowRegistry
from hedgerow_control.registry.watcher import Watcher
from hedgerow_control.rollout.loop import Rollout
from hedgerow_control.rollout.state import State, StateFile
from hedgerow_control.rollout.writeback import write_back
from hedgerow_control.settings import Settings
from hedgerow_control.snapshots.hub import Hub

logger = logging.getLogger(__name__)

_SERVICES = ("Snapshots", "Artifacts", "Operator")
_STOP_SECONDS = 2.0
_PRUNE_SECONDS = 300.0


class StartError(Exception):
    """The control plane cannot start; the message says what to change."""


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Runs until `stop` is set, then ends in order.

    Raises:
        StartError: a port is taken or the state directory cannot be used.
    """
    control = settings.control
    with _state_directory(control.state_dir):
        try:
            file = StateFile(control.state_dir / "state.json")
            store = ArtifactStore(control.state_dir / "artifacts")
            state = file.load()
        except OSError as error:
            raise StartError(f"cannot use the state directory {control.state_dir}: {error}") from None
        rollout, watcher = _build(settings, file, state, store)
        async with _grpc_server(settings, rollout, watcher, store) as (server, health_service, grpc_port):
            sockets = _listen(control.host, control.http_port)
            registry = metrics.build(rollout, watcher)
            secret = control.webhook_secret.get_secret_value().encode() if control.webhook_secret else None
            app = http.build(
                rollout=rollout,
                watcher=watcher,
                uri=settings.registry.uri,
                metrics=lambda: metrics.render(registry),
                webhook_secret=secret,
            )
            config = uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
            )
            web = _WebServer(config)
            rollout.start()
            await server.start()
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(rollout.run(), name="rollout"),
                    tasks.create_task(watcher.run(), name="registry"),
                    tasks.create_task(write_back(rollout, watcher), name="write back"),
                    tasks.create_task(_prune(rollout), name="prune"),
                ]
                serving = tasks.create_task(web.serve(sockets=[sockets]), name="http")
                for name in ("", *(f"hedgerow.control.v1.{name}" for name in _SERVICES)):
                    await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
                _say_ready(settings, grpc_port, sockets.getsockname()[1])
                await stop.wait()
                logger.info("stopping")
                await health_service.enter_graceful_shutdown()
                rollout.hub.close()
                await server.stop(_STOP_SECONDS)
                web.should_exit = True
                await serving
                for task in running:
                    task.cancel()
            await rollout.preparer.close()
            await rollout.save()


def _build(
    settings: Settings, file: StateFile, state: State, store: ArtifactStore
) -> tuple[Rollout, Watcher]:
    control, limits = settings.control, settings.artifacts
    uri = settings.registry.uri
    trial_limits = TrialLimits(limits.trial_memory_bytes, limits.trial_cpu_seconds, limits.trial_wall_seconds)
    hub = Hub()
    preparer = Preparer(
        store,
        connect=lambda name, version: MlflowArtifacts(uri, name, version),
        trial=lambda directory, version: trial(directory, version, trial_limits),
        limits=Limits(limits.max_bytes, limits.max_files),
    )
    rollout = Rollout(
        state=state,
        file=file,
        hub=hub,
        preparer=preparer,
        store=store,
        retain=control.retain,
        ack_timeout_seconds=control.ack_timeout_seconds,
    )
    watcher = Watcher(
        MlflowRegistry(uri, timeout_seconds=settings.registry.timeout_seconds),
        poll_seconds=settings.registry.poll_seconds,
        on_change=rollout.desire,
        random=random.random,
        before=state.desired,
    )
    return rollout, watcher


@contextlib.asynccontextmanager
async def _grpc_server(
    settings: Settings, rollout: Rollout, watcher: Watcher, store: ArtifactStore
) -> AsyncIterator[tuple[grpc.aio.Server, health.aio.HealthServicer, int]]:
    server = grpc.aio.server(
        options=[
            # With it a second control plane on the same port would start silently.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", 4 * 2**20),
            ("grpc.max_send_message_length", 64 * 2**20),
            # A server that vanished without a word is noticed within 15 s.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ]
    )
    health_service = health.aio.HealthServicer()
    # It starts as SERVING; nothing is served before start-up ends.
    await health_service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    services.add_SnapshotsServicer_to_server(rollout.hub, server)  # type: ignore[no-untyped-call]
    services.add_ArtifactsServicer_to_server(ArtifactService(store), server)  # type: ignore[no-untyped-call]
    operator = OperatorService(rollout, watcher, uri=settings.registry.uri)
    services.add_OperatorServicer_to_server(operator, server)  # type: ignore[no-untyped-call]
    names = [f"hedgerow.control.v1.{name}" for name in _SERVICES]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server, pool=POOL)
    address = f"{settings.control.host}:{settings.control.grpc_port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise StartError(
            f"cannot listen on {address} for gRPC; is another control plane running? "
            "Choose another with --grpc-port (0 for any)"
        ) from None
    try:
        yield server, health_service, port
    finally:
        await server.stop(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host}:{port} for HTTP ({error.strerror}); "
            "choose another with --http-port (0 for any)"
        ) from None
    listener.listen(128)
    return listener


class _WebServer(uvicorn.Server):  # type: ignore[misc]
    """uvicorn in our loop: signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _state_directory(directory: Path) -> Iterator[None]:
    """Makes the directory and locks it: two control planes on one state would undo each other's work."""
    import fcntl  # noqa: PLC0415 - not on every platform

    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot use the state directory {directory}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another control plane uses the state directory {directory}") from None
        yield
    finally:
        os.close(lock)


async def _prune(rollout: Rollout) -> None:
    while True:
        await asyncio.sleep(_PRUNE_SECONDS)
        await rollout.prune()


def _say_ready(settings: Settings, grpc_port: int, http_port: int) -> None:
    host = settings.control.host
    print(
        f"hedgerow-control ready grpc={host}:{grpc_port} http={host}:{http_port} "
        f"registry={settings.registry.uri} pid={os.getpid()} (Ctrl-C to stop)",
        flush=True,
    )
