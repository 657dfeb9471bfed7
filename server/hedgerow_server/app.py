"""The composition root of a worker: settings in, running server out. Only here are things built."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as release
from pathlib import Path

from hedgerow_protos.hedgerow_control_pb2 import Hello, ModelVersion, ServingSpec
from hedgerow_protos.hedging import Budget

from hedgerow_server import ports
from hedgerow_server.answer import Answerer
from hedgerow_server.engine import loading, packing
from hedgerow_server.engine.catalog import Catalog
from hedgerow_server.engine.files import ArtifactStore
from hedgerow_server.engine.loader import Loader, Resolve
from hedgerow_server.engine.loader_threads import LoaderThreads
from hedgerow_server.engine.probe import ProbeLimits, probe
from hedgerow_server.engine.runners import Engine
from hedgerow_server.errors import ServingError
from hedgerow_server.features.cache import RedisCache
from hedgerow_server.features.features import Features
from hedgerow_server.features.store import PostgresStore
from hedgerow_server.gate.admission import Admission
from hedgerow_server.gate.busy import Busy, processors_of_each
from hedgerow_server.gate.concurrency import Bounds
from hedgerow_server.gate.deadlines import Deadlines
from hedgerow_server.resilience.backup import Backup
from hedgerow_server.resilience.fault import FaultInjection
from hedgerow_server.resilience.hedger import Hedger
from hedgerow_server.routing.applying import Applier
from hedgerow_server.routing.control_channel import RemoteFiles, connect
from hedgerow_server.routing.last_good import LastGood
from hedgerow_server.routing.local_models import LocalModels
from hedgerow_server.routing.reports import Reports
from hedgerow_server.routing.subscription import Subscription
from hedgerow_server.routing.table import RouteTable
from hedgerow_server.rpc.describe import DescribeHandlers
from hedgerow_server.rpc.health import Health
from hedgerow_server.rpc.http import health_app
from hedgerow_server.rpc.http_server import HttpServer
from hedgerow_server.rpc.infer import InferHandlers
from hedgerow_server.rpc.operate import OperateHandlers
from hedgerow_server.rpc.server import WORKER, Handlers, RpcServer
from hedgerow_server.scheduling import be_nice
from hedgerow_server.settings import Settings
from hedgerow_server.telemetry.gather import Gatherer
from hedgerow_server.telemetry.request_log import open_log
from hedgerow_server.worker import WorkerLink

log = logging.getLogger(__name__)

#: A server under a control plane listens when it has something to serve, or
#: after so many seconds without: it then says of itself that it is not ready.
FIRST_SNAPSHOT_SECONDS = 5.0

Publish = Callable[[RouteTable], None]
#: Starts a task that runs as long as the worker; its name is for logs.
Begin = Callable[[Coroutine[None, None, None], str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the models come from: the command line, or a control plane."""

    catalog: Catalog
    #: Brings the first models into force; raises ServingError if that cannot be.
    start: Callable[[Begin], Awaitable[None]]
    #: What should be there and is not.
    missing: Callable[[], list[str]]
    #: What the source leans on, for /health/dependencies.
    dependencies: Callable[[], dict[str, object]]
    #: For operators to load and unload; None where the control plane decides.
    repository: LocalModels | None


async def serve(settings: Settings, worker: int, link: WorkerLink) -> None:
    """Runs one worker until `link.stop` is set: builds, starts, waits, drains, stops.

    Args:
        settings: with the real ports.
        worker: number of this worker, from 0.
        link: tells the supervisor how it goes.
    """
    # Hashes, files, drops of models: none of it may keep the loop waiting for a core.
    aside = ThreadPoolExecutor(4, thread_name_prefix="aside", initializer=be_nice)
    asyncio.get_running_loop().set_default_executor(aside)
    server = settings.server
    requests = open_log(settings.log.requests, worker=worker, workers=server.workers)
    below = settings.engine.inline_below_us
    engine = Engine(
        runners=settings.engine.runners,
        instances=settings.engine.instances or max(1, round(processors_of_each(server.workers))),
        inline_below=None if below is None else below * 1e-6,
    )
    answerer = Answerer(
        engine,
        requests,
        deadlines=Deadlines(settings.deadline.default_seconds, settings.deadline.maximum_seconds),
        max_message_bytes=server.max_message_bytes,
        admission=_admission(settings),
        region=server.region,
    )
    features = _features(settings, answerer)
    answerer.join_with(features)
    hedger = _hedger(settings)
    if hedger is not None:
        answerer.hedge_with(hedger)
    if fault := _fault(settings):
        answerer.harm_with(fault)
    reports = Reports()

    def publish(table: RouteTable) -> None:
        gatherer.follow(table)
        health.change()
        # Last: if anything above failed, the catalog would take the table back.
        answerer.use(table)

    async with contextlib.AsyncExitStack() as stack:
        # However the worker ends: the last runs, then the last lines.
        stack.push_async_callback(requests.close)
        stack.push_async_callback(engine.close)
        stack.push_async_callback(features.close)
        if hedger is not None:
            stack.push_async_callback(hedger.close)
        source = (
            await _from_control(settings, worker, publish, reports, stack)
            if server.control
            else _from_command_line(settings, publish, reports)
        )
        stack.push_async_callback(source.catalog.close)
        gatherer = Gatherer(answerer, source.catalog, requests, features, hedger)
        health = Health(
            answerer,
            source.missing,
            lambda: {
                **source.dependencies(),
                **features.status(),
                **(hedger.status() if hedger is not None else {}),
            },
        )
        token = server.operator_token
        operate = OperateHandlers(
            source.repository, token.get_secret_value() if token else None, workers=server.workers
        )
        describe = DescribeHandlers(answerer, health, reports, region=server.region)
        # So that a client learns whether its connections lead to every worker.
        said = [(WORKER, f"{worker}/{server.workers}")] if server.workers > 1 else []
        rpc = RpcServer(
            settings,
            answerer,
            Handlers(InferHandlers(answerer, said), describe, operate, health),
            link.directory,
            said=said,
            own_port=link.own_port,
        )

        link.answer_metrics(gatherer.dump)
        await engine.start(answerer.finish, answerer.expire)
        begin = await stack.enter_async_context(_background())
        begin(health.follow(), "health")
        if hedger is not None:
            begin(hedger.run(), "backups")
        try:
            # First up and last down: it says "not ready" while models load and while calls drain.
            await stack.enter_async_context(
                HttpServer(health_app(health), ports.listen(server.host, server.http_port))
            )
            if await _done_before(link.stop, source.start(begin)):
                grpc_port = await rpc.start()
                stack.push_async_callback(_drain, settings, answerer, health, rpc)
                health.change()
                _take_turns()
                _quiet_collector()
                link.ready(grpc_port, server.http_port)
                await link.stop.wait()
        except (ServingError, OSError, RuntimeError) as error:
            # The model is refused, or a port cannot be bound.
            link.failed(str(error))


def _admission(settings: Settings) -> Admission:
    """Bounds what each model has under way; knows how busy this worker is."""
    wanted = settings.admission
    return Admission(
        Bounds(wanted.min_limit, wanted.max_limit, adaptive=wanted.adaptive),
        Busy(processors_of_each(settings.server.workers)),
    )


def _features(settings: Settings, answerer: Answerer) -> Features:
    """Joins features from the store and the cache that are configured."""
    wanted = settings.features
    store = cache = None
    if wanted.store is not None:
        store = PostgresStore(
            wanted.store.get_secret_value(),
            connections=wanted.store_connections,
            statement_timeout=wanted.store_timeout_ms / 1000,
        )
    if wanted.cache is not None:
        cache = RedisCache(wanted.cache.get_secret_value(), connections=wanted.cache_connections)
    return Features(wanted, store=store, cache=cache, done=answerer.joined)


def _hedger(settings: Settings) -> Hedger | None:
    """Tries requests at the configured backups as well; None without any."""
    wanted = settings.hedge
    if not wanted.backups:
        return None
    return Hedger(
        [Backup(address, ca=wanted.ca, probe_seconds=wanted.probe_seconds) for address in wanted.backups],
        Budget(wanted.budget_percent / 100, wanted.burst),
        after=wanted.after_ms / 1000,
        adaptive=wanted.adaptive,
    )


def _fault(settings: Settings) -> FaultInjection | None:
    """What [fault] does to requests on purpose; None if that is nothing."""
    wanted = settings.fault
    if not (wanted.delay_percent or wanted.abort_percent):
        return None
    log.warning(
        "fault injection is on: %g %% of requests wait %g ms, %g %% fail",
        wanted.delay_percent,
        wanted.delay_ms,
        wanted.abort_percent,
    )
    return FaultInjection(
        delay_percent=wanted.delay_percent,
        delay=wanted.delay_ms / 1000,
        abort_percent=wanted.abort_percent,
    )


def _take_turns() -> None:
    """Has a thread that the event loop waits for give the GIL up after half a millisecond, not after five.

    Loads, packing and the request log run Python beside the loop. Throughput does not notice (as many
    answers a second at 64 under way, within 2 %).
    """
    sys.setswitchinterval(0.0005)


def _quiet_collector() -> None:
    """Keeps the garbage collector out of the request path as far as it can be.

    What the start has built stays until the end: frozen, it is not looked at again. The request
    path makes no cycles, so what is left to collect comes from swaps, streams and failures; the
    young generation grows to what one burst of requests holds before it is looked through.
    Not at every swap: a full collection of what is not frozen takes tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _done_before(stop: asyncio.Event, work: Awaitable[None]) -> bool:
    """Does the work, or cancels it when `stop` is set first; tells whether it is done."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.done() and working.result() is None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.wait((working, stopping))


async def _drain(settings: Settings, answerer: Answerer, health: Health, rpc: RpcServer) -> None:
    """Refuses new requests, lets those under way finish, closes."""
    log.info("draining: %d requests under way", answerer.in_flight)
    answerer.draining = True
    await health.tell()
    await rpc.stop(settings.server.drain_seconds)


def _from_command_line(settings: Settings, publish: Publish, reports: Reports) -> Source:
    """The models that `--model` names."""
    local = LocalModels(settings.models, partial(_trial, settings))
    catalog = _catalog(settings, local.resolve, publish, reports)

    async def start(begin: Begin) -> None:
        del begin
        await local.load_all(catalog.apply)

    return Source(
        catalog,
        start,
        missing=lambda: [] if local.complete else ["models are being loaded"],
        dependencies=dict,
        repository=local,
    )


async def _from_control(
    settings: Settings,
    worker: int,
    publish: Publish,
    reports: Reports,
    stack: contextlib.AsyncExitStack,
) -> Source:
    """The models that the control plane decides on, and before that the last it decided on."""
    server = settings.server
    channel = await stack.enter_async_context(connect(server.control))
    artifacts = ArtifactStore(server.state_dir / "artifacts")
    stack.callback(artifacts.close)
    files = RemoteFiles(channel)

    def resolve(name: str, version: ModelVersion) -> Awaitable[Path]:
        del name
        return artifacts.ensure(version, files.fetch)

    in_force = asyncio.Event()

    def publish_and_tell(table: RouteTable) -> None:
        publish(table)
        in_force.set()

    catalog = _catalog(settings, resolve, publish_and_tell, reports)
    subscription = Subscription(
        channel=channel,
        hello=Hello(node=f"{server.node}/{worker}", region=server.region, release=release("hedgerow")),
        address=server.control,
        applier=Applier(catalog=catalog, last_good=LastGood(server.state_dir), artifacts=artifacts),
        catalog=catalog,
        reports=reports,
    )

    async def start(begin: Begin) -> None:
        begin(subscription.run(), "subscription")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SNAPSHOT_SECONDS):
                await in_force.wait()

    return Source(
        catalog,
        start,
        missing=lambda: (
            [] if in_force.is_set() else [f"no snapshot yet from {server.control} or from the disk"]
        ),
        dependencies=lambda: {"control_plane": subscription.status()},
        repository=None,
    )


def _catalog(settings: Settings, resolve: Resolve, publish: Publish, reports: Reports) -> Catalog:
    load = partial(
        loading.load,
        mapped=True,
        default_max_batch_size=settings.engine.max_batch_size,
        warmup_timeout=settings.engine.warmup_timeout,
    )
    pack = partial(packing.pack, warmup_timeout=settings.engine.warmup_timeout)
    loader = Loader(
        resolve=resolve,
        executor=LoaderThreads(),
        load=load,
        pack=pack if settings.engine.prepack == "auto" else None,
    )
    return Catalog(loader=loader, publish=publish, report=reports.record)


async def _trial(settings: Settings, directory: Path, path: str, serving: ServingSpec) -> str:
    limits = ProbeLimits(
        memory_bytes=settings.engine.trial_memory_bytes,
        cpu_seconds=settings.engine.trial_cpu_seconds,
        wall_seconds=settings.engine.trial_wall_seconds,
    )
    verdict = await probe(directory, path, serving, limits)
    return "" if verdict.ok else verdict.reason


@contextlib.asynccontextmanager
async def _background() -> AsyncIterator[Begin]:
    """Tasks that run as long as the worker; if one fails, the worker does."""
    tasks: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as group:

        def begin(work: Coroutine[None, None, None], name: str) -> None:
            tasks.append(group.create_task(work, name=name))

        try:
            yield begin
        finally:
            for task in tasks:
                task.cancel()
