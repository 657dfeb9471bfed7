"""The fault proxy for code without an event loop: in a thread, or in a process of its own.

    with ProxyThread("127.0.0.1:8001") as proxy:
        proxy.do("latency 50 10 downstream")
        hedgerow.Client(proxy.address)...

Both take the commands that `python tests/chaos/fault_proxy.py` takes on stdin. A process does not compete
with its caller for the GIL: measurements want that.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import fault_command
from fault_proxy import FaultProxy, Faults

T = TypeVar("T")
#: Seconds; everything a proxy is asked to do takes milliseconds.
_HANG = 20


class ProxyThread:
    """A `FaultProxy` on an event loop in a thread; arguments are its own.

    Raises:
        OSError: By `with`: the port is taken.
    """

    def __init__(self, target: str, **options: Any) -> None:
        self._proxy = FaultProxy(target, **options)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(_HANG)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_HANG)
        assert not self._thread.is_alive(), "the proxy hangs"

    @property
    def address(self) -> str:
        """Where callers go: `host:port`."""
        return self._proxy.address

    def do(self, command: str) -> str:
        """Performs a command of `fault_command.COMMANDS`; ValueError if it is none. Returns the status."""
        return self.call(lambda proxy: fault_command.perform(proxy, command))

    def set(self, *, upstream: Faults | None = None, downstream: Faults | None = None) -> None:
        """Sets the faults of one direction or of both."""

        def work(proxy: FaultProxy) -> None:
            proxy.upstream = upstream or proxy.upstream
            proxy.downstream = downstream or proxy.downstream

        self.call(work)

    def counts(self) -> dict[str, int]:
        """What happened so far; see `FaultProxy`."""
        return self.call(lambda proxy: dict(proxy.counts))

    def call(self, work: Callable[[FaultProxy], T]) -> T:
        """Has the proxy's thread do something with it."""

        async def do() -> T:
            return work(self._proxy)

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(_HANG)

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self._proxy:
            self._started.set_result(None)
            await self._stop.wait()


class ProxyProcess:
    """A fault proxy as a process, which ends with the block, or with its parent.

    Args:
        target: The server's `host:port`.
        flags: Of `fault_proxy.py`, such as `"--latency-ms", "50"`.
    """

    def __init__(self, target: str, *flags: str) -> None:
        script = str(Path(__file__).with_name("fault_proxy.py"))
        self._command = [sys.executable, script, "--until-eof", "--target", target, *flags]
        self._process: subprocess.Popen[str]
        self.address = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C in a terminal is for who started it
        )
        line = self._answer()
        found = re.search(r"listen=(\S+)", line)
        if found is None:
            self.__exit__(None, None, None)
            raise OSError(f"the proxy did not start; see its stderr. It said {line!r}")
        self.address = found[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_HANG)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def do(self, command: str) -> str:
        """Performs a command of `fault_command.COMMANDS`, other than help; returns the status.

        Raises:
            ValueError: It is none.
            OSError: The process is gone.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer.startswith("error: "):
            raise ValueError(answer.removeprefix("error: "))
        return answer

    def counts(self) -> dict[str, int]:
        """What happened so far; see `FaultProxy`."""
        happened = self.do("status").rpartition(";")[2]
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", happened)}

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line and self._process.poll() is not None and self.address:
            raise OSError(f"the proxy has ended with exit code {self._process.returncode}")
        return line.rstrip()
