"""Small real ONNX models, each written to a file for one purpose.

Every function takes the path to write and returns it. The models are built
operator by operator, so what each computes is plain here and can be checked by
hand or against onnxruntime in process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Old enough for every onnxruntime in use.
OPSET = 17
IR_VERSION = 8

#: Open Inference Protocol name -> ONNX element type.
ELEMENT_TYPES: dict[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

Dims = Sequence[int | str | None]
_FLOAT = TensorProto.FLOAT


def tensor(name: str, dims: Dims | None, element_type: int = _FLOAT) -> onnx.ValueInfoProto:
    """Declares an input or output; no `dims` at all is an unknown rank."""
    return helper.make_tensor_value_info(name, element_type, dims)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, Any] | None = None,
    *,
    domains: dict[str, int] | None = None,
    opset: int = OPSET,
) -> Path:
    """Writes a model of these nodes; `weights` are its initializers."""
    initializers = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()
    ]
    graph = helper.make_graph(nodes, "zoo", inputs, outputs, initializers)
    opsets = {"": opset, **(domains or {})}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*item) for item in opsets.items()])
    model.ir_version = IR_VERSION
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


# Models that are served.


def identity(path: Path, datatype: str = "FP32", dims: Dims = ("batch", 3)) -> Path:
    """Identity, y = x, for any type that the protocol can carry."""
    kind = ELEMENT_TYPES[datatype]
    return save(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", dims, kind)],
        [tensor("y", dims, kind)],
    )


def mlp(path: Path, seed: int = 0) -> Path:
    """The benchmark's model: x FP32 [batch, 32] -> 64 -> 64 -> y FP32 [batch, 1], random weights by seed."""
    source = np.random.default_rng(seed)
    sizes = (32, 64, 64, 1)
    weights: dict[str, Any] = {}
    nodes = []
    value = "x"
    for layer, (inside, outside) in enumerate(pairwise(sizes)):
        weights[f"w{layer}"] = (source.standard_normal((inside, outside)) / np.sqrt(inside)).astype(
            np.float32
        )
        weights[f"b{layer}"] = source.standard_normal(outside).astype(np.float32)
        is_last = layer == len(sizes) - 2
        result = "y" if is_last else f"sum{layer}"
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [result]))
        if not is_last:
            value = f"relu{layer}"
            nodes.append(helper.make_node("Relu", [result], [value]))
    return save(path, nodes, [tensor("x", ["batch", 32])], [tensor("y", ["batch", 1])], weights)


def constant(path: Path, value: float) -> Path:
    """Always the same, y = value for every row of x FP32 [batch, 4]: the answer tells the version."""
    return save(
        path,
        [
            helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "value"], ["y"]),
        ],
        [tensor("x", ["batch", 4])],
        [tensor("y", ["batch", 1])],
        {"axis": np.array([1], np.int64), "zero": np.float32(0), "value": np.float32(value)},
    )


def several(path: Path) -> Path:
    """Two inputs, three outputs of different types: sum = a + b, difference = a - b, larger = a > b.

    All are [batch, 2]; a and b FP32, larger BOOL.
    """
    dims = ["batch", 2]
    return save(
        path,
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Sub", ["a", "b"], ["difference"]),
            helper.make_node("Greater", ["a", "b"], ["larger"]),
        ],
        [tensor("a", dims), tensor("b", dims)],
        [tensor("sum", dims), tensor("difference", dims), tensor("larger", dims, TensorProto.BOOL)],
    )


def sequence(path: Path) -> Path:
    """Two dimensions vary: x FP32 [batch, length, 4] -> y FP32 [batch, length], the sum of the last."""
    return save(
        path,
        [helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)],
        [tensor("x", ["batch", "length", 4])],
        [tensor("y", ["batch", "length"])],
        {"axis": np.array([2], np.int64)},
    )


def no_batch(path: Path) -> Path:
    """Nothing varies: y = x + 1, FP32 [2, 3]."""
    return save(
        path,
        [helper.make_node("Add", ["x", "one"], ["y"])],
        [tensor("x", [2, 3])],
        [tensor("y", [2, 3])],
        {"one": np.float32(1)},
    )


def scalar(path: Path) -> Path:
    """A scalar beside a batch: y = x * scale; x and y FP32 [batch, 2], scale FP32 []. Never batched."""
    return save(
        path,
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        [tensor("x", ["batch", 2]), tensor("scale", [])],
        [tensor("y", ["batch", 2])],
    )


def total(path: Path) -> Path:
    """An input with rows, an output without: total FP32 [] of x FP32 [batch, 2]. Never batched."""
    return save(
        path,
        [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)],
        [tensor("x", ["batch", 2])],
        [tensor("total", [])],
    )


def batch_mean(path: Path) -> Path:
    """Rows depend on each other: y = x - mean of x over the batch, FP32 [batch, 2]."""
    return save(
        path,
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [tensor("x", ["batch", 2])],
        [tensor("y", ["batch", 2])],
    )


def running_sum(path: Path) -> Path:
    """Rows depend on those before them: y = cumulative sum of x along the batch, FP32 [batch, 2]."""
    return save(
        path,
        [helper.make_node("CumSum", ["x", "axis"], ["y"])],
        [tensor("x", ["batch", 2])],
        [tensor("y", ["batch", 2])],
        {"axis": np.array(0, np.int64)},
    )


def quantized(path: Path, seed: int = 0) -> Path:
    """Dynamic quantization with the range of the whole batch: x FP32 [batch, 8] -> y FP32 [batch, 4]."""
    weights = np.random.default_rng(seed).integers(-100, 100, (8, 4)).astype(np.int8)
    return save(
        path,
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["q", "w", "zero"], ["product"]),
            helper.make_node("Cast", ["product"], ["real"], to=_FLOAT),
            helper.make_node("Mul", ["real", "scale"], ["y"]),
        ],
        [tensor("x", ["batch", 8])],
        [tensor("y", ["batch", 4])],
        {"w": weights},
    )


def logarithm(path: Path) -> Path:
    """Logarithm, y = log x, FP32 [batch, 2]: NaN for a negative x, minus infinity for 0."""
    return save(
        path,
        [helper.make_node("Log", ["x"], ["y"])],
        [tensor("x", ["batch", 2])],
        [tensor("y", ["batch", 2])],
    )


def lookup(path: Path, rows: int = 10) -> Path:
    """Fails at run for an index INT64 [batch] of `rows` or more: y FP32 [batch, 2] = table[index]."""
    table = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return save(
        path,
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        [tensor("index", ["batch"], TensorProto.INT64)],
        [tensor("y", ["batch", 2])],
        {"table": table},
    )


def _loop(
    path: Path,
    step: Sequence[onnx.NodeProto],
    *,
    rounds: int | None,
    weights: dict[str, Any],
    state: Dims | None,
    answer: Dims,
) -> Path:
    """Sends x FP32 [batch, 1] through a Loop whose `step` makes "next" from "now"; no `rounds`: for ever."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), *step],
        "body",
        [tensor("round", [], TensorProto.INT64), tensor("go_on", [], TensorProto.BOOL), tensor("now", state)],
        [tensor("still", [], TensorProto.BOOL), tensor("next", state)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    outer: dict[str, Any] = {"true": np.array(True)}
    if rounds is not None:
        outer["rounds"] = np.array(rounds, np.int64)
    loop = helper.make_node("Loop", ["" if rounds is None else "rounds", "true", "x"], ["y"], body=body)
    return save(path, [loop], [tensor("x", ["batch", 1])], [tensor("y", answer)], outer)


#: Rounds of `slow`'s loop in a millisecond.
_ROUNDS_IN_A_MILLISECOND = 1100


def slow(path: Path, milliseconds: float = 50.0) -> Path:
    """Identity, y = x, FP32 [batch, 1], after roughly so many milliseconds (half to thrice, by machine)."""
    pairs = max(1, round(milliseconds * _ROUNDS_IN_A_MILLISECOND / 2))
    return _loop(
        path,
        [helper.make_node("Neg", ["now"], ["next"])],
        rounds=pairs * 2,
        weights={},
        state=["rows", 1],
        answer=["batch", 1],
    )


def hangs(path: Path, limit: float = 1000.0) -> Path:
    """Identity, y = x, FP32 [batch, 1]; runs for ever where a value is above `limit`."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Neg", ["now"], ["next"])],
        "body",
        [
            tensor("round", [], TensorProto.INT64),
            tensor("go_on", [], TensorProto.BOOL),
            tensor("now", ["rows", 1]),
        ],
        [tensor("still", [], TensorProto.BOOL), tensor("next", ["rows", 1])],
    )
    return save(
        path,
        [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "limit"], ["is_large"]),
            helper.make_node("Where", ["is_large", "for_ever", "twice"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "true", "x"], ["y"], body=body),
        ],
        [tensor("x", ["batch", 1])],
        [tensor("y", ["batch", 1])],
        {
            "limit": np.float32(limit),
            "for_ever": np.array(2**62, np.int64),
            "twice": np.array(2, np.int64),
            "true": np.array(True),
        },
    )


def external(path: Path, location: str = "weights.bin", *, write: bool = True, mebibytes: int = 0) -> Path:
    """Multiplies x FP32 [batch, 64] by weights in another file: y FP32 [batch, columns].

    Args:
        path: Of the model.
        location: Of the weights, as the model names them.
        write: Also write that file.
        mebibytes: Size of the weights; 0 is 16 KiB.
    """
    columns = mebibytes * 4096 if mebibytes else 64
    values = np.random.default_rng(0).standard_normal((64, columns)).astype(np.float32)
    if write:
        target = path.parent / location
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(values.tobytes())
    weights = TensorProto(name="w", data_type=_FLOAT, dims=values.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(values.nbytes))):
        weights.external_data.add(key=key, value=value)
    save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", ["batch", 64])],
        [tensor("y", ["batch", columns])],
    )
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(weights)
    path.write_bytes(model.SerializeToString())
    return path


# Models that are refused.


def never_returns(path: Path) -> Path:
    """A loop without end."""
    return _loop(
        path,
        [helper.make_node("Add", ["now", "one"], ["next"])],
        rounds=None,
        weights={"one": np.float32(1)},
        state=["rows", 1],
        answer=["batch", 1],
    )


def allocates_without_end(path: Path) -> Path:
    """A loop that doubles its state each round."""
    return _loop(
        path,
        [helper.make_node("Concat", ["now", "now"], ["next"], axis=1)],
        rounds=None,
        weights={},
        state=["rows", None],
        answer=["batch", "width"],
    )


def allocates_at_once(path: Path, gibibytes: int = 64) -> Path:
    """One tensor larger than any memory limit."""
    return save(
        path,
        [
            helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["zero"], keepdims=0),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        [tensor("x", ["batch", 1])],
        [tensor("y", ["batch", 1])],
        {"shape": np.array([gibibytes, 1 << 28], np.int64)},
    )


def zipmap(path: Path) -> Path:
    """A classifier's output as scikit-learn exports have it by default: a sequence of maps."""
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(_FLOAT, []))
    )
    return save(
        path,
        [
            helper.make_node(
                "ZipMap", ["x"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
            )
        ],
        [tensor("x", ["batch", 2])],
        [helper.make_value_info("probabilities", maps)],
        domains={"ai.onnx.ml": 3},
    )


def sequence_output(path: Path) -> Path:
    """An output that is a sequence of tensors."""
    return save(
        path,
        [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])],
        [tensor("x", ["batch", 2])],
        [helper.make_tensor_sequence_value_info("y", _FLOAT, None)],
    )


def optional_input(path: Path) -> Path:
    """An input that may be absent."""
    maybe = helper.make_optional_type_proto(helper.make_tensor_type_proto(_FLOAT, [2]))
    return save(
        path,
        [helper.make_node("OptionalGetElement", ["x"], ["y"])],
        [helper.make_value_info("x", maybe)],
        [tensor("y", [2])],
    )


def unknown_rank(path: Path) -> Path:
    """An input that gives no shape."""
    return save(path, [helper.make_node("Identity", ["x"], ["y"])], [tensor("x", None)], [tensor("y", None)])


def uncarried(path: Path, element_type: int = TensorProto.BFLOAT16) -> Path:
    """An output of a type that the protocol has no name for; opset 21 has them all."""
    return save(
        path,
        [helper.make_node("Cast", ["x"], ["y"], to=element_type)],
        [tensor("x", ["batch", 2])],
        [tensor("y", ["batch", 2], element_type)],
        opset=21,
    )


def custom_operator(path: Path) -> Path:
    """An operator of a domain that ONNX Runtime does not know."""
    return save(
        path,
        [helper.make_node("Sparkle", ["x"], ["y"], domain="com.example")],
        [tensor("x", ["batch", 2])],
        [tensor("y", ["batch", 2])],
        domains={"com.example": 1},
    )


def future_opset(path: Path) -> Path:
    """An operator set that no release has yet."""
    dims = ["batch", 2]
    return save(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", dims)],
        [tensor("y", dims)],
        opset=999,
    )


def truncated(path: Path) -> Path:
    """The first two thirds of a model's file."""
    mlp(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path
