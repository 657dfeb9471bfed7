"""The model that is measured when none is named: a perceptron 32 -> 64 -> 64 -> 1 in float32.

Small enough that its run takes microseconds, so what is measured is the server.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

INPUT, OUTPUT = "x", "y"
WIDTH = 32
_LAYERS = (WIDTH, 64, 64, 1)


def weights(seed: int) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Matrix and bias of each layer."""
    random = np.random.default_rng(seed)
    return [
        ((random.normal(size=size) / size[0] ** 0.5).astype(np.float32), np.zeros(size[1], np.float32))
        for size in pairwise(_LAYERS)
    ]


def answer(rows: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    """What the model says, computed without it: float32 [rows, 1]."""
    layers = weights(seed)
    for number, (matrix, bias) in enumerate(layers):
        rows = rows @ matrix + bias
        if number < len(layers) - 1:
            rows = np.maximum(rows, 0)
    return rows


def write(path: Path, seed: int) -> None:
    """Writes the model as ONNX: `x` FP32 [batch, 32] to `y` FP32 [batch, 1]."""
    from onnx import TensorProto, helper, numpy_helper, save_model  # noqa: PLC0415 - needed only here

    nodes: list[Any] = []
    constants: list[Any] = []
    layers = weights(seed)
    value = INPUT
    for number, (matrix, bias) in enumerate(layers):
        last = number == len(layers) - 1
        constants.append(numpy_helper.from_array(matrix, f"w{number}"))
        constants.append(numpy_helper.from_array(bias, f"b{number}"))
        result = OUTPUT if last else f"h{number}"
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [result]))
        if not last:
            nodes.append(helper.make_node("Relu", [result], [f"r{number}"]))
        value = f"r{number}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 1])],
        constants,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
