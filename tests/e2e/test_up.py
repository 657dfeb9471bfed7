"""`hedgerow up` as a user runs it: a real stack on free ports, a model published into it, Ctrl-C."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import numpy as np
import pytest
import redis.asyncio
from hedgerow_bench import mlp

HEDGEROW = str(Path(sys.executable).with_name("hedgerow"))
pytestmark = pytest.mark.timeout(300)


def wait_for(what, found, within=200.0):
    deadline = time.monotonic() + within
    while not (result := found()):
        assert time.monotonic() < deadline, f"no {what} within {within} s"
        time.sleep(0.2)
    return result


def processes(marker):
    """Command lines of running processes that name `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(marker).encode() in command:
                found.append(int(entry.name))
    return found


async def ask_stores(at):
    """PostgreSQL and Valkey answer where endpoints.json says."""
    connection = await asyncpg.connect(at["store"])
    try:
        assert await connection.fetchval("SELECT current_database()") == "hedgerow"
    finally:
        await connection.close()
    async with redis.asyncio.Redis.from_url(at["cache"]) as cache:
        assert await cache.ping()


@pytest.fixture
def up(tmp_path):
    log = (tmp_path / "up.out").open("wb")
    process = subprocess.Popen([HEDGEROW, "up", "--ports", "free"], cwd=tmp_path, stdout=log, stderr=log)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_up_serves_what_is_published_and_leaves_nothing_behind_but_var(up, tmp_path):
    """Ready with real ports, a published model answers with its own numbers, Ctrl-C ends every process."""
    written = tmp_path / "var/local/endpoints.json"
    assert wait_for("endpoints", lambda: written.exists() or up.poll() is not None)
    assert up.poll() is None, (tmp_path / "up.out").read_text()
    at = json.loads(written.read_text())
    assert at["pid"] == up.pid

    second = subprocess.run(
        [HEDGEROW, "up", "--ports", "free"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert written.exists()
    assert f"Process {up.pid} already works in" in second.stdout

    mlp.write(tmp_path / "mlp.onnx", seed=7)
    publish = [HEDGEROW, "publish", str(tmp_path / "mlp.onnx"), "mlp"]
    subprocess.run(publish, cwd=tmp_path, check=True, timeout=120, stdout=subprocess.DEVNULL)

    import hedgerow

    rows = np.random.default_rng(1).normal(size=(3, mlp.WIDTH)).astype(np.float32)
    for region in ("server", "backup"):
        with hedgerow.Client(at[region]) as client:
            wait_for(f"model in {region}", lambda client=client: client.model_ready("mlp"), within=60)
            answers = client.infer("mlp", {mlp.INPUT: rows})[mlp.OUTPUT]
        np.testing.assert_allclose(answers, mlp.answer(rows, 7), rtol=1e-4, atol=1e-5)

    asyncio.run(ask_stores(at))

    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 0
    assert not written.exists()
    assert not Path(at["cache"].removeprefix("unix://")).parent.exists()
    assert wait_for("silence", lambda: not processes(tmp_path / "var"), within=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp.onnx", "up.out", "var"]


def test_a_killed_stack_takes_everything_with_it(up, tmp_path):
    """SIGKILL in the middle of the start: no server, no MLflow stays."""
    wait_for("a part", (tmp_path / "var/local/log/control.log").exists)
    assert wait_for("children", lambda: processes(tmp_path / "var"))
    up.kill()
    up.wait()
    assert wait_for("silence", lambda: not processes(tmp_path / "var"), within=60)
