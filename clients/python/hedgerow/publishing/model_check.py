"""Reads an ONNX model and refuses, before anything is uploaded, what no server could serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from hedgerow.errors import ModelRefused

#: Operator domains that ONNX Runtime knows without a library of custom operators.
_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"}
)
_VENDOR_PREFIXES = ("com.microsoft", "com.ms.", "org.pytorch.aten")

_EXPORT_HINT = {
    "map_type": "a map, which the Open Inference Protocol cannot carry. Export a plain tensor: with skl2onnx"
    ' pass options={id(model): {"zipmap": False}} to to_onnx or convert_sklearn; elsewhere remove the ZipMap'
    " node and make its input the output",
    "sequence_type": "a sequence, which the Open Inference Protocol cannot carry. Export tensors: join it"
    " (ConcatFromSequence) or make each element an output; with skl2onnx pass"
    ' options={id(model): {"zipmap": False}}',
    "optional_type": "an optional, which the Open Inference Protocol cannot carry. Export the tensor itself",
    "sparse_tensor_type": "a sparse tensor, which the Open Inference Protocol cannot carry. Export it dense",
}


def read(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> onnx.ModelProto:
    """The model, checked.

    Args:
        model: A path of a .onnx file (external data beside it is read too), the file's bytes, or
            the message itself, which is copied.

    Raises:
        ModelRefused: It cannot be read, ONNX's checker finds fault with it, it needs custom
            operators, or takes or gives something other than tensors.
    """
    source = os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
    try:
        if isinstance(model, str | os.PathLike):
            if Path(model).suffix == ".onnx" or Path(model).is_file():
                onnx.checker.check_model(os.fspath(model))
            proto = onnx.load(os.fspath(model))
        elif isinstance(model, bytes):
            proto = onnx.load_model_from_string(model)
            onnx.checker.check_model(proto)
        else:
            # Saving with external data rewrites the message; the caller's stays as it is.
            proto = onnx.ModelProto()
            proto.CopyFrom(model)
            onnx.checker.check_model(proto)
    except OSError as error:
        raise ModelRefused(f"{source}: {error.strerror or error}") from error
    except (onnx.checker.ValidationError, DecodeError, ValueError, TypeError) as error:
        raise ModelRefused(f"{source} is not a valid ONNX model: {_first_line(error)}") from error
    _check_operators(proto, source)
    _check_values(proto.graph, source)
    return proto


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_operators(proto: onnx.ModelProto, source: str) -> None:
    known = _DOMAINS | {function.domain for function in proto.functions}
    graphs: list[Any] = [proto.graph, *proto.functions]
    while graphs:
        for node in graphs.pop().node:
            if node.domain not in known and not node.domain.startswith(_VENDOR_PREFIXES):
                raise ModelRefused(
                    f"{source} uses the custom operator {node.domain}.{node.op_type}; servers load no"
                    " libraries of custom operators. Export the model with standard operators"
                )
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else attribute.graphs


def _check_values(graph: onnx.GraphProto, source: str) -> None:
    if not graph.output:
        raise ModelRefused(f"{source} has no output")
    for role, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind != "tensor_type":
                hint = _EXPORT_HINT.get(kind or "", "of no type; run onnx.shape_inference.infer_shapes on it")
                raise ModelRefused(f"{source}: {role} {value.name!r} is {hint}")
            element = value.type.tensor_type.elem_type
            name = onnx.TensorProto.DataType.Name(element)
            if name not in _CARRIED:
                raise ModelRefused(
                    f"{source}: {role} {value.name!r} is a tensor of {name}; the Open Inference"
                    f" Protocol carries {', '.join(sorted(_CARRIED))}"
                )


_CARRIED = frozenset(
    {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"}
    | {"FLOAT16", "FLOAT", "DOUBLE", "STRING"}
)


def feeds(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller fills: those without an initializer."""
    filled = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in filled]
