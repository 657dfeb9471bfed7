"""`hedgerow models`: what a server serves, and which share of the traffic each version takes."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table
from rich.text import Text

from hedgerow.cli import output
from hedgerow.cli.endpoints import resolve
from hedgerow.cli.options import Control, Json, Server, Timeout
from hedgerow.client import Client
from hedgerow.descriptions import ModelMetadata, TensorMetadata
from hedgerow.errors import HedgerowError, NotFound
from hedgerow.operator import Operator

EXAMPLES = """\
Examples:
  hedgerow models
  hedgerow models --server 10.0.0.7:8001 --json\
"""


def models(
    *,
    server: Server = None,
    control: Control = None,
    timeout: Timeout = 5.0,
    json: Json = False,
) -> None:
    """List the models of a server: versions, state, routes, inputs and outputs."""
    routes = _routes(resolve("control", control))
    rows: list[dict[str, Any]] = []
    with Client(resolve("server", server), timeout=timeout, channels=1) as client:
        for entry in client.index():
            row = dataclasses.asdict(entry)
            row["routes"] = routes.get((entry.name, entry.version), [])
            described = _describe(client, entry.name, entry.version)
            row["inputs"] = [dataclasses.asdict(one) for one in described.inputs] if described else []
            row["outputs"] = [dataclasses.asdict(one) for one in described.outputs] if described else []
            rows.append(row)
    if json:
        output.print_json(rows)
        return
    table = Table("model", "version", "state", "routes", "inputs", "outputs", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            Text(row["name"]),
            row["version"],
            Text(row["state"].lower() + (f": {row['reason']}" if row["reason"] else "")),
            ", ".join(f"{one['variant']} {one['weight']}" for one in row["routes"]),
            Text("\n".join(_tensor(TensorMetadata(**one)) for one in row["inputs"])),
            Text("\n".join(_tensor(TensorMetadata(**one)) for one in row["outputs"])),
        )
    output.console().print(table if rows else "no models")


def _describe(client: Client, model: str, version: str) -> ModelMetadata | None:
    try:
        return client.metadata(model, version)
    except NotFound:
        return None  # listed, but not in memory


def _tensor(tensor: TensorMetadata) -> str:
    sizes = ", ".join("?" if size < 0 else str(size) for size in tensor.shape)
    return f"{tensor.name} {tensor.datatype} ({sizes})"


def _routes(control: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Routes by model and version; nothing if there is no control plane, which servers do without."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    try:
        with Operator(control) as operator:
            answer = operator.status(timeout=1.0)
    except HedgerowError:
        return found
    for model in answer.models:
        for route in model.routes:
            one = {"variant": route.variant, "weight": route.weight}
            found.setdefault((model.name, route.version), []).append(one)
    return found
