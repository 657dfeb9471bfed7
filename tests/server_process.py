"""A real server as a process: `python -m hedgerow_server` on free ports."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

#: Bound on anything that would hang if it went wrong.
HANG_SECONDS = 40


@dataclass
class ServerProcess:
    """A running server; the ports are those of its ready line."""

    process: subprocess.Popen[bytes]
    ready_line: str
    grpc: str
    http: str
    metrics: str
    transport: str
    directory: Path

    def channel(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        """A connection of its own, with no limit to what it receives."""
        return grpc.aio.insecure_channel(
            self.grpc,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
                *options,
            ],
        )

    def log_lines(self) -> list[dict[str, Any]]:
        """The request log so far; lines are written some milliseconds after the replies."""
        file = self.directory / "requests.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def log_lines_when(self, count: int) -> list[dict[str, Any]]:
        """The request log when it has at least so many lines."""
        until = time.monotonic() + HANG_SECONDS
        while len(lines := self.log_lines()) < count and time.monotonic() < until:
            time.sleep(0.02)
        return lines

    def messages(self) -> str:
        """What the server wrote to stderr."""
        return (self.directory / "stderr").read_text()

    def terminate(self) -> None:
        """Asks for a drain."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(HANG_SECONDS)


Serve = Callable[..., ServerProcess]


def start_server(directory: Path, models: Mapping[str, Path], flags: Mapping[str, Any]) -> ServerProcess:
    """Starts a server and waits for its ready line; fails the test without one."""
    arguments = [sys.executable, "-m", "hedgerow_server"]
    for name, path in models.items():
        arguments += ["--model", f"{name}={path}"]
    given = {"grpc_port": 0, "http_port": 0, "metrics_port": 0} | {
        key: value for key, value in flags.items() if "__" not in key
    }
    for key, value in given.items():
        arguments += [f"--{key.replace('_', '-')}", str(value)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HEDGEROW_")}
    environment["HEDGEROW_LOG__REQUESTS"] = str(directory / "requests.jsonl")
    for key, value in flags.items():
        if "__" in key:
            environment[f"HEDGEROW_{key.upper()}"] = str(value)
    with (directory / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            arguments, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=stderr
        )
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline().decode() if selector.select(HANG_SECONDS) else ""
    found = dict(re.findall(r"(\w+)=(\S+)", line))
    if "grpc" not in found:
        process.kill()
        process.wait()
        pytest.fail(f"no ready line but {line!r}; stderr: {(directory / 'stderr').read_text()}")
    return ServerProcess(
        process, line, found["grpc"], found["http"], found["metrics"], found["transport"], directory
    )
