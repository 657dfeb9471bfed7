"""`hedgerow bench` at its shortest: real servers, real load, a report; and nothing left behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hedgerow_bench import procfs
from hedgerow_bench.contender import WrongAnswer, checked, over_grpc
from hedgerow_bench.load import Load
from hedgerow_bench.pair import ROW
from hedgerow_bench.peers.measure import free_ports
from hedgerow_bench.subject import own_server
from hedgerow_bench.wire_plan import WirePlan


def bench(tmp_path, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hedgerow_bench", *arguments, "--out", str(tmp_path / "out")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160", **environment},
        timeout=110,
        check=False,
    )


def test_throughput_is_a_report_a_table_and_a_page(tmp_path):
    """Without h2load on the path, so through the generator that comes along."""
    done = bench(tmp_path, "throughput", "--smoke", PATH="/nowhere")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/throughput.json").read_text())
    assert [row["concurrency"] for row in report["rows"]] == [1, 16]
    for row in report["rows"]:
        assert all(server["server_us"]["median"] > 0 for server in row["servers"].values())
        assert row["failed"] == 0
        assert row["requests"] > 0
        assert list(row["servers"]) == ["hedgerow", "handwritten"]
    assert {"python", "cpus", "packages"} <= report["machine"].keys()
    assert report["command"].startswith("hedgerow bench throughput --smoke")
    assert "hedgerow / handwritten" in done.stdout
    assert "<svg" in (tmp_path / "out/report.html").read_text()
    assert not (tmp_path / "out/requests.log").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_features_are_joined_from_a_real_valkey_and_are_the_right_ones(tmp_path):
    """Every array that the join gives is held against what was written; a wrong one fails the command."""
    done = bench(tmp_path, "features", "--smoke", "--no-feast")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out/features.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["read", "join", "server", "server"]
    assert [row.get("sent") for row in rows] == [None, None, "ids", "rows"]
    assert rows[0]["readers"]["hedgerow"]["requests"] > 0
    for row in rows[1:]:
        assert row["requests"] > 0
        assert row["failed"] == 0


def test_hedging_is_measured_on_servers_that_really_stall(tmp_path):
    """The backup counts what it got, and the stalls are in the tail of the server that does not hedge."""
    done = bench(tmp_path, "hedge", "--smoke", "--percent", "5", "--stall", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    alone, fixed, adaptive = json.loads((tmp_path / "out/hedge.json").read_text())["rows"]
    assert alone["latency_ms"]["max"] >= 300
    assert alone["at_backup"] == 0
    for row in (fixed, adaptive):
        # Half of the requests are the warm-up's, which the table leaves out and the backup does not.
        assert 0 < row["at_backup"] <= 0.02 * 2.5 * row["requests"] + 10
    assert "times shorter" in done.stdout


def test_overload_is_measured_in_three_phases(tmp_path):
    """Peak, overload and afterwards; no answer is wrong, and what was refused is told apart."""
    done = bench(tmp_path, "overload", "--smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    peak, overload, after = json.loads((tmp_path / "out/overload.json").read_text())["rows"]
    assert peak["goodput"] > 0
    assert overload["offered"] > 2 * peak["goodput"]
    assert overload["statuses"].get("RESOURCE_EXHAUSTED", 0) + overload["statuses"].get(
        "DEADLINE_EXCEEDED", 0
    )
    assert after["statuses"]["OK"] > 0
    assert "<svg" in (tmp_path / "out/report.html").read_text()


def test_ctrl_c_ends_everything_that_was_started(tmp_path):
    command = [sys.executable, "-m", "hedgerow_bench", "throughput", "--out", str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    started = []
    try:
        for line in running.stdout:
            if "under way" in line:
                break
        started = procfs.family(running.pid)
        assert len(started) >= 4, "bench, supervisor, worker, hand-written handler"
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
        assert running.returncode == 130
        assert "was stopped" in output
        left = [one for one in started if (now := procfs.read(one.pid)) and now.birth == one.birth]
        assert not left
    finally:
        for one in started:
            now = procfs.read(one.pid)
            if now is not None and now.birth == one.birth:
                os.kill(one.pid, signal.SIGKILL)
        running.stdout.close()
        running.wait(60)


async def wire(plan):
    async with Load(plan) as load:
        return (await load.finish()).records


async def test_the_fast_generator_asks_at_its_rate_and_tells_answers_from_errors(tmp_path):
    bodies, records = tmp_path / "bodies.bin", str(tmp_path / "records.npz")
    async with own_server(tmp_path, transport="auto", workers=1) as subject:
        right = await checked(over_grpc("right", subject.target, "mlp", {"x": ROW}), None)
        wrong = over_grpc("wrong", subject.target, "no-such-model", {"x": ROW})
        with pytest.raises(WrongAnswer, match="no-such-model"):
            await checked(wrong, None)
        # In turn: every second request asks for a model that is not there.
        bodies.write_bytes(right.body + wrong.body)
        plan = {"target": subject.target, "bodies": str(bodies), "records": records, "spin": False}
        opened = await wire(WirePlan(**plan, rate=200.0, seconds=1.0, arrivals="uniform", timeout=30.0))
        closed = await wire(WirePlan(**plan, mode="closed", callers=4, seconds=0.5, timeout=30.0))
    assert opened.summary()["statuses"] == {"OK": 100, "grpc-status 5": 100}
    assert (opened.latency > 0).all()
    statuses = closed.summary()["statuses"]
    assert abs(statuses["OK"] - statuses["grpc-status 5"]) <= 4


async def test_the_fast_generator_gives_up_on_a_server_that_is_gone(tmp_path):
    (port,) = free_ports(1)
    (tmp_path / "bodies.bin").write_bytes(b"\0\0\0\0\0")
    plan = WirePlan(f"127.0.0.1:{port}", str(tmp_path / "bodies.bin"), str(tmp_path / "r.npz"))
    began = time.monotonic()
    with pytest.raises(Exception, match="ended with code"):
        await asyncio.wait_for(wire(plan), 60)
    assert time.monotonic() - began < 60
