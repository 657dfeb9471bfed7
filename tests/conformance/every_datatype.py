"""A model that gives back a tensor of every datatype, and values that are easily lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zoo
from onnx import helper

NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


def write(path: Path, *, but: str = "") -> Path:
    """out_T = in_T, [batch, 3], for every datatype T, or every one but this."""
    kinds = [(name, kind) for name, kind in zoo.ELEMENT_TYPES.items() if name != but]
    return zoo.save(
        path,
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name, _ in kinds],
        [zoo.tensor(f"in_{name}", ["batch", 3], kind) for name, kind in kinds],
        [zoo.tensor(f"out_{name}", ["batch", 3], kind) for name, kind in kinds],
    )


def extremes() -> dict[str, np.ndarray]:
    """For each datatype [2, 3]: the ends of its range, and what text and floats have beside numbers."""
    tensors: dict[str, np.ndarray] = {}
    for name, dtype in NUMPY.items():
        if name == "BYTES":
            values: list[object] = ["", "hedge", "Schwarzdorn é 山査子 🌿", "a\0b", "x" * 70_000, "\n"]
        elif name == "BOOL":
            values = [True, False, False, True, True, False]
        elif name.startswith("FP"):
            limits = np.finfo(dtype)
            values = [limits.max, limits.min, limits.smallest_subnormal, np.nan, -np.inf, -0.0]
        else:
            limits = np.iinfo(dtype)
            values = [limits.min, limits.max, 0, 1, limits.max - 1, limits.max // 2]
        tensors[name] = np.array(values, dtype).reshape(2, 3)
    return tensors


def random(seed: int, rows: int = 1) -> dict[str, np.ndarray]:
    """For each datatype [rows, 3]."""
    source = np.random.default_rng(seed)
    shape = (rows, 3)
    tensors: dict[str, np.ndarray] = {}
    for name, dtype in NUMPY.items():
        if name == "BYTES":
            words = [f"{seed}:{'é' * int(source.integers(0, 40))}" for _ in range(rows * 3)]
            tensors[name] = np.array(words, np.object_).reshape(shape)
        elif name == "BOOL":
            tensors[name] = source.integers(0, 2, shape).astype(dtype)
        elif name.startswith("FP"):
            tensors[name] = source.normal(size=shape).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            tensors[name] = source.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return tensors


def inputs(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the names of the model's inputs."""
    return {f"in_{name}": values for name, values in tensors.items()}


def outputs(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the names of its outputs."""
    return {f"out_{name}": values for name, values in tensors.items()}


def assert_same(answer: np.ndarray, sent: np.ndarray) -> None:
    """Bit by bit; text may come back as its UTF-8."""
    assert answer.shape == sent.shape
    if sent.dtype == np.object_:
        texts = [text.decode() if isinstance(text, bytes) else text for text in answer.ravel()]
        assert texts == sent.ravel().tolist()
    else:
        assert answer.dtype == sent.dtype
        assert answer.tobytes() == sent.tobytes()
