"""Loads a candidate in a limited child process before any server hears of it.

A model file is a program: it may allocate without end, never return, or crash
the runtime. The child runs the server's own loader (`hedgerow_server.engine.probe`)
and knows no secret: it gets none of this process's environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.pool import POOL

_OUTPUT_BYTES = 1 << 20
#: The probe kills its own child at the wall limit; this is for a probe that hangs itself.
_GRACE_SECONDS = 10.0
_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV")


class TrialRefused(Exception):
    """The candidate does not load, warm up or stay within its limits; the message says which."""


class TrialFailed(Exception):
    """The trial itself could not be made; says nothing about the candidate."""


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What the child may use."""

    memory_bytes: int
    cpu_seconds: int
    wall_seconds: float


async def trial(directory: Path, version: pb.ModelVersion, limits: TrialLimits) -> None:
    """Returns when the candidate has loaded and answered its warm-up sample.

    Raises:
        TrialRefused: it has not.
        TrialFailed: no verdict could be had.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as spec:
        spec.write(json_format.MessageToJson(version.serving, descriptor_pool=POOL))
        spec.flush()
        arguments = [
            *("--directory", str(directory), "--path", version.path, "--serving", spec.name),
            *("--memory-bytes", str(limits.memory_bytes), "--cpu-seconds", str(limits.cpu_seconds)),
            *("--wall-seconds", str(limits.wall_seconds)),
        ]
        code, output, errors = await _run(arguments, limits.wall_seconds + _GRACE_SECONDS)
    verdict = _verdict(output)
    if verdict is None:
        last = errors.strip().splitlines()[-1:] or ["no output"]
        raise TrialFailed(f"the trial load gave no verdict (exit code {code}): {last[0][:300]}")
    if verdict.get("ok") is not True:
        raise TrialRefused(str(verdict.get("reason") or "refused without a reason")[:2000])


def _verdict(output: str) -> dict[str, object] | None:
    for line in reversed(output.splitlines()):
        with contextlib.suppress(ValueError):
            verdict = json.loads(line)
            if isinstance(verdict, dict) and "ok" in verdict:
                return verdict
    return None


async def _run(arguments: list[str], seconds: float) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hedgerow_server.engine.probe", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in _INHERITED if name in os.environ},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(seconds):
            output, errors = await asyncio.gather(_read(process.stdout), _read(process.stderr))
            await process.wait()
    except TimeoutError:
        raise TrialFailed(f"the trial load did not end within {seconds:.0f} s") from None
    finally:
        # The whole session, so that a grandchild goes too; also when this task is cancelled.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return process.returncode, output, errors


async def _read(stream: asyncio.StreamReader) -> str:
    """Reads to the end, keeping the last MiB."""
    kept = b""
    while chunk := await stream.read(1 << 16):
        kept = (kept + chunk)[-_OUTPUT_BYTES:]
    return kept.decode(errors="replace")
