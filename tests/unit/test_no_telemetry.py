"""The server tells nobody what it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_onnx_runtime_keeps_no_telemetry_in_any_process_of_the_server(tmp_path: Path) -> None:
    """Its wheels open a database and a session file on import, unless told before."""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    subprocess.run(
        [sys.executable, "-c", "import hedgerow_server.engine.loading"],
        env={**environment, **places, "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        timeout=60,
    )
    assert not list(tmp_path.iterdir())
