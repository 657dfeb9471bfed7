"""scikit-learn to ONNX: one float32 tensor in, one float32 tensor out, any number of rows."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType

from hedgerow_pipeline.features import INPUT, OUTPUT, Rows, names
from hedgerow_pipeline.models import Fitted

#: Understood by every ONNX Runtime since 1.14.
OPSETS = {"": 18, "ai.onnx.ml": 3}
#: Minutes that ONNX Runtime may differ from scikit-learn: it computes in
#: float32, and a value that float32 rounds onto a tree's threshold may take
#: the other branch, so a row in ten thousand may differ by a leaf.
TOLERANCE = 0.01
TOLERATED_ROWS = 1e-3


class ExportError(Exception):
    """The exported model does not answer like the one that was trained."""


def export(model: Fitted) -> onnx.ModelProto:
    """Converts a model's parts and adds them up in one graph.

    Returns:
        A model with input `features` FP32 [batch, columns of the version] and
        output `arrival_delay` FP32 [batch, 1].
    """
    logging.getLogger("skl2onnx").setLevel(logging.ERROR)
    width = len(names(model.version))
    graphs = [_convert(part, f"part{number}_", width) for number, part in enumerate(model.parts)]
    nodes = [node for graph in graphs for node in graph.node]
    weights = [weight for graph in graphs for weight in graph.initializer]
    answers = [graph.output[0].name for graph in graphs]
    nodes.append(helper.make_node("Sum" if len(answers) > 1 else "Identity", answers, [OUTPUT], name=OUTPUT))
    whole = helper.make_model(
        helper.make_graph(
            nodes,
            f"arrival_delay_v{model.version}",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", width])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 1])],
            weights,
        ),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        ir_version=8,
        producer_name="hedgerow",
        doc_string=model.description,
    )
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _convert(part: Any, prefix: str, width: int) -> Any:
    """One regressor as a graph whose names carry a prefix, except the input's."""
    proto = to_onnx(part, initial_types=[(INPUT, FloatTensorType([None, width]))], target_opset=OPSETS)
    graph = onnx.compose.add_prefix(proto, prefix).graph
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == prefix + INPUT:
                node.input[position] = INPUT
    return graph


def check(model: Fitted, proto: onnx.ModelProto, rows: Rows) -> float:
    """Runs the exported model beside the trained one.

    Args:
        model: The trained version.
        proto: What `export` made of it.
        rows: float32 [rows, columns of the version].

    Returns:
        The largest difference in minutes over the rows that count.

    Raises:
        ExportError: More than one row in a thousand differs by more than 0.01 minutes.
    """
    import onnxruntime as ort  # noqa: PLC0415 - takes a second, needed only here

    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers = session.run([OUTPUT], {INPUT: rows})[0]
    if answers.shape != (len(rows), 1) or answers.dtype != np.float32:
        raise ExportError(f"Expected FP32 [{len(rows)}, 1], got {answers.dtype} {list(answers.shape)}.")
    difference = np.sort(np.abs(answers[:, 0] - model.predict(rows)))
    counted = difference[: max(1, int(len(rows) * (1 - TOLERATED_ROWS)))]
    if not counted[-1] <= TOLERANCE:
        raise ExportError(
            f"Version {model.version} in ONNX differs from scikit-learn by up to {counted[-1]:.3g} minutes"
            f" on {1 - TOLERATED_ROWS:.1%} of {len(rows)} rows; {TOLERANCE} was allowed."
        )
    return float(counted[-1])
