"""Rules answer for real models that fail or hang, in a real server, on both transports."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from pathlib import Path

import hedgerow
import numpy as np
import pytest
import zoo
from fallback_rules import RULES
from hedgerow import InferRequest, cli
from server_process import HANG_SECONDS, Serve, ServerProcess

#: Of the model `lookup`, whose table has ten rows.
LOOKUP_RULES = """
fallback:
  rules:
    - name: beyond
      when: index < 100
      outputs: {y: "[double(index), 0.5]"}
    - name: far_beyond
      outputs: {y: [-1, -1]}
"""
#: Seconds that a request has.
DEADLINE = 3.0
#: Runs that never end take a core each; a busy machine has none left for who is to answer in time.
ONE_AT_A_TIME = {"engine__runners": 1}


def with_rules(path: Path, rules: str) -> Path:
    (path.parent / "serving.yaml").write_text(rules)
    return path.parent


@pytest.fixture(scope="module")
def running(server: Serve, transport: str, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    return server(models(tmp_path_factory.mktemp("ruled")), transport=transport, **ONE_AT_A_TIME)


def models(here: Path) -> dict[str, Path]:
    return {
        "lookup": with_rules(zoo.lookup(here / "lookup" / "model.onnx"), LOOKUP_RULES),
        "hangs": with_rules(zoo.hangs(here / "hangs" / "model.onnx"), RULES),
        "bare": zoo.hangs(here / "bare" / "model.onnx"),
    }


def metric(running: ServerProcess, start: str) -> float:
    with urllib.request.urlopen(f"http://{running.metrics}/metrics", timeout=HANG_SECONDS) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def in_quarantine(running: ServerProcess, model: str) -> bool:
    return metric(running, f'hedgerow_breaker_state{{dependency="{model}@1"') > 0


def lookup(*index: int) -> dict[str, np.ndarray]:
    return {"index": np.array(index, np.int64)}


def x(value: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[value]], np.float32)}


def test_a_request_that_makes_the_model_fail_is_answered_by_rules_and_marked(running):
    with hedgerow.Client(running.grpc) as client:
        good = client.infer("lookup", lookup(0, 9))
        assert good.outcome == "primary"
        bad = client.infer("lookup", lookup(9, 50, 500), request_id="fifty")
    assert (good.rule, bad.outcome, bad.rule) == (None, "fallback", "beyond,far_beyond")
    np.testing.assert_array_equal(bad["y"], [[9, 0.5], [50, 0.5], [-1, -1]])
    (line,) = (line for line in running.log_lines_when(2) if line["outcome"] == "fallback")
    assert (line["rule"], line["code"]) == ("beyond,far_beyond", "OK")
    assert metric(running, 'hedgerow_fallbacks_total{model="lookup",rule="beyond"') == 1


def test_the_command_says_which_rules_answered_and_nothing_of_rules_where_the_model_did(running, capsys):
    with hedgerow.Client(running.grpc) as client:
        for _ in range(10):  # so that the failures of these tests are too few for quarantine
            client.infer("lookup", lookup(0))

    def ask(*more: str) -> str:
        assert cli.main(["infer", "lookup", "--server", running.grpc, *more]) == 0
        return capsys.readouterr().out

    said = ask("--input", "index=[9, 50, 500]").splitlines()[-1]
    assert said.startswith("lookup: version 1, fallback, rule beyond,far_beyond, ")
    assert json.loads(ask("--input", "index=[50]", "--json"))["rule"] == "beyond"
    assert "rule" not in ask("--zeros")
    assert json.loads(ask("--zeros", "--json"))["rule"] is None


def test_a_stream_gets_each_kind_of_answer_and_goes_on(running):
    """Of the model, of rules, and a refusal of what is wrong whatever rules there are."""
    wrong = {"index": np.zeros((1, 1), np.int64)}
    asked = [
        InferRequest("lookup", inputs, request_id=str(at))
        for at, inputs in enumerate((lookup(1), lookup(50), wrong, lookup(2)))
    ]
    with hedgerow.Client(running.grpc) as client:
        replies = {reply.request_id: reply for reply in client.stream(asked, return_errors=True)}
    assert [replies[at].outcome for at in "013"] == ["primary", "fallback", "primary"]
    assert isinstance(replies["2"], hedgerow.InvalidRequest | hedgerow.HedgerowError)
    np.testing.assert_array_equal(replies["1"]["y"], [[50, 0.5]])


async def ask_often(running: ServerProcess, model: str, value: float, count: int) -> list[str]:
    """What became of requests, a new one each 30 ms; nobody waits for another."""

    async def one(client: hedgerow.AsyncClient) -> str:
        try:
            reply = await client.infer(model, x(value), timeout=DEADLINE)
        except hedgerow.HedgerowError as error:
            return error.code.name
        by_rules = 2 * value if value > 10 else -1.0
        assert reply["y"].item() == (value if reply.outcome == "primary" else by_rules)
        return reply.outcome

    async with hedgerow.AsyncClient(running.grpc, retries=0) as client, asyncio.TaskGroup() as group:
        tasks = []
        for _ in range(count):
            tasks.append(group.create_task(one(client)))
            await asyncio.sleep(0.03)
    return [task.result() for task in tasks]


async def test_a_model_that_hangs_is_soon_spared_and_every_request_answered_in_time(running):
    assert set(await ask_often(running, "hangs", 1.0, 20)) == {"primary"}
    assert set(await ask_often(running, "hangs", 2000.0, 20)) == {"fallback"}
    assert await asyncio.to_thread(in_quarantine, running, "hangs")
    before = len(running.log_lines())
    assert set(await ask_often(running, "hangs", 2000.0, 20)) == {"fallback"}
    lines = await asyncio.to_thread(running.log_lines_when, before + 20)
    # One at a time tries it still.
    assert sum(line["total_ms"] < DEADLINE * 500 for line in lines[before:]) >= 17
    until = time.monotonic() + HANG_SECONDS
    while (outcomes := await ask_often(running, "hangs", 1.0, 10)) != ["primary"] * 10:
        assert set(outcomes) <= {"primary", "fallback"}
        assert time.monotonic() < until, "it hangs no more, and is not tried"
    assert not await asyncio.to_thread(in_quarantine, running, "hangs")


def test_a_model_without_rules_that_hangs_comes_into_quarantine_too(running):
    """Callers' own clocks end their requests, before the deadline here has passed."""
    with hedgerow.Client(running.grpc, retries=0) as client:
        for _ in range(20):
            client.infer("bare", x(1.0))
        for _ in range(6):
            with pytest.raises(hedgerow.DeadlineExceeded):
                client.infer("bare", x(2000.0), timeout=1)
    assert in_quarantine(running, "bare")


async def test_a_server_that_drains_answers_what_hangs_by_rules_first(server, transport, tmp_path):
    drained = server(models(tmp_path), transport=transport, **ONE_AT_A_TIME)
    asking = asyncio.create_task(ask_often(drained, "hangs", 2000.0, 3))
    await asyncio.sleep(1)
    drained.terminate()
    assert await asking == ["fallback"] * 3
    assert await asyncio.to_thread(drained.wait) == 0
