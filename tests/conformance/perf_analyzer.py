"""Triton's own load tool, as it stands in a wheel of 2024; later wheels come without it.

`.ci/run` installs it under var/tools/perf_analyzer from requirements/perf_analyzer.txt,
and libb64 from Debian.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from real_models import Tensors

HOME = Path(__file__).parents[2] / "var" / "tools" / "perf_analyzer"
PROGRAM = HOME / "bin" / "perf_analyzer"
#: Seconds; bounds a hang.
PATIENCE = 60

#: Ways it can call, by name.
MODES: Mapping[str, Sequence[str]] = {
    "sync": ["--sync"],
    "async": ["--async"],
    "streaming": ["--async", "--streaming"],
}


@dataclass(frozen=True)
class Report:
    """How a run went; `requests` is what it measured, without warm-up."""

    code: int
    output: str

    @property
    def requests(self) -> int:
        """Requests that its clients counted."""
        return self._number("Request count")

    @property
    def server_requests(self) -> int:
        """Requests that it found answered in the server's statistics, of the version it asked."""
        return self._number("Successful request count")

    @property
    def server_rows(self) -> int:
        """Rows that it found answered in the server's statistics."""
        return self._number("Inference count")

    @property
    def server_runs(self) -> int:
        """Runs that it found in the server's statistics; fewer than requests where some shared one."""
        return self._number("Execution count")

    def _number(self, name: str) -> int:
        found = re.search(rf"^\s+{name}: (\d+)$", self.output, re.MULTILINE)
        assert found is not None, self.output
        return int(found[1])


def missing() -> str:
    """Why it cannot run here; empty if it can."""
    if not PROGRAM.exists():
        return f"perf_analyzer is not installed in {HOME}; .ci/run does it"
    result = _run(["--version"])
    return f"perf_analyzer does not start: {result.output.strip()}" if result.code else ""


def ask(address: str, model: str, mode: str, *flags: str) -> Report:
    """Runs it against a model on a server at host:port."""
    return _run(["-i", "grpc", "-u", address, "-m", model, *MODES[mode], *flags])


def write_data(
    path: Path, requests: Sequence[Tensors], answers: Sequence[Tensors] | None, *, has_batch: bool
) -> Path:
    """Writes requests, each of one row, for `--input-data`.

    Args:
        path: of the file.
        requests: tensors by input name.
        answers: tensors by output name, which it then compares byte by byte.
        has_batch: the first dimension is the batch, which it wants left out.
    """
    content = {"data": [_tensors(request, has_batch=has_batch) for request in requests]}
    if answers is not None:
        content["validation_data"] = [_tensors(answer, has_batch=has_batch) for answer in answers]
    path.write_text(json.dumps(content))
    return path


def _tensors(tensors: Tensors, *, has_batch: bool) -> dict[str, object]:
    return {
        name: {
            "content": _content(values),
            # It has no scalars.
            "shape": list(values.shape[has_batch:]) if values.ndim else [1],
        }
        for name, values in tensors.items()
    }


def _content(values: np.ndarray) -> object:
    if values.dtype.hasobject:
        return values.ravel().tolist()
    return {"b64": base64.b64encode(values.tobytes()).decode()}


def _run(flags: Sequence[str]) -> Report:
    result = subprocess.run(
        [PROGRAM, *flags],
        env=os.environ | {"LD_LIBRARY_PATH": str(HOME / "nvidia" / "cuda_runtime" / "lib")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Report(result.returncode, result.stdout)
