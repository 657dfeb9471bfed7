"""The control plane's threads need MLflow at the same moment, the first time."""

from __future__ import annotations

import socket
import subprocess
import sys

BOTH_AT_ONCE = """
import sys, threading
from hedgerow_control.artifacts.fetch import MlflowArtifacts
from hedgerow_control.registry.client import MlflowRegistry

uri = sys.argv[1]
said = {}

def use(name, call):
    together.wait()
    try:
        call()
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"

together = threading.Barrier(2)
calls = {
    "poll": lambda: MlflowRegistry(uri, timeout_seconds=1).served_models(),
    "fetch": lambda: MlflowArtifacts(uri, "m", "1"),
}
threads = [threading.Thread(target=use, args=item) for item in calls.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for name, error in sorted(said.items()):
    print(name, error)
"""


def test_a_poll_and_a_fetch_that_import_mlflow_together_both_get_as_far_as_the_network():
    """As at a restart with a version still to fetch; only the refused connection may be complained about."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        uri = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", BOTH_AT_ONCE, uri], capture_output=True, text=True, timeout=100, check=True
        )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["fetch", "poll"]
    assert all("Failed to establish a new connection" in line for line in lines), done.stdout
