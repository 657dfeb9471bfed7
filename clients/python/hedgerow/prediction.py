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
_clients: dict[str, Client] = {}


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
        server: `host:port`; None: the environment variable HEDGEROW_SERVER, else 127.0.0.1:8001.

    Raises:
        HedgerowError: As for `Client.infer`.
    """
    client = _client(server or os.environ.get("HEDGEROW_SERVER") or DEFAULT_TARGET)
    return client.predict(model, inputs, version=version, timeout=timeout, route_key=route_key)


def _client(target: str) -> Client:
    with _lock:
        client = _clients.get(target)
        if client is None:
            client = _clients[target] = Client(target)
        return client


@atexit.register
def _close() -> None:
    with _lock:
        while _clients:
            _clients.popitem()[1].close()
