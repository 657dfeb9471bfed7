"""The embedded PostgreSQL and Valkey: they start, break in every way, come back, and leave nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio
import redis.exceptions
from hedgerow_local import sockets


async def ask(dsn: str) -> int:
    connection = await asyncpg.connect(dsn, timeout=20)
    try:
        return await connection.fetchval("SELECT 40 + 2")
    finally:
        await connection.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pids: list[int]) -> None:
    async with asyncio.timeout(30):
        while any(alive(pid) for pid in pids):  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.02)


async def test_a_database_is_empty_and_the_next_one_is_another(postgres, database):
    connection = await asyncpg.connect(database)
    try:
        assert await connection.fetch("SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []
        assert await connection.fetchval("SHOW server_version_num") >= "180000"
    finally:
        await connection.close()
    other = postgres.new_database()
    assert other != database
    postgres.drop_database(other)


async def test_postgres_keeps_what_was_committed_over_kill_and_restart(own_postgres):
    """A killed server loses connections, not data; its socket refuses at once meanwhile."""
    connection = await asyncpg.connect(own_postgres.dsn)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    pids = own_postgres.pids()
    assert len(pids) > 3
    own_postgres.kill()
    await gone(pids)
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.fetchval("SELECT 1")
    with pytest.raises((ConnectionError, FileNotFoundError)):
        await ask(own_postgres.dsn)
    own_postgres.start()
    connection = await asyncpg.connect(own_postgres.dsn)
    assert await connection.fetchval("SELECT answer FROM kept") == 42
    await connection.close()
    own_postgres.restart()
    assert await ask(own_postgres.dsn) == 42


async def test_a_paused_postgres_answers_nobody_until_it_is_resumed(own_postgres):
    """Not even on a connection that was open: its processes are stopped too."""
    connection = await asyncpg.connect(own_postgres.dsn)
    own_postgres.pause()
    asked = asyncio.create_task(connection.fetchval("SELECT 7"))
    try:
        done, _ = await asyncio.wait((asked,), timeout=0.3)
        assert not done
    finally:
        own_postgres.resume()
    assert await asked == 7
    await connection.close()


async def test_valkey_is_a_cache_and_comes_back_empty(own_valkey):
    async with redis.asyncio.Redis.from_url(own_valkey.url) as client:
        await client.set("key", b"value")
        assert await client.get("key") == b"value"
        own_valkey.pause()
        with pytest.raises((redis.exceptions.TimeoutError, TimeoutError)):
            await asyncio.wait_for(client.get("key"), 0.3)
        own_valkey.resume()
        pids = own_valkey.pids()
        own_valkey.kill()
        await gone(pids)
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.get("key")
        own_valkey.start()
        assert await client.get("key") is None


async def test_whoever_runs_them_takes_them_along_even_when_killed(tmp_path):
    """Kill -9 of the test process itself: no daemon stays."""
    code = """
        import feature_store, time
        parts = [feature_store.Postgres(), feature_store.Valkey()]
        for part in parts:
            part.start()
        print(*(pid for part in parts for pid in part.pids()))
        print(*(part.directory for part in parts), flush=True)
        time.sleep(600)
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(code),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    async with asyncio.timeout(60):
        pids = [int(word) for word in (await process.stdout.readline()).split()]
        directories = (await process.stdout.readline()).decode().split()
    try:
        assert len(pids) > 4
        assert all(alive(pid) for pid in pids)
    finally:
        process.kill()
        await process.wait()
    await gone(pids)
    for directory in directories:
        assert directory.startswith("/tmp/hedgerow-")
        shutil.rmtree(directory)


def test_sockets_lie_with_the_stack_or_where_their_path_fits(tmp_path, monkeypatch):
    """A deep directory is no reason not to start: a socket's path ends after 107 bytes."""
    short, deep = Path("/tmp") / f"hr-{os.getpid()}", tmp_path / ("deep" * 25)
    try:
        assert sockets.make(short) == short / "run"
        assert (short / "run").stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(short)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 25)))
    made = sockets.make(deep)
    try:
        assert made.parent == Path("/tmp")
        assert sockets.make(deep) == made
        assert len(str(made / sockets.POSTGRES)) <= sockets.LONGEST
    finally:
        made.rmdir()


def test_another_users_directory_is_not_used_for_sockets(tmp_path, monkeypatch):
    """Whoever may read /tmp can foresee the name and get there first."""
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    deep = tmp_path / ("deep" * 25)
    made = sockets.make(deep)
    try:
        made.rmdir()
        made.symlink_to(tmp_path)
        with pytest.raises((PermissionError, FileExistsError)):
            sockets.make(deep)
    finally:
        made.unlink()
