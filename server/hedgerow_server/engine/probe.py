"""Is this model safe to serve? Asked of a process that may die over the answer.

    python -m hedgerow_server.engine.probe --directory DIR --path model.onnx

prints one line of JSON (`Verdict`) and exits with 0 if the model can be
served, 1 if not, 2 if asked wrongly. The control plane runs this before it
publishes a version, the server before it opens a file named by `--model`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hedgerow_server.exits import ending

from .trial import IDLE_PART, NICE, ProbeLimits, Verdict, run

if TYPE_CHECKING:
    from hedgerow_protos.hedgerow_control_pb2 import ServingSpec

__all__ = ["ProbeLimits", "Verdict", "main", "probe"]

#: How much longer than its own limit the probe may take before it is given up.
_GRACE_SECONDS = 30.0


async def probe(
    directory: Path, path: str, serving: ServingSpec, limits: ProbeLimits | None = None
) -> Verdict:
    """Runs this module as a child process, watcher and all only when nothing else wants the core.

    If that is too slow, another one at nice 10 takes its place: what `trial` does by itself, for its reasons.
    There only the process that loads is put so far back, here the one that watches it as well.

    Args:
        directory: Where the model's files are.
        path: The model in it, relative.
        serving: From serving.yaml; may be empty.
        limits: What the trial may use; the first one gets a twelfth of the time.

    Returns:
        The verdict. Cancelling ends the child processes first.
    """
    limits = limits or ProbeLimits()
    seconds = limits.wall_seconds
    if hasattr(os, "SCHED_IDLE"):
        started = time.monotonic()
        verdict = await _attempt(directory, path, serving, limits, seconds * IDLE_PART, idle=True)
        if not verdict.timed_out:
            return verdict
        seconds = max(seconds - (time.monotonic() - started), 1.0)
    return await _attempt(directory, path, serving, limits, seconds, idle=False)


async def _attempt(
    directory: Path, path: str, serving: ServingSpec, limits: ProbeLimits, seconds: float, *, idle: bool
) -> Verdict:
    # The command does without these, and starts twice as fast.
    import asyncio  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    from google.protobuf import json_format  # noqa: PLC0415

    from hedgerow_server import processes  # noqa: PLC0415

    flags = {
        "--directory": directory,
        "--path": path,
        "--serving": "-",
        "--memory-bytes": limits.memory_bytes,
        "--cpu-seconds": limits.cpu_seconds,
        "--wall-seconds": limits.wall_seconds,
        "--warmup-seconds": limits.warmup_seconds,
        "--once": seconds,
    }
    options = [f"{flag}={value}" for flag, value in flags.items()]
    command = [sys.executable, "-m", __spec__.name, *options, *(["--idle"] if idle else [])]
    with contextlib.ExitStack() as stack:
        # Not pipes: nobody needs to read them meanwhile.
        question, answer, complaint = (
            stack.enter_context(tempfile.TemporaryFile(buffering=0)) for _ in range(3)
        )
        question.write(json_format.MessageToJson(serving).encode())
        question.seek(0)
        streams = (question.fileno(), answer.fileno(), complaint.fileno())
        try:
            async with asyncio.timeout(seconds + _GRACE_SECONDS * seconds / limits.wall_seconds):
                # On SIGTERM it takes its child along.
                code = await processes.run(command, streams, nice=NICE, idle=idle)
        except TimeoutError:
            return Verdict(
                ok=False,
                reason="the trial load did not end in time; the machine may be overloaded",
                timed_out=True,
            )
        output, errors = (_all_of(file) for file in (answer, complaint))
    try:
        return Verdict.from_json(output)
    except (ValueError, TypeError):
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        return Verdict(ok=False, reason=f"the trial load {ending(code)}: {last or 'no message'}")


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, tries the model, prints the verdict; returns the exit code."""
    defaults = ProbeLimits()
    parser = argparse.ArgumentParser(
        prog="python -m hedgerow_server.engine.probe",
        description="Loads an ONNX model in a limited child process and prints a verdict as JSON.",
    )
    parser.add_argument("--directory", type=Path, required=True, help="folder of the model's files")
    parser.add_argument("--path", required=True, help="the .onnx file in it")
    parser.add_argument("--serving", help="a ServingSpec as JSON; - reads it from standard input")
    parser.add_argument(
        "--once", type=float, help="try once, for so many seconds; else twice, first as --idle"
    )
    parser.add_argument("--idle", action="store_true", help="run only when nothing else wants the core")
    parser.add_argument("--memory-bytes", type=int, default=defaults.memory_bytes)
    parser.add_argument("--cpu-seconds", type=int, default=defaults.cpu_seconds)
    parser.add_argument("--wall-seconds", type=float, default=defaults.wall_seconds)
    parser.add_argument("--warmup-seconds", type=float, default=defaults.warmup_seconds)
    asked = parser.parse_args(arguments)
    limits = ProbeLimits(asked.memory_bytes, asked.cpu_seconds, asked.wall_seconds, asked.warmup_seconds)
    once = limits.wall_seconds if asked.once is None else asked.once
    if min(limits.memory_bytes, limits.cpu_seconds, limits.wall_seconds, limits.warmup_seconds, once) <= 0:
        parser.error("every limit must be above 0")
    try:
        serving = ""
        if asked.serving is not None:
            serving = sys.stdin.read() if asked.serving == "-" else Path(asked.serving).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"cannot read {asked.serving}: {error}")
    if asked.idle and hasattr(os, "SCHED_IDLE"):
        # Whoever started it says so from outside, but perhaps not before the trial's child is there.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    # As an exception, so that the child is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    verdict = run(asked.directory, asked.path, serving, limits, once=asked.once)
    print(verdict.to_json(), flush=True)
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
