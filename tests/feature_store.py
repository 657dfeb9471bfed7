"""A real PostgreSQL and a real Valkey for tests, and ways to break them.

Fixtures, known to every test:

    postgres, valkey          one each for all tests of a process, up as long as it; nobody stops them
    database, cache_url       of those: an empty database, the emptied cache, for one test
    own_postgres, own_valkey  a module's own, to stop, kill, pause and start as it likes
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hedgerow_local import postgres_server, sockets, valkey_server
from hedgerow_local.child import tether_command

#: Bound on what would hang if it went wrong.
HANG_SECONDS = 60.0


class _Part:
    """A process in a directory of its own, which it does not outlive, nor this process."""

    def __init__(self, ready: str, stop: signal.Signals) -> None:
        # Short, for the sockets in it; and nobody else's.
        self.directory = Path(tempfile.mkdtemp(prefix="hedgerow-", dir="/tmp"))
        self._ready = ready
        self._stop_signal = stop
        self._process: subprocess.Popen[bytes] | None = None
        self._said: list[str] = []

    def command(self) -> tuple[str, ...]:
        raise NotImplementedError

    def start(self) -> None:
        """Starts it on the data it had; returns when it accepts connections."""
        assert not self.running
        heard = threading.Event()
        self._said = []

        def run() -> None:
            """Starts it here: it lives no longer than the thread that started it, which may be a test's."""
            with subprocess.Popen(
                [*tether_command(10, self._stop_signal), *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ) as process:
                self._process = process
                for line in process.stdout:
                    self._said.append(line.decode(errors="replace"))
                    if self._ready in self._said[-1]:
                        heard.set()
            heard.set()

        threading.Thread(target=run, daemon=True).start()
        heard.wait(HANG_SECONDS)
        if not any(self._ready in line for line in self._said):
            self.kill()
            raise AssertionError("it did not start: " + "".join(self._said))

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """An orderly end; harmless a second time."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill -9; harmless a second time."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Stops it in order and starts it again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Takes all its processes off the processor: it neither answers nor refuses."""
        for pid in self.pids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undoes `pause`."""
        for pid in reversed(self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def pids(self) -> list[int]:
        """Its main process, then those that it has started."""
        assert self._process is not None
        mains = _children(self._process.pid)
        return mains + [pid for main in mains for pid in _children(main)]

    def close(self) -> None:
        """Ends it for good and takes its files away."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, signum: signal.Signals) -> None:
        if self._process is None:
            return
        if self.running:
            self.resume()  # A stopped process does not hear.
            self._process.send_signal(signum)
        self._process.wait(HANG_SECONDS)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Postgres(_Part):
    """PostgreSQL on a Unix socket; `dsn` stays the same over restarts."""

    def __init__(self) -> None:
        super().__init__(postgres_server.READY, postgres_server.STOP)
        self.dsn = sockets.store_dsn(self.directory)

    def command(self) -> tuple[str, ...]:
        return postgres_server.command(self.directory / "postgres", self.directory, volatile=True)

    def new_database(self) -> str:
        """Makes an empty database.

        Returns:
            Its DSN.
        """
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._execute(f"CREATE DATABASE {name}")
        return sockets.store_dsn(self.directory, name)

    def drop_database(self, dsn: str) -> None:
        """Drops a database, whoever is still connected."""
        self._execute(f"DROP DATABASE {urlsplit(dsn).path.removeprefix('/')} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        import asyncio

        import asyncpg

        async def execute() -> None:
            connection = await asyncpg.connect(self.dsn)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        # In a thread of its own: the test's may have a running loop.
        failed: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(asyncio.wait_for(execute(), HANG_SECONDS))
            except BaseException as error:  # noqa: BLE001 - raised again below
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]


class Valkey(_Part):
    """Valkey on a Unix socket; `url` stays the same over restarts, after which it is empty."""

    def __init__(self) -> None:
        super().__init__(valkey_server.READY, signal.SIGTERM)
        self.url = sockets.cache_url(self.directory)

    def command(self) -> tuple[str, ...]:
        return valkey_server.command(self.directory)

    def empty(self) -> None:
        """Drops every key."""
        import redis

        with redis.Redis.from_url(self.url) as client:
            client.flushall()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for all tests of this process."""
    with contextlib.closing(Postgres()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """One Valkey for all tests of this process."""
    with contextlib.closing(Valkey()) as server:
        server.start()
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The DSN of an empty database."""
    dsn = postgres.new_database()
    yield dsn
    postgres.drop_database(dsn)


@pytest.fixture
def cache_url(valkey: Valkey) -> str:
    """The URL of an empty Valkey."""
    valkey.empty()
    return valkey.url


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A module's PostgreSQL, to be broken."""
    with contextlib.closing(Postgres()) as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def own_valkey() -> Iterator[Valkey]:
    """A module's Valkey, to be broken."""
    with contextlib.closing(Valkey()) as server:
        server.start()
        yield server
