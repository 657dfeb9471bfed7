"""Flags that several commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Json = Annotated[
    bool,
    Parameter(
        name="--json", negative=(), show_default=False, help="Print JSON; errors too, to standard error."
    ),
]
Server = Annotated[
    str | None,
    Parameter(name="--server", help="host:port of a server. [HEDGEROW_SERVER; 127.0.0.1:8001]"),
]
Backup = Annotated[
    list[str] | None,
    Parameter(
        name="--backup",
        negative=(),
        help="host:port of a backup region, asked too when the server is slow and instead when it fails;"
        " repeatable. [HEDGEROW_BACKUPS, unless --server is given]",
    ),
]
Control = Annotated[
    str | None,
    Parameter(name="--control", help="host:port of the control plane. [HEDGEROW_CONTROL; 127.0.0.1:8101]"),
]
Registry = Annotated[
    str | None,
    Parameter(name="--registry", help="MLflow's URI. [MLFLOW_TRACKING_URI; http://127.0.0.1:5000]"),
]
Store = Annotated[
    str | None,
    Parameter(
        name="--store",
        help="DSN of the feature store."
        " [HEDGEROW_FEATURES__STORE; the local stack; postgresql://127.0.0.1:5432/hedgerow]",
    ),
]
Timeout = Annotated[float, Parameter(name="--timeout", help="Seconds to wait for an answer.")]
