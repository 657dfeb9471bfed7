"""Elements of one tensor: BYTES framing, and the typed contents of a request."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from hedgerow_server.engine.signature import TensorSpec
from hedgerow_server.engine.work import Part
from hedgerow_server.errors import InvalidTensor

_LENGTH = struct.Struct("<I")

#: The field of InferTensorContents that holds each datatype.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_CONTENTS_FIELDS = tuple(dict.fromkeys(_CONTENTS.values()))


def read_bytes_tensor(raw: bytes, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes a BYTES tensor: each element is a 4-byte little-endian length and its bytes.

    Returns:
        An array of str; ONNX strings are UTF-8.

    Raises:
        InvalidTensor: the lengths do not add up, or an element is not UTF-8.
    """
    count = math.prod(shape)
    if count * 4 > len(raw):
        raise InvalidTensor(
            f"input {name!r} has {len(raw)} bytes, but {count} BYTES elements take at least {count * 4}"
        )
    elements: list[str] = []
    at, end = 0, len(raw)
    while at < end:
        if len(elements) == count:
            raise InvalidTensor(
                f"input {name!r} has {end - at} bytes behind its {count} elements; "
                f"is {shown(shape)} its shape?"
            )
        if at + 4 > end:
            raise InvalidTensor(f"input {name!r} ends within the length of element {len(elements)}")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += 4
        if at + length > end:
            raise InvalidTensor(
                f"input {name!r}: element {len(elements)} says it has {length} bytes, {end - at} are left"
            )
        elements.append(_text(raw[at : at + length], name, len(elements)))
        at += length
    if len(elements) != count:
        raise InvalidTensor(
            f"input {name!r} holds {len(elements)} elements; shape {shown(shape)} takes {count}"
        )
    return _objects(elements)


def write_bytes_tensor(array: np.ndarray) -> bytes:
    """Encodes an array of str or bytes as a BYTES tensor."""
    pieces = []
    for element in array.ravel():
        encoded = element if isinstance(element, bytes) else str(element).encode("utf-8", "surrogateescape")
        pieces.append(_LENGTH.pack(len(encoded)))
        pieces.append(encoded)
    return b"".join(pieces)


def read_contents(contents: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Part:
    """Turns typed contents into what the engine takes: bytes, or str objects for BYTES.

    Args:
        contents: an `InferTensorContents`.
        spec: the input they are for.
        shape: the request's shape of it, found to fit.

    Raises:
        InvalidTensor: too few or too many values, in another type's field, or
            values that the datatype cannot hold.
    """
    datatype = spec.datatype
    field = _CONTENTS.get(datatype.name)
    if field is None:
        raise InvalidTensor(
            f"input {spec.name!r} is {datatype.name}, which has no typed contents; send it raw"
        )
    wrong = [other for other in _CONTENTS_FIELDS if other != field and len(getattr(contents, other))]
    if wrong:
        raise InvalidTensor(
            f"input {spec.name!r} is {datatype.name} and has {wrong[0]}; put its values in {field}"
        )
    values = getattr(contents, field)
    count = math.prod(shape)
    if len(values) != count:
        hint = "; both contents and raw_input_contents are empty" if not len(values) else ""
        raise InvalidTensor(
            f"input {spec.name!r} has {len(values)} values in {field}, not the {count} of its shape{hint}"
        )
    if not datatype.itemsize:
        return _objects([_text(value, spec.name, i) for i, value in enumerate(values)])
    # Through 64 bits: a value that does not fit the type is an error, not a wrap.
    if datatype.dtype.kind in "iu":
        wide = np.array(values, np.uint64 if datatype.dtype.kind == "u" else np.int64)
        limits = np.iinfo(datatype.dtype.name)
        if count and (int(wide.max()) > limits.max or int(wide.min()) < limits.min):
            raise InvalidTensor(
                f"input {spec.name!r} has a value that {datatype.name} cannot hold; "
                f"its values go from {limits.min} to {limits.max}"
            )
        return wide.astype(datatype.dtype).tobytes()
    return np.array(values, datatype.dtype).tobytes()


def _text(value: bytes, name: str, at: int) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidTensor(
            f"input {name!r}: element {at} is not UTF-8; ONNX strings are text, send binary data as UINT8"
        ) from None


def _objects(elements: list[str]) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def shown(shape: Sequence[int]) -> str:
    """A shape for an error message, of bounded length."""
    return str(list(shape[:16])) + ("..." if len(shape) > 16 else "")
