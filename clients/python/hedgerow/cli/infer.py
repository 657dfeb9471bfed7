"""`hedgerow infer`: one question to a model."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from hedgerow.cli import output
from hedgerow.cli.endpoints import backups, resolve
from hedgerow.cli.options import Backup, Json, Server, Timeout
from hedgerow.client import Client
from hedgerow.descriptions import ModelMetadata, TensorMetadata
from hedgerow.errors import InvalidRequest
from hedgerow.infer_result import InferResult
from hedgerow.tensors import DTYPES, Array, convert

EXAMPLES = """\
Examples:
  hedgerow infer delay --zeros
  hedgerow infer delay --input 'features=[[0.5, 12, 3]]'
  hedgerow infer delay --input features=@rows.npy --output probability
  hedgerow infer delay --zeros --server 10.0.0.7:8001 --backup 10.1.0.7:8001
  hedgerow infer text --input 'words=["a", "b"]' --json\
"""


def infer(
    model: Annotated[str, Parameter(help="The registered model.")],
    /,
    *,
    input: Annotated[  # noqa: A002 - the flag's name
        list[str] | None,
        Parameter(negative=(), help="name=JSON, name=@file.json or name=@file.npy; repeatable."),
    ] = None,
    zeros: Annotated[
        bool, Parameter(negative=(), help="Fill the other inputs with zeros, dynamic dimensions with 1.")
    ] = False,
    output_name: Annotated[
        list[str] | None, Parameter(name="--output", negative=(), help="Only this output; repeatable.")
    ] = None,
    version: Annotated[str, Parameter(help="A version number; empty: the server chooses.")] = "",
    route_key: Annotated[str | None, Parameter(help="Who asks, for the sticky choice of a variant.")] = None,
    server: Server = None,
    backup: Backup = None,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Ask a model and print its outputs, the version that answered, and the time it took."""
    if not input and not zeros:
        raise InvalidRequest("nothing to ask: give --input name=JSON for each input, or --zeros")
    given = dict(_parse(text) for text in input or ())
    elsewhere = backups(server, backup)
    with Client(resolve("server", server), timeout=timeout, channels=1, backups=elsewhere) as client:
        # Also opens the connection, so that the time below is that of the question alone.
        described = client.metadata(model, version)
        inputs = _fill(described, given, zeros=zeros)
        began = time.perf_counter()
        result = client.infer(model, inputs, outputs=output_name, version=version, route_key=route_key)
        milliseconds = (time.perf_counter() - began) * 1000
    if json:
        output.print_json(_document(result, milliseconds))
    else:
        _print(result, milliseconds)


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidRequest(f"--input {text!r}: expected name=JSON or name=@file")
    try:
        if not value.startswith("@"):
            return name, jsonlib.loads(value)
        path = Path(value[1:])
        if path.suffix == ".npy":
            return name, np.load(path, allow_pickle=False)
        return name, jsonlib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"--input {name}: {error.filename}: {error.strerror}") from error
    except jsonlib.JSONDecodeError as error:
        raise InvalidRequest(f"--input {name}: not JSON: {error}") from error
    except ValueError as error:
        raise InvalidRequest(f"--input {name}: {error}") from error


def _fill(described: ModelMetadata, given: dict[str, Any], *, zeros: bool) -> dict[str, Array]:
    known = described.input_datatypes()
    inputs: dict[str, Array] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidRequest(
                f"model {described.name!r} has no input {name!r};"
                f" it takes {', '.join(map(_tensor, described.inputs))}"
            )
        inputs[name] = value if isinstance(value, np.ndarray) else convert(name, value, known[name])
    missing = [tensor for tensor in described.inputs if tensor.name not in inputs]
    if missing and not zeros:
        raise InvalidRequest(
            f"missing: {', '.join(map(_tensor, missing))}; give --input for each, or --zeros"
        )
    for tensor in missing:
        inputs[tensor.name] = _zeros(tensor)
    return inputs


def _tensor(tensor: TensorMetadata) -> str:
    return f"{tensor.name} {tensor.datatype} {list(tensor.shape)}"


def _zeros(tensor: TensorMetadata) -> Array:
    shape = [1 if size < 0 else size for size in tensor.shape]
    if tensor.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise InvalidRequest(f"cannot make zeros of {_tensor(tensor)}; give --input {tensor.name}=@file.npy")
    return np.zeros(shape, dtype)


def _document(result: InferResult, milliseconds: float) -> dict[str, object]:
    return {
        "model": result.model,
        "version": result.model_version,
        "outcome": result.outcome,
        "rule": result.rule,
        "variant": result.variant,
        "region": result.region,
        **({"target": result.target} if result.target else {}),
        "features": result.features,
        "request_id": result.request_id,
        "latency_ms": round(milliseconds, 3),
        "outputs": {
            name: {"dtype": _dtype(array), "shape": array.shape, "data": array}
            for name, array in result.items()
        },
    }


def _dtype(array: Array) -> str:
    return "bytes" if array.dtype.kind == "O" else str(array.dtype)


def _print(result: InferResult, milliseconds: float) -> None:
    console = output.console()
    table = Table("output", "dtype", "shape", "values", box=None, pad_edge=False)
    for name, array in result.items():
        values = np.array2string(array, threshold=20, edgeitems=3, precision=6, max_line_width=100)
        table.add_row(Text(name), _dtype(array), str(list(array.shape)), Text(values))
    console.print(table)
    said: Sequence[str | None] = (
        f"version {result.model_version}",
        result.outcome,
        result.rule and f"rule {result.rule}",
        result.variant and f"variant {result.variant}",
        result.region and f"region {result.region}",
        result.target,
        result.features and f"features {result.features}",
        f"{milliseconds:.2f} ms",
    )
    console.print(f"\n{result.model}: " + ", ".join(one for one in said if one), markup=False, soft_wrap=True)
