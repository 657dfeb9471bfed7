"""The whole system on one machine: MLflow, PostgreSQL, Valkey, the control plane and two regions.

Everything it writes lies under one directory; everything it starts ends with
it, even when it is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from hedgerow_local.addresses import (
    DEFAULT,
    FREE,
    Ports,
    ServerPorts,
    StackPorts,
    around_proxies,
    check,
    listen,
)
from hedgerow_local.child import Child, ChildFailed
from hedgerow_local.endpoints import Endpoints
from hedgerow_local.feature_store import FeatureStore, choose
from hedgerow_local.lock import take

#: Seconds until a process must be ready. MLflow imports for 8 s on an idle machine, and for 45 on a busy one.
_MLFLOW_READY, _CONTROL_READY, _SERVER_READY, _STORE_READY = 180.0, 90.0, 90.0, 90.0
#: In ready lines.
_ADDRESSES = ("grpc", "http", "metrics")
#: Said when something is ready or gone: the process's name and a line for people.
Tell = Callable[[str, str], None]


class Stack:
    """An async context manager; inside, all parts are ready and `endpoints` says where.

    Args:
        root: Databases, model files, logs and endpoints.json. One stack at a time.
        ports: `default` for the documented ones, `free` for any.
        workers: Processes of each server.
        tell: Hears what becomes ready and what ends.
        settings: Environment for every part, `HEDGEROW_SECTION__KEY`.

    Raises:
        AlreadyRunning, PortTaken: On entering, before anything is started.
        ChildFailed: On entering, with the last lines of the part that failed.
    """

    def __init__(
        self,
        root: Path = Path("var/local"),
        *,
        ports: Ports = "default",
        workers: int = 1,
        tell: Tell = lambda _name, _line: None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root.absolute()
        self.children: dict[str, Child] = {}
        self.endpoints: Endpoints | None = None
        #: Resolves to the name of a part that ended without being asked to.
        self.lost: asyncio.Queue[str] = asyncio.Queue()
        self._ports: StackPorts = DEFAULT if ports == "default" else FREE
        self._workers = workers
        self._tell = tell
        self._settings = dict(settings or {})
        self._features: FeatureStore | None = None
        self._lock: IO[str] | None = None
        self._mlflow = self._control = ""
        self._watchers: list[asyncio.Task[None]] = []
        self._stopping = False
        # Region and own settings of each.
        self._servers: dict[str, tuple[str, Mapping[str, str]]] = {}
        # What each part said when it was ready: where it listens.
        self._said: dict[str, dict[str, str]] = {}
        #: Parts that ended on purpose.
        self._killed: set[str] = set()

    async def __aenter__(self) -> Self:
        self._lock = take(self.root / "lock")
        try:
            check(self._ports)
            self._features = choose(self.root, self._settings)
            self.endpoints = await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Drains the servers first, so that none loses its registry while it answers; then the rest."""
        if self._lock is None:
            return  # Never entered: the directory, and what runs from it, is another stack's.
        self._stopping = True
        Endpoints.remove(self.root)
        for names in (self._servers, ("control",), ("mlflow", "postgres", "valkey")):
            children = [self.children[name] for name in names if name in self.children]
            await asyncio.gather(*(child.stop() for child in children))
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self._features is not None:
            self._features.close()
        self._lock.close()
        self._lock = None

    def kill(self) -> None:
        """Ends everything now; a `stop` under way then returns."""
        for child in self.children.values():
            child.kill()

    async def kill_part(self, name: str) -> None:
        """Kills one part as an accident would (SIGKILL); nobody is told of a loss."""
        self._killed.add(name)
        self.children[name].kill()
        await self.children[name].ended()

    async def start_again(self, name: str) -> None:
        """Starts a part that was killed, as it was and where it was.

        Raises:
            PortTaken: Another process listens there meanwhile, where MLflow did.
            ChildFailed: It ended again, or was not ready in time.
        """
        said = self._said[name]
        ports = {key: int(said[key].rpartition(":")[2]) for key in _ADDRESSES if key in said}
        if name == "mlflow":
            await self._begin_mlflow(ports["http"])
        elif name == "control":
            await self._begin_control(ports["grpc"], ports["http"])
        elif name in self._servers:
            await self._begin_server(name, ServerPorts(ports["grpc"], ports["http"], ports["metrics"]))
        else:
            await self._begin_program(name)
        self._killed.discard(name)
        await self._ready(name, _MLFLOW_READY if name == "mlflow" else _STORE_READY)

    async def _start(self) -> Endpoints:
        """Starts everything that does not need another's port at once, then the rest."""
        assert self._features is not None
        for name in self._features.programs:
            await self._begin_program(name)
        await self._begin_mlflow(self._ports.mlflow)
        await self._begin_control(self._ports.control_grpc, self._ports.control_http)
        # The servers need the control plane's port; nobody needs the others to start.
        (control, server, backup), _ = await _all(self._start_regions(), self._others_ready())
        for child in self.children.values():
            if not child.running:  # Ready, and gone while another was starting.
                raise ChildFailed(child.obituary())
        endpoints = Endpoints(
            pid=os.getpid(),
            server=server["grpc"],
            server_http=server["http"],
            server_metrics=server["metrics"],
            backup=backup["grpc"],
            backup_http=backup["http"],
            backup_metrics=backup["metrics"],
            control=control["grpc"],
            control_http=control["http"],
            mlflow=self._mlflow,
            store=self._features.store,
            cache=self._features.cache,
        )
        endpoints.write(self.root)
        return endpoints

    async def _begin_program(self, name: str) -> None:
        assert self._features is not None
        program = self._features.programs[name]
        await self._begin(
            name, program.command, stop_signal=program.stop_signal, ready_text=program.ready_text
        )

    async def _begin_mlflow(self, port: int) -> None:
        with listen(port, "MLflow") as registry:
            host, port = registry.getsockname()
            self._mlflow = f"http://{host}:{port}"
            arguments = ("--fd", str(registry.fileno()), "--directory", str(self.root / "mlflow"))
            await self._begin(
                "mlflow",
                (sys.executable, "-m", "hedgerow_local.mlflow_server", *arguments),
                pass_fds=(registry.fileno(),),
            )

    async def _begin_control(self, grpc_port: int, http_port: int) -> None:
        await self._begin(
            "control",
            (sys.executable, "-m", "hedgerow_control"),
            {
                "HEDGEROW_CONTROL__GRPC_PORT": str(grpc_port),
                "HEDGEROW_CONTROL__HTTP_PORT": str(http_port),
                "HEDGEROW_CONTROL__STATE_DIR": str(self.root / "control"),
                "HEDGEROW_REGISTRY__URI": self._mlflow,
            },
        )

    async def _others_ready(self) -> None:
        for name in ("valkey", "postgres"):
            if name in self.children:
                await self._ready(name, _STORE_READY)
        await self._ready("mlflow", _MLFLOW_READY)

    async def _start_regions(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        control = await self._ready("control", _CONTROL_READY)
        self._control = control["grpc"]
        # The backup first: the server is told where it is.
        backup = await self._start_server("backup", "backup", self._ports.backup)
        server = await self._start_server(
            "server", "primary", self._ports.server, {"HEDGEROW_HEDGE__BACKUPS": backup["grpc"]}
        )
        return control, server, backup

    async def add_server(self, name: str, region: str, settings: Mapping[str, str]) -> dict[str, str]:
        """Starts another server of the same control plane, on free ports; it ends with the stack.

        Args:
            name: Of its log files.
            region: Where it says it is.
            settings: Environment for it alone, `HEDGEROW_SECTION__KEY`.

        Returns:
            Where it answers: `grpc`, `http` and `metrics`, as `host:port`.

        Raises:
            ChildFailed: It ended, or was not ready in time.
        """
        return await self._start_server(name, region, FREE.server, settings)

    async def stop_server(self, name: str) -> None:
        """Drains and ends a server that was added."""
        self._killed.add(name)
        await self.children[name].stop()

    async def _start_server(
        self, name: str, region: str, ports: ServerPorts, settings: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        self._servers[name] = (region, settings or {})
        await self._begin_server(name, ports)
        return await self._ready(name, _SERVER_READY)

    async def _begin_server(self, name: str, ports: ServerPorts) -> None:
        assert self._features is not None
        region, settings = self._servers[name]
        await self._begin(
            name,
            (sys.executable, "-m", "hedgerow_server"),
            {
                **self._features.environment(),
                "HEDGEROW_SERVER__CONTROL": self._control,
                "HEDGEROW_SERVER__REGION": region,
                "HEDGEROW_SERVER__NODE": f"local-{region}",
                "HEDGEROW_SERVER__GRPC_PORT": str(ports.grpc),
                "HEDGEROW_SERVER__HTTP_PORT": str(ports.http),
                "HEDGEROW_SERVER__METRICS_PORT": str(ports.metrics),
                "HEDGEROW_SERVER__WORKERS": str(self._workers),
                "HEDGEROW_SERVER__STATE_DIR": str(self.root / name),
                "HEDGEROW_LOG__REQUESTS": str(self.root / "log" / f"{name}-requests.log"),
                **settings,
            },
        )

    async def _begin(
        self,
        name: str,
        command: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        child = Child(
            name,
            command,
            log=self.root / "log" / f"{name}.log",
            environment={**around_proxies(), **(environment or {}), **self._settings},
            **more,
        )
        self.children[name] = child
        await child.start()
        self._watchers.append(asyncio.create_task(self._watch(child)))

    async def _ready(self, name: str, within: float) -> dict[str, str]:
        began = time.monotonic()
        said = self._said[name] = await self.children[name].ready(within)
        where = " ".join(f"{key}={said[key]}" for key in _ADDRESSES if key in said)
        if self._features is not None and name in self._features.programs:
            where = self._features.programs[name].where
        self._tell(name, f"ready {where} ({time.monotonic() - began:.1f} s)")
        return said

    async def _watch(self, child: Child) -> None:
        await child.ended()
        if not self._stopping and self.endpoints is not None and child.name not in self._killed:
            self._tell(child.name, f"{child.obituary()}\nEverything else goes on without it.")
            self.lost.put_nowait(child.name)


First = TypeVar("First")
Second = TypeVar("Second")


async def _all(one: Coroutine[None, None, First], two: Coroutine[None, None, Second]) -> tuple[First, Second]:
    """Runs both; the first to fail ends the other, and its own error is raised, not a group of one."""
    try:
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(one), group.create_task(two)
    except* ChildFailed as failed:
        raise failed.exceptions[0] from None
    return first.result(), second.result()
