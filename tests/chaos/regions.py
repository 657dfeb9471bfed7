"""Two regions that can be killed, frozen, slowed and cut off while `asker.py` asks them.

    with two_regions(tmp_path, east={"hedge__backups": "{west}"}) as (east, west):
        with asking(client_of(east.address), rate=200, seconds=10) as load:
            load.wait_until(3)
            east.kill()
            load.wait_until(6)
            east.start()
    assert codes(load.between(0, 2.9)) == {"OK": len(load.between(0, 2.9))}

Servers and proxies are processes; all calls here block, so a test on an event loop makes them in a thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from asker import MODEL, SEED
from fault_hosts import ProxyProcess
from hedgerow_bench import counters, mlp, procfs
from hedging_peers import dependencies
from server_process import HANG_SECONDS, ServerProcess, start_server


class Region:
    """A server, and the proxy through which everybody reaches it.

    Attributes:
        proxy: Breaks the way there: `region.proxy.do("latency 50")`; see fault_command.py.
        address: Of the proxy: `host:port`, the same for good.
    """

    def __init__(self, name: str, directory: Path, proxy: ProxyProcess) -> None:
        self.name = name
        self.proxy = proxy
        self.address = proxy.address
        self._directory = directory
        self._models: Mapping[str, Path] = {}
        self._flags: Mapping[str, Any] = {}
        self._server: ServerProcess | None = None

    @property
    def is_up(self) -> bool:
        """Whether it was started, and neither killed nor drained since."""
        return self._server is not None

    @property
    def server(self) -> ServerProcess:
        """The running one; its ports change from start to start."""
        assert self._server is not None, f"{self.name} is down"
        return self._server

    def start(self, models: Mapping[str, Path] | None = None, flags: Mapping[str, Any] | None = None) -> None:
        """Starts the server and waits until it is ready; without arguments as the last time."""
        assert self._server is None, f"{self.name} runs"
        self._models = self._models if models is None else models
        self._flags = self._flags if flags is None else flags
        self._server = start_server(self._directory, self._models, self._flags)
        self.proxy.do(f"target {self._server.grpc}")

    def kill(self) -> None:
        """SIGKILL: the kernel tells everybody that the connections are gone. Harmless to one that is down."""
        if self._server is not None:
            self._signal(signal.SIGKILL)
            self._ended()

    def drain(self) -> int:
        """SIGTERM; returns the exit code."""
        self.server.terminate()
        return self._ended()

    def pause(self) -> None:
        """SIGSTOP: connections are accepted, nothing is answered, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Goes on, after `pause`."""
        self._signal(signal.SIGCONT)

    def count(self, metric: str) -> float:
        """A counter of the server's metrics page, summed over its labels; `hedgerow_requests_total`, say."""
        with urllib.request.urlopen(f"http://{self.server.metrics}/metrics", timeout=10) as page:
            return counters.total(page.read().decode(), metric)

    def wait_until_whole(self) -> None:
        """Until every backup, if there are any, has answered a probe and its circuit breaker is closed.

        A closed breaker says less: a backup that was never there is believed in until the third probe.
        """
        deadline = time.monotonic() + HANG_SECONDS
        while not all(map(_is_usable, dependencies(self.server).items())):
            assert time.monotonic() < deadline, f"{self.name}: {self.server.messages()[-3000:]}"
            time.sleep(0.05)

    def _signal(self, number: int) -> None:
        """To the supervisor first, which would otherwise start workers anew."""
        for process in procfs.family(self.server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def _ended(self) -> int:
        code = self.server.wait()
        assert self.server.process.stdout is not None
        self.server.process.stdout.close()
        self._server = None
        return code


@contextlib.contextmanager
def two_regions(
    directory: Path,
    models: Mapping[str, Path] | None = None,
    *,
    east: Mapping[str, Any] = {},
    west: Mapping[str, Any] = {},
    both: Mapping[str, Any] = {},
) -> Iterator[tuple[Region, Region]]:
    """Two servers with the same models, `east` and `west`, each behind a proxy of its own.

    Args:
        directory: Each gets one in it, with its request log and messages.
        models: Files by name; None: the perceptron, as `MODEL`.
        east: Its flags and settings, as for `start_server`; `{east}` and `{west}` in a text stand for the
            address at which a region is reached.
        west: The same for the other.
        both: For either.
    """
    if models is None:
        models = {MODEL: directory / "mlp.onnx"}
        mlp.write(models[MODEL], SEED)
    with contextlib.ExitStack() as stack:
        regions = []
        for name in ("east", "west"):
            (directory / name).mkdir()
            # Where it leads is known when the server has started; servers are told of proxies before.
            proxy = stack.enter_context(ProxyProcess("127.0.0.1:1"))
            regions.append(Region(name, directory / name, proxy))
            stack.callback(regions[-1].kill)
        addresses = {region.name: region.address for region in regions}

        def start(region: Region, own: Mapping[str, Any]) -> None:
            flags = {"server__region": region.name, **both, **own}
            region.start(models, {key: _filled_in(value, addresses) for key, value in flags.items()})

        with ThreadPoolExecutor() as together:
            # Whoever is first finds the other missing, and takes a while to believe that it is there.
            list(together.map(start, regions, (east, west)))
        for region in regions:
            region.wait_until_whole()
        yield regions[0], regions[1]


def _is_usable(dependency: tuple[str, Mapping[str, Any]]) -> bool:
    """A backup is known by its address until it has said which region it is."""
    name, status = dependency
    return not name.startswith("backup ") or (
        status["state"] == "closed" and name != f"backup {status['region']}"
    )


def _filled_in(value: Any, addresses: Mapping[str, str]) -> Any:
    return value.format(**addresses) if isinstance(value, str) else value
