"""What the control plane can be told: [control], [registry] and [artifacts]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from hedgerow_protos.config import ProcessSettings, Secret, Section
from pydantic import Field, field_validator

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]


class Control(Section):
    """The process itself, and how it rolls versions out."""

    host: str = "127.0.0.1"
    #: 0 lets the system choose; the ready line tells.
    grpc_port: Port = 8101
    http_port: Port = 8100
    state_dir: Path = Path("var/control")
    #: Previous champions kept warm on the servers, for each model.
    retain: Annotated[int, Field(ge=0, le=8)] = 1
    #: A server that has not acknowledged a snapshot by then no longer holds the others up.
    ack_timeout_seconds: Seconds = 10.0
    #: Shared with MLflow's webhooks; without it they are refused.
    webhook_secret: Secret = None
    webhook_secret_file: Path | None = None


class Registry(Section):
    """The MLflow server to watch."""

    uri: str = "http://127.0.0.1:5000"
    poll_seconds: Annotated[float, Field(ge=0.05, le=3600)] = 1.0
    #: For one HTTP request; MLflow's client counts whole seconds.
    timeout_seconds: Annotated[int, Field(ge=1, le=600)] = 5

    @field_validator("uri")
    @classmethod
    def _is_an_address(cls, uri: str) -> str:
        try:
            parts = urlsplit(uri)
            found = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number
            found = False
        if not found:
            # MLflow's client would take most other texts for a folder, and make it.
            raise ValueError("expected the URL of an MLflow server, such as http://127.0.0.1:5000")
        if parts.username or parts.password:
            # It is shown on the ready line, in the status and in errors.
            raise ValueError(
                "a URL with a password would end up in logs; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri


class Artifacts(Section):
    """What one version's files may take, on disk and in the trial load."""

    max_bytes: Annotated[int, Field(gt=0)] = 8 * 2**30
    max_files: Annotated[int, Field(gt=0, le=4096)] = 1024
    #: Address space of the child process that loads a candidate.
    trial_memory_bytes: Annotated[int, Field(gt=0)] = 8 * 2**30
    trial_cpu_seconds: Annotated[int, Field(gt=0)] = 120
    trial_wall_seconds: Seconds = 60.0


class Settings(ProcessSettings):
    """Everything `hedgerow-control` reads."""

    control: Control = Control()
    registry: Registry = Registry()
    artifacts: Artifacts = Artifacts()
