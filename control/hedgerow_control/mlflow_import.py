"""MLflow, imported on first use and by one thread at a time.

Importing it takes seconds, and the control plane has a last good snapshot to
serve meanwhile. Its modules import each other in circles: two threads that
begin at different ends deadlock, Python breaks the deadlock by an error, and
the half-imported package stays broken for the rest of the process.
"""

from __future__ import annotations

import importlib
import threading

_MODULES = (
    "mlflow",
    "mlflow.exceptions",
    "mlflow.store.artifact.artifact_repository_registry",
    "mlflow.tracking",
)
_lock = threading.Lock()


def load_mlflow() -> None:
    """Blocks until MLflow is imported; call it before importing from it in a thread."""
    with _lock:
        for name in _MODULES:
            importlib.import_module(name)
