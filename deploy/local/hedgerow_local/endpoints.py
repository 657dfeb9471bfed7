"""Where the parts of a running stack answer, for people and for the `hedgerow` command."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

_NAME = "endpoints.json"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running stack answers; endpoints.json holds the same keys.

    Attributes:
        pid: Of the process that runs the stack.
        server: gRPC of the primary region, `host:port`.
        server_http: Its `/health/...`.
        server_metrics: Its `/metrics`.
        backup: gRPC of the backup region.
        backup_http: Its `/health/...`.
        backup_metrics: Its `/metrics`.
        control: gRPC of the control plane.
        control_http: Its HTTP.
        mlflow: The registry's URI, `http://host:port`.
        store: DSN of the features' PostgreSQL; empty when the configuration names another.
        cache: URL of the features' Valkey; empty, likewise.
    """

    pid: int
    server: str
    server_http: str
    server_metrics: str
    backup: str
    backup_http: str
    backup_metrics: str
    control: str
    control_http: str
    mlflow: str
    store: str
    cache: str

    def write(self, root: Path) -> None:
        """Writes endpoints.json; a reader sees all of it or nothing."""
        temporary = root / f"{_NAME}.new"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        temporary.replace(root / _NAME)

    @staticmethod
    def remove(root: Path) -> None:
        """Takes endpoints.json away, if it is there."""
        (root / _NAME).unlink(missing_ok=True)
