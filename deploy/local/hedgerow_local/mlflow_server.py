"""MLflow's tracking server in one process, on a socket it is handed.

    python -m hedgerow_local.mlflow_server --fd 7 --directory var/local/mlflow

`mlflow server` imports MLflow, starts uvicorn as a child and imports it all
again; this does it once and is ready in half the time. The rest is the same:
a SQLite store, artifacts proxied, and MLflow's check of the Host header, which
lets localhost in and nobody else.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import warnings
from pathlib import Path

#: Set before MLflow is imported. It phones home unless told not to, and its job
#: runner would be a second process that this registry has no use for.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def serve(listener: socket.socket, directory: Path) -> None:
    """Serves until SIGTERM.

    Args:
        listener: A bound socket.
        directory: Holds mlflow.db and the artifacts; made if missing.
    """
    os.environ.update(QUIET)
    directory.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{directory.resolve()}/mlflow.db"
    warnings.simplefilter("ignore")
    import uvicorn  # noqa: PLC0415 - after QUIET, as the rest
    from mlflow import server  # noqa: PLC0415

    os.environ.update(
        {
            server.BACKEND_STORE_URI_ENV_VAR: store,
            server.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            server.ARTIFACTS_DESTINATION_ENV_VAR: str(directory.resolve() / "artifacts"),
            server.SERVE_ARTIFACTS_ENV_VAR: "true",
        }
    )
    from mlflow.server.fastapi_app import app  # noqa: PLC0415
    from mlflow.server.handlers import initialize_backend_stores  # noqa: PLC0415

    initialize_backend_stores(store, None, "mlflow-artifacts:/")
    # One line a request would bury what matters: the control plane asks every second.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    # Before the ready line: whoever reads it connects at once, and waits in the backlog.
    listener.listen(128)
    host, port = listener.getsockname()
    print(f"mlflow ready http={host}:{port} pid={os.getpid()}", flush=True)
    uvicorn_server.run(sockets=[listener])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="A bound socket to listen on")
    parser.add_argument("--directory", type=Path, required=True, help="For the database and the artifacts")
    options = parser.parse_args()
    serve(socket.socket(fileno=options.fd), options.directory)


if __name__ == "__main__":
    main()
