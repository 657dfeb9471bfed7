"""The files of one model version: MLflow's onnx flavor, and serving.yaml beside model.onnx."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from mlflow import onnx as mlflow_onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from hedgerow.publishing.model_check import feeds


def write(proto: onnx.ModelProto, serving: str, directory: Path) -> None:
    """Writes the files; weights lie beside model.onnx, where a server can map them.

    Args:
        proto: Emptied of its weights on the way.
        serving: The text of serving.yaml.
        directory: Must not exist.
    """
    mlflow_onnx.save_model(
        proto,
        str(directory),
        signature=_signature(proto.graph),
        # Named, so that MLflow does not run the model to find out what it imports.
        pip_requirements=[f"onnx=={onnx.__version__}", "onnxruntime"],
        onnx_execution_providers=["CPUExecutionProvider"],
        # A fixed name: equal models have equal files, and so equal digests.
        location="model.onnx.data",
    )
    (directory / "serving.yaml").write_text(serving, encoding="utf-8")


def _signature(graph: onnx.GraphProto) -> ModelSignature:
    return ModelSignature(inputs=_schema(feeds(graph)), outputs=_schema(graph.output))


def _schema(values: Sequence[onnx.ValueInfoProto]) -> Schema:
    return Schema([_tensor(value) for value in values])


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorSpec(np.dtype("str") if dtype.kind == "O" else dtype, tuple(shape), value.name)
