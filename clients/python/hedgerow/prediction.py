"""Predictions for rows: a column of plain values for each name.

    hedgerow.predict("delay", {"tailnum": ["N14228"], "origin": ["EWR"], "dest": ["IAH"], "hour": [5]})

Where a model's inputs are bound to feature views, callers name entities by
their ids and the server finds their features.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping

import numpy.typing as npt

from hedgerow.client import DEFAULT_TARGET, Client
from hedgerow.infer_result import InferResult

_lock = threading.Lock()
_clients: dict[tuple[str, ...], Client] = {}


def predict(
    model: str,
    inputs: Mapping[str, npt.ArrayLike],
    *,
    version: str | int = "",
    timeout: float | None = None,
    route_key: str | None = None,
    server: str | None = None,
) -> InferResult:
    """Predicts with a client that this process keeps for the purpose.

    Args:
        model: As for `Client.infer`.
        inputs: As for `Client.predict`.
        version: As for `Client.infer`.
        timeout: Seconds.
        route_key: As for `Client.infer`.
        server: `host:port`; None: the environment variable HEDGEROW_SERVER, else 127.0.0.1:8001, with the
            backup regions in HEDGEROW_BACKUPS (commas between).

    Raises:
        HedgerowError: As for `Client.infer`.
    """
    client = _client(*((server,) if server else _from_environment()))
    return client.predict(model, inputs, version=version, timeout=timeout, route_key=route_key)


def _from_environment() -> tuple[str, ...]:
    backups = os.environ.get("HEDGEROW_BACKUPS", "").split(",")
    return (os.environ.get("HEDGEROW_SERVER") or DEFAULT_TARGET, *filter(None, map(str.strip, backups)))


def _client(*targets: str) -> Client:
    with _lock:
        client = _clients.get(targets)
        if client is None:
            client = _clients[targets] = Client(targets[0], backups=targets[1:])
        return client


@atexit.register
def _close() -> None:
    with _lock:
        while _clients:
            _clients.popitem()[1].close()
