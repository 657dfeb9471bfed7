"""The load generator against a real server: in its own process, counting what went wrong."""

import asyncio
import json
import subprocess
import sys

import numpy as np
import pytest
from hedgerow_bench.load import Load, LoadError
from hedgerow_bench.plan import Plan
from hedgerow_bench.subject import own_server, running_server, write_questions


def plan(subject, tmp_path, **settings):
    settings = {"rate": 100.0, "seconds": 1.0, "timeout": 10.0} | settings
    return Plan(subject.target, subject.model, str(subject.inputs), str(tmp_path / "records.npz"), **settings)


async def run(plan):
    news = []
    async with Load(plan, tell=news.append) as load:
        outcome = await load.finish()
    return outcome.records, news


async def test_every_request_is_answered_rightly_and_recorded(tmp_path):
    async with own_server(tmp_path, transport="auto", workers=1) as subject:
        records, news = await run(plan(subject, tmp_path, arrivals="uniform"))
        closed, _ = await run(plan(subject, tmp_path, mode="closed", callers=4, seconds=0.5))
        asked = await running_server(subject.target, "mlp", tmp_path / "asked")
        made_up, _ = await run(plan(asked, tmp_path))
    assert len(records) == 100
    assert records.summary()["versions"] == {"1": 100}
    assert np.diff(records.scheduled) == pytest.approx(np.full(99, 0.01), abs=1e-6)
    assert [each["event"] for each in news][:1] == ["started"]
    assert {"event": "version", "version": "1"}.items() <= next(
        n for n in news if n["event"] == "version"
    ).items()
    assert closed.failed == 0
    assert len(closed) >= 4
    assert made_up.failed == 0
    assert len(made_up) > 50


async def test_wrong_numbers_are_found(tmp_path):
    """Answers are held against what the version should say: here, against another model's."""
    async with own_server(tmp_path, transport="auto", workers=1) as subject:
        write_questions(subject.inputs, {"1": 2})
        records, _ = await run(plan(subject, tmp_path, seconds=0.5))
    assert set(records.status.tolist()) == {"WRONG"}
    assert records.failed == len(records) > 0


async def test_a_server_that_is_gone_fails_requests_by_their_status(tmp_path):
    """No retry hides it, and the run goes on to its end."""
    async with own_server(tmp_path, transport="auto", workers=1) as subject:
        pass
    records, _ = await run(plan(subject, tmp_path, seconds=0.5))
    assert set(records.status.tolist()) == {"UNAVAILABLE"}
    assert len(records) > 20


async def test_a_run_that_is_finished_early_keeps_its_records(tmp_path):
    async with (
        own_server(tmp_path, transport="auto", workers=1) as subject,
        Load(plan(subject, tmp_path, seconds=600.0)) as load,
    ):
        assert await asyncio.wait_for(load.first_reply("1"), 30) >= load.started
        outcome = await load.finish(early=True)
    assert 0 < len(outcome.records) < 10_000
    assert outcome.records.failed == 0


async def test_a_generator_that_cannot_start_is_an_error(tmp_path):
    with pytest.raises(LoadError):
        async with Load(Plan("127.0.0.1:1", "mlp", str(tmp_path / "missing.npz"), str(tmp_path / "r.npz"))):
            pass


def test_the_generator_ends_with_whoever_started_it(tmp_path):
    """Its stdin closes when its parent dies."""
    write_questions(tmp_path / "inputs.npz", {})
    text = Plan(
        "127.0.0.1:1", "mlp", str(tmp_path / "inputs.npz"), str(tmp_path / "r.npz"), seconds=600
    ).to_json()
    generator = subprocess.Popen(
        [sys.executable, "-m", "hedgerow_bench.generator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    generator.stdin.write(text + "\n")
    generator.stdin.flush()
    assert json.loads(generator.stdout.readline())["event"] == "started"
    generator.stdin.close()
    assert generator.wait(30) == 0
    assert (tmp_path / "r.npz").exists()
