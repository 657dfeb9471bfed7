"""The one table of tensor types: protocol name, NumPy, ONNX Runtime, Triton.

What is not here cannot be carried by the Open Inference Protocol (BF16 has no
NumPy type, complex, 8-bit floats and 4-bit integers have no name in it), and a
model that has such an input or output is refused when it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """A type of tensor elements under its four names.

    Attributes:
        name: In the Open Inference Protocol, `FP32`.
        dtype: In NumPy; `object` for BYTES. Its elements must be `str`: of `bytes`, ONNX Runtime
            takes the repr (`"b'x'"`), and from NumPy's fixed-width bytes it reads past the end.
        onnx: As ONNX Runtime spells the type of an input, `tensor(float)`.
        triton: The number in Triton's `DataType` enum.
        itemsize: Bytes of one element on the wire; 0 for BYTES, whose elements vary.
    """

    name: str
    dtype: np.dtype[np.generic]
    onnx: str
    triton: int
    itemsize: int


def _datatype(name: str, dtype: type[np.generic], onnx: str, triton: int) -> Datatype:
    made = np.dtype(dtype)
    return Datatype(name, made, f"tensor({onnx})", triton, 0 if made.hasobject else made.itemsize)


#: By protocol name, in the order of Triton's enum.
DATATYPES: dict[str, Datatype] = {
    datatype.name: datatype
    for datatype in (
        _datatype("BOOL", np.bool_, "bool", 1),
        _datatype("UINT8", np.uint8, "uint8", 2),
        _datatype("UINT16", np.uint16, "uint16", 3),
        _datatype("UINT32", np.uint32, "uint32", 4),
        _datatype("UINT64", np.uint64, "uint64", 5),
        _datatype("INT8", np.int8, "int8", 6),
        _datatype("INT16", np.int16, "int16", 7),
        _datatype("INT32", np.int32, "int32", 8),
        _datatype("INT64", np.int64, "int64", 9),
        _datatype("FP16", np.float16, "float16", 10),
        _datatype("FP32", np.float32, "float", 11),
        _datatype("FP64", np.float64, "double", 12),
        _datatype("BYTES", np.object_, "string", 13),
    )
}

_BY_ONNX = {datatype.onnx: datatype for datatype in DATATYPES.values()}


def from_onnx(onnx: str) -> Datatype | None:
    """The datatype ONNX Runtime calls `onnx`, or None if the protocol cannot carry it."""
    return _BY_ONNX.get(onnx)
