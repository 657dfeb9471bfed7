"""Models that are made for measurements, beside the perceptron of `mlp`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

INPUT, OUTPUT = "x", "y"
_OPSET, _IR = 18, 8
#: Layers of the large model are this wide: 4 MB of FP32 each.
WIDTH = 1000


def write_first(path: Path, shape: tuple[int, ...]) -> None:
    """Writes a model that answers the first number of each row: `x` FP32 [batch, *shape] to `y` [batch, 1…].

    It costs next to nothing, whatever the size of its input.
    """
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - needed only here

    axes = np.arange(1, len(shape) + 1, dtype=np.int64)
    constants = [
        numpy_helper.from_array(np.zeros_like(axes), "starts"),
        numpy_helper.from_array(np.ones_like(axes), "ends"),
        numpy_helper.from_array(axes, "axes"),
    ]
    _save(
        path,
        [helper.make_node("Slice", [INPUT, "starts", "ends", "axes"], [OUTPUT])],
        helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *shape]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", *(1 for _ in shape)]),
        constants,
    )


def write_large(path: Path, megabytes: int, *, external: bool) -> None:
    """Writes a model of so many MB of weights: `x` FP32 [batch, 1000] through layers of 1000 to `y`.

    Args:
        path: The ONNX file.
        megabytes: In steps of 4.
        external: Weights in a file of their own beside it, `model.onnx.data`, as MLflow
            writes them; else inside the ONNX file.
    """
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - needed only here

    random = np.random.default_rng(0)
    layers = max(1, megabytes // 4)
    nodes, constants = [], []
    value = INPUT
    for number in range(layers):
        matrix = random.normal(size=(WIDTH, WIDTH)).astype(np.float32) / np.float32(WIDTH**0.5)
        constants.append(numpy_helper.from_array(matrix, f"w{number}"))
        result = OUTPUT if number == layers - 1 else f"h{number}"
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [result]))
        value = result
    _save(
        path,
        nodes,
        helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", WIDTH]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", WIDTH]),
        constants,
        external=external,
    )


def _save(
    path: Path, nodes: list[Any], source: Any, target: Any, constants: list[Any], *, external: bool = False
) -> None:
    from onnx import helper, save_model  # noqa: PLC0415 - needed only here

    graph = helper.make_graph(nodes, path.stem, [source], [target], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx would append
    save_model(model, path, save_as_external_data=external, location=data.name if external else None)
