"""The peers: what is installed for each, which script serves, and how it is asked."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from hedgerow_bench import mlp
from hedgerow_bench.contender import Contender, Floats, over_grpc

SERVERS = Path(__file__).parent / "servers"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that others wrote.

    Attributes:
        name: As asked for on the command line.
        title: In reports.
        environment: Of `pins.toml`; empty: this one.
        script: In `servers`; it gets the model's path and `ports` ports, then `arguments`.
        speaks: `grpc` (Open Inference Protocol), `json` or `bytes` (over HTTP/1.1).
        path: Of the HTTP request.
        ports: How many it needs; the first is asked.
        arguments: More for the script.
        settings: Environment variables.
        within: Seconds in which it must answer.
    """

    name: str
    title: str
    environment: str
    script: str
    speaks: Literal["grpc", "json", "bytes"]
    path: str = ""
    ports: int = 1
    arguments: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    within: float = 60.0


PEERS = (
    Peer("mosec-batched", "mosec, batches of 64, raw", "mosec", "mosec_server.py", "bytes", "/inference",
         arguments=("64",)),
    Peer("mosec", "mosec, unbatched, raw", "mosec", "mosec_server.py", "bytes", "/inference",
         arguments=("1",)),
    Peer("fastapi-raw", "FastAPI, raw orjson", "fastapi", "fastapi_server.py", "json", "/infer",
         arguments=("raw",)),
    Peer("fastapi", "FastAPI, pydantic", "fastapi", "fastapi_server.py", "json", "/infer",
         arguments=("pydantic",)),
    Peer("pytriton", "PyTriton", "pytriton", "pytriton_server.py", "grpc", ports=3),
    Peer("kserve", "KServe SDK, gRPC", "kserve", "kserve_server.py", "grpc", ports=2),
    Peer("mlserver", "MLServer, gRPC", "mlserver", "mlserver_server.py", "grpc", ports=2),
    Peer("litserve", "LitServe", "litserve", "litserve_server.py", "json", "/predict"),
    Peer("bentoml", "BentoML", "bentoml", "bentoml_server.py", "json", "/infer",
         settings={"BENTOML_DO_NOT_TRACK": "True"}),
    Peer("ray", "Ray Serve, HTTP", "ray", "ray_server.py", "json", "/infer",
         settings={"RAY_USAGE_STATS_ENABLED": "0"}, within=120.0),
)  # fmt: skip


def pins() -> dict[str, list[str]]:
    """Requirements by environment."""
    text = resources.files(__package__).joinpath("pins.toml").read_text()
    return {name: entry["requirements"] for name, entry in tomllib.loads(text).items()}


def contender(peer: Peer, port: int, rows: Floats) -> Contender:
    """How a peer is asked for the answer to FP32 rows [n, 32]."""
    target = f"127.0.0.1:{port}"
    if peer.speaks == "grpc":
        return over_grpc(peer.name, target, "mlp", {mlp.INPUT: rows})
    if peer.speaks == "json":
        headers = (("content-type", "application/json"),)
        body = json.dumps({"rows": rows.tolist()}).encode()
    else:
        headers = (("content-type", "application/octet-stream"),)
        body = rows.tobytes()
    return Contender(peer.name, f"http://{target}{peer.path}", headers, body, http1=True)


def reader(peer: Peer) -> Callable[[bytes], Floats] | None:
    """What finds the numbers in an answer's body; None for gRPC."""
    return {"grpc": None, "json": _from_json, "bytes": _from_bytes}[peer.speaks]


def _from_json(body: bytes) -> Floats:
    answer = json.loads(body)
    return np.asarray(answer["rows"] if isinstance(answer, dict) else answer, np.float32)


def _from_bytes(body: bytes) -> Floats:
    return np.frombuffer(body, np.float32)
