"""One process of the stack: started, watched, logged, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from hedgerow_local.log_file import LogFile

_TETHER = Path(__file__).with_name("tether.py")
#: Lines that are shown when a process fails.
_LAST_LINES = 12
_LONGEST_LINE = 1 << 16


def tether_command(grace: int, stop_signal: signal.Signals) -> tuple[str, ...]:
    """What goes before a command that must not outlive this process; see tether.py."""
    tether = (sys.executable, "-I", "-S", str(_TETHER))
    return (*tether, str(os.getpid()), str(grace), str(int(stop_signal)))


class ChildFailed(Exception):
    """A process ended, or did not become ready; the message shows its last lines."""


class Child:
    """A process, its log file and what it said when it was ready.

    Args:
        name: For people: `control`, `server`, …
        command: Program and arguments.
        log: Its stdout and stderr go here, bounded.
        environment: Added to this process's own.
        grace: Seconds between `stop_signal` and SIGKILL.
        stop_signal: What asks it to finish.
        pass_fds: File descriptors that it inherits.
        ready_text: For a program that does not write our ready line: what a line contains when it is ready.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        grace: int = 15,
        stop_signal: signal.Signals = signal.SIGTERM,
        pass_fds: Sequence[int] = (),
        ready_text: str = "",
    ) -> None:
        self.name = name
        self.log = log
        self._command = tuple(command)
        self._environment = dict(environment or {})
        self._grace = grace
        self._stop_signal = stop_signal
        self._ready_text = ready_text
        self._pass_fds = tuple(pass_fds)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._follower: asyncio.Task[None] | None = None
        self._said_ready: asyncio.Future[dict[str, str]] | None = None

    def __repr__(self) -> str:
        if self._process is None:
            return f"<Child {self.name} not started>"
        code = self._process.returncode
        state = f"pid={self._process.pid}" if code is None else f"ended with {code}"
        return f"<Child {self.name} {state}>"

    async def start(self) -> None:
        """Starts the process; returns at once."""
        tethered = tether_command(self._grace, self._stop_signal)
        self._process = await asyncio.create_subprocess_exec(
            *tethered,
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
            pass_fds=self._pass_fds,
            limit=_LONGEST_LINE,
            # A Ctrl-C in the terminal is for whoever runs the stack, who stops it in order.
            start_new_session=True,
        )
        self._said_ready = asyncio.get_running_loop().create_future()
        self._follower = asyncio.create_task(self._follow(self._process, self._said_ready))

    async def ready(self, within: float) -> dict[str, str]:
        """Waits for the ready line, `NAME ready key=value …`.

        Args:
            within: Seconds.

        Returns:
            The line's keys and values: `grpc`, `http`, … as `host:port`; none with a `ready_text`.

        Raises:
            ChildFailed: It ended first, or said nothing in time.
        """
        assert self._said_ready is not None
        assert self._follower is not None
        await asyncio.wait(
            (self._said_ready, self._follower), timeout=within, return_when=asyncio.FIRST_COMPLETED
        )
        if self._said_ready.done():
            return self._said_ready.result()
        if self._follower.done():
            raise ChildFailed(self.obituary())
        raise ChildFailed(f"{self.name} was not ready after {within:.0f} s. {self._last_lines()}")

    async def ended(self) -> int:
        """Waits for the end of the process and its output; its exit code."""
        assert self._process is not None
        assert self._follower is not None
        await asyncio.shield(self._follower)
        return await self._process.wait()

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def stop(self) -> None:
        """Asks it to finish, in the end kills it; returns when it has ended. Harmless a second time."""
        self._signal(signal.SIGTERM)
        if self._process is not None:
            await self.ended()

    def kill(self) -> None:
        """Ends it and all it started at once."""
        self._signal(signal.SIGQUIT)

    def _signal(self, signum: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signum)

    def obituary(self) -> str:
        """How it ended, and its last words."""
        code = self._process.returncode if self._process else None
        return f"{self.name} ended with exit code {code}. {self._last_lines()}"

    def _last_lines(self) -> str:
        if not self._last:
            return f"It wrote nothing ({self.log})."
        return "\n".join([f"Its last lines ({self.log}):", *(f"    {line}" for line in self._last)])

    async def _follow(
        self, process: asyncio.subprocess.Process, said_ready: asyncio.Future[dict[str, str]]
    ) -> None:
        assert process.stdout is not None
        with LogFile(self.log) as log:
            while True:
                try:
                    line = await process.stdout.readline()
                except ValueError:  # Longer than the limit; readline has dropped it.
                    line = b"(a line too long to keep)\n"
                if not line:
                    break
                log.write(line)
                text = line.decode(errors="replace").rstrip()
                self._last.append(text)
                said = self._read_ready(text)
                if said is not None and not said_ready.done():
                    said_ready.set_result(said)
        await process.wait()

    def _read_ready(self, line: str) -> dict[str, str] | None:
        if self._ready_text:
            return {} if self._ready_text in line else None
        words = line.split()
        if words[1:2] != ["ready"]:
            return None
        pairs = (word.partition("=") for word in words[2:] if "=" in word)
        return {key: value for key, _, value in pairs}
