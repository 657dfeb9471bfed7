"""A newcomer's walk: `hedgerow up`, then every command without naming an address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zoo

# Starting MLflow, the control plane and two servers takes a minute on a loaded machine.
pytestmark = pytest.mark.timeout(400)
HANG = 200.0


class Terminal:
    """A directory in which commands are typed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        outside = ("HEDGEROW_", "MLFLOW_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)}

    def start(self, *tokens: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hedgerow", *tokens],
            cwd=self.home,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *tokens: str, code: int = 0) -> str:
        process = self.start(*tokens)
        out, err = process.communicate(timeout=HANG)
        assert process.returncode == code, f"{tokens}: {out}{err}"
        return out if code == 0 else err

    def json(self, *tokens: str) -> object:
        return json.loads(self.run(*tokens, "--json"))


@pytest.fixture(scope="module")
def terminal(tmp_path_factory):
    home = tmp_path_factory.mktemp("newcomer")
    made = Terminal(home)
    with (home / "up.log").open("w") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "hedgerow", "up", "--ports", "free"],
            cwd=home,
            env=made.environment,
            stdout=log,
            stderr=log,
        )
    try:
        wait(lambda: "Ctrl-C stops everything" in (home / "up.log").read_text(), up, home / "up.log")
        yield made
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0


def wait(done, process, log: Path) -> None:
    end = time.monotonic() + HANG
    while not done():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


def champion(terminal: Terminal, version: str) -> bool:
    status = terminal.json("status")
    routes = [route for model in status["models"] for route in model["routes"]]
    return [route["version"] for route in routes if route["variant"] == "champion"] == [version]


def test_publish_ask_look_around_and_roll_back(terminal):
    for number, make in enumerate(
        (lambda path: zoo.mlp(path, seed=1), lambda path: zoo.mlp(path, seed=2)), 1
    ):
        make(terminal.home / "model.onnx")
        published = terminal.json("publish", "model.onnx", "mlp", "--tag", "owner=me", "--wait")
        assert (published["version"], published["alias"]) == (str(number), "champion")
        assert published["servers"] == 2
        assert champion(terminal, str(number))

    answer = terminal.json("infer", "mlp", "--zeros")
    assert (answer["version"], answer["outcome"], answer["outputs"]["y"]["shape"]) == ("2", "primary", [1, 1])
    assert answer["latency_ms"] > 0
    assert "version 2, primary" in terminal.run("infer", "mlp", "--zeros")
    assert terminal.json("infer", "mlp", "--zeros", "--version", "1")["version"] == "1"

    rows = {(row["name"], row["version"]): row for row in terminal.json("models")}
    assert rows["mlp", "2"]["routes"] == [{"variant": "champion", "weight": 100}]
    assert rows["mlp", "2"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 32]}]
    assert "champion 100" in terminal.run("models")
    assert "local-primary/0" in terminal.run("status")

    back = terminal.json("rollback", "mlp")
    assert (back["from_version"], back["to_version"], back["complete"]) == ("2", "1", True)
    assert 0 < back["seconds"] <= back["command_seconds"]
    assert terminal.json("infer", "mlp", "--zeros")["version"] == "1"
    assert "99" in terminal.run("rollback", "mlp", "--to", "99", code=1)


def test_watching_shows_one_status_after_another_until_interrupted(terminal):
    watching = terminal.start("status", "--watch", "--json", "--interval", "0.1")
    try:
        seen = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(HANG) == 130
    finally:
        watching.kill()
        watching.communicate()
    assert all(one["registry"]["reachable"] for one in seen)
    assert len({one["registry"]["age_seconds"] for one in seen}) > 1


def test_what_is_not_there_is_said_with_its_own_exit_code(terminal):
    assert "'nope'" in terminal.run("infer", "nope", "--zeros", code=3)
    assert "nope" in terminal.run("rollback", "nope", code=3)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (("infer", "m", "--zeros", "--server", "127.0.0.1:1"), "127.0.0.1:1"),
        (("models", "--server", "127.0.0.1:1"), "is it running?"),
        (("status", "--control", "127.0.0.1:1"), "control plane 127.0.0.1:1"),
        (("rollback", "m", "--control", "127.0.0.1:1"), "control plane 127.0.0.1:1"),
        (("publish", "alone.onnx", "m", "--registry", "http://127.0.0.1:1"), "MLflow at http://127.0.0.1:1"),
    ],
)
def test_an_address_where_nobody_answers_is_named(tmp_path, tokens, words):
    """Exit code 4, one line, no traceback."""
    zoo.mlp(tmp_path / "alone.onnx")
    line = Terminal(tmp_path).run(*tokens, code=4)
    assert words in line
    assert line.count("\n") == 1
