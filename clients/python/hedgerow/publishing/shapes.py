"""What an ONNX graph says of its inputs and outputs, as servers will see them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from hedgerow_protos import tensor_shape
from hedgerow_protos.tensor_shape import Dims, TensorShape

from hedgerow.publishing.model_check import feeds

# ONNX's names for what the protocol calls otherwise.
_DATATYPES = {"FLOAT16": "FP16", "FLOAT": "FP32", "DOUBLE": "FP64", "STRING": "BYTES"}


def input_shapes(graph: onnx.GraphProto) -> list[TensorShape]:
    """The inputs that a caller fills; one without a shape, which servers refuse, fits anything here."""
    return [
        _shape(value) if _has_shape(value) else _shape(value)._replace(shape=(-1, -1))
        for value in feeds(graph)
    ]


def output_shapes(graph: onnx.GraphProto) -> list[TensorShape]:
    """The outputs; see `unranked_outputs`."""
    return [_shape(value) for value in graph.output]


def unranked_outputs(graph: onnx.GraphProto) -> list[str]:
    """Names of the outputs that give no shape: what they have is known when the model has run."""
    return [value.name for value in graph.output if not _has_shape(value)]


def has_batch(graph: onnx.GraphProto) -> bool:
    """Whether requests for the model bring rows, as far as the graph tells."""
    return tensor_shape.has_batch(_dims(feeds(graph)), _dims(graph.output))


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    found: bool = value.type.tensor_type.HasField("shape")
    return found


def _shape(value: onnx.ValueInfoProto) -> TensorShape:
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type)
    sizes = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
    return TensorShape(value.name, _DATATYPES.get(name, name), sizes)


def _dims(values: Iterable[onnx.ValueInfoProto]) -> list[Dims]:
    return [
        [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in dims]
        for dims in (value.type.tensor_type.shape.dim for value in values)
    ]
