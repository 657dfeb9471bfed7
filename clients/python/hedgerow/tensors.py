"""NumPy arrays to Open Inference Protocol tensors and back, in their raw form.

Raw contents are little-endian and row-major. An element of a BYTES tensor is a
4-byte little-endian length and that many bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hedgerow.errors import InvalidReply, InvalidRequest

Array = npt.NDArray[Any]

#: Protocol datatype to NumPy dtype, for all that NumPy can hold as it is.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}

#: Protocol datatype to its field of InferTensorContents.
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


def encode(name: str, array: Array) -> tuple[str, bytes]:
    """The datatype and the raw contents of an array, copied once.

    Args:
        name: The input's name, for the error.
        array: Any layout and byte order. Object and string arrays become BYTES;
            str is sent as UTF-8. A `bfloat16` array (ml_dtypes) becomes BF16.

    Raises:
        InvalidRequest: The dtype, or an element of an object array, has no place in the protocol.
    """
    dtype = array.dtype
    datatype = DATATYPES.get(dtype)
    if datatype is not None:
        return datatype, array.tobytes()
    if dtype.kind in "OUST":
        return "BYTES", _encode_bytes(name, array)
    if dtype.name == "bfloat16":
        return "BF16", array.tobytes()
    little = dtype.newbyteorder("<")
    datatype = DATATYPES.get(little)
    if datatype is not None:
        return datatype, array.astype(little).tobytes()
    hint = {
        "M": "; send .astype('int64')",
        "m": "; send .astype('int64')",
        "c": "; send real and imaginary parts as two inputs",
        "f": "; send .astype('float64')",
    }.get(dtype.kind, "")
    raise InvalidRequest(
        f"input {name!r} has dtype {dtype}, which the protocol cannot carry{hint}"
        f" (it carries bool, int8 to int64, uint8 to uint64, float16 to float64, bfloat16, str and bytes)"
    )


def _encode_bytes(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for position, element in enumerate(array.ravel().tolist()):
        if isinstance(element, str):
            try:
                data = element.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(f"input {name!r}, element {position}: {error}") from error
        elif isinstance(element, bytes | bytearray | memoryview):
            data = bytes(element)
        else:
            raise InvalidRequest(
                f"input {name!r}, element {position} is {type(element).__name__};"
                " an object array is sent as BYTES and may hold only str and bytes"
            )
        parts.append(len(data).to_bytes(4, "little"))
        parts.append(data)
    return b"".join(parts)


def decode(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Array:
    """The array of a raw tensor.

    Returns:
        A read-only view of `raw` where NumPy has the dtype. BYTES gives an object
        array of bytes; BF16, which NumPy lacks, is widened to float32 without loss.

    Raises:
        InvalidReply: The contents do not fill the shape, or the datatype is unknown.
    """
    if min(shape, default=0) < 0:
        raise InvalidReply(f"output {name!r} came with the negative shape {list(shape)}")
    count = math.prod(shape)
    dtype = DTYPES.get(datatype)
    if dtype is not None:
        _expect(name, datatype, shape, len(raw), count * dtype.itemsize)
        return _shaped(name, np.frombuffer(raw, dtype), shape)
    if datatype == "BYTES":
        return _decode_bytes(name, shape, count, raw)
    if datatype == "BF16":
        _expect(name, datatype, shape, len(raw), count * 2)
        return _shaped(name, (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4"), shape)
    raise InvalidReply(f"output {name!r} came with the unknown datatype {datatype!r}")


def _shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:  # too many dimensions, or past int64
        raise InvalidReply(f"output {name!r} came with the shape {list(shape)}: {error}") from error


def _expect(name: str, datatype: str, shape: Sequence[int], got: int, expected: int) -> None:
    if got != expected:
        raise InvalidReply(
            f"output {name!r} ({datatype} {list(shape)}) came with {got} bytes, its shape needs {expected}"
        )


def _decode_bytes(name: str, shape: Sequence[int], count: int, raw: bytes) -> Array:
    # The element count is the sender's claim: check it against the bytes before allocating for it.
    if count * 4 > len(raw):
        raise InvalidReply(f"output {name!r} (BYTES {list(shape)}) came with only {len(raw)} bytes")
    array = np.empty(count, dtype=object)
    offset = 0
    for position in range(count):
        start = offset + 4
        offset = start + int.from_bytes(raw[offset:start], "little")
        if start > len(raw) or offset > len(raw):
            raise InvalidReply(f"output {name!r} (BYTES {list(shape)}) ends inside element {position}")
        array[position] = raw[start:offset]
    if offset != len(raw):
        raise InvalidReply(f"output {name!r} (BYTES {list(shape)}) has {len(raw) - offset} bytes too many")
    return _shaped(name, array, shape)


def decode_contents(name: str, datatype: str, shape: Sequence[int], contents: Any) -> Array:
    """The array of a tensor with typed contents, which some servers answer with.

    Args:
        name: The output's name, for the error.
        datatype: As in the protocol; FP16 and BF16 have no typed form.
        shape: As in the reply.
        contents: InferTensorContents, of whichever server.

    Raises:
        InvalidReply: As for `decode`.
    """
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InvalidReply(f"output {name!r} came with typed contents, which {datatype!r} does not have")
    values = getattr(contents, field)
    if min(shape, default=0) < 0 or len(values) != math.prod(shape):
        raise InvalidReply(f"output {name!r} ({datatype} {list(shape)}) came with {len(values)} elements")
    if datatype == "BYTES":
        array = np.empty(len(values), dtype=object)
        array[:] = list(values)
        return _shaped(name, array, shape)
    return _shaped(name, np.array(values, dtype=DTYPES[datatype]), shape)


def convert(name: str, value: object, datatype: str | None) -> Array:
    """Lays a value without a dtype of its own (a list, a number) into an array.

    Args:
        name: The input's name, for the error.
        value: Nested sequences of numbers, strings or bytes, or one of them.
        datatype: What the model takes; None leaves the choice to NumPy.

    Raises:
        InvalidRequest: The value is ragged, or does not fit `datatype` without losing its meaning
            (a fraction for an integer, a number out of range, text for a number).
    """
    try:
        natural: Array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"input {name!r} is no array: {error}") from error
    if natural.dtype.kind in "USO" and datatype in (None, "BYTES"):
        # NumPy's own string dtypes drop trailing NULs; objects stay as they are.
        return np.asarray(value, dtype=object)
    if datatype is None:
        return natural
    target = DTYPES.get(datatype, np.dtype("<f4") if datatype == "BF16" else None)
    if target is not None and natural.dtype.kind in "biuf":
        if target.kind in "iu" and natural.dtype.kind in "biu":
            return _convert_integers(name, natural, target, datatype)
        if natural.size == 0 or np.can_cast(natural.dtype, target, casting="same_kind"):
            return _narrow(natural.astype(target), datatype)
    raise InvalidRequest(
        f"input {name!r} holds {_words(natural.dtype)}, the model takes {datatype};"
        " pass a NumPy array to send exactly its dtype"
    )


def _convert_integers(name: str, natural: Array, target: np.dtype[Any], datatype: str) -> Array:
    limits = np.iinfo(target)
    if natural.size and not (limits.min <= int(natural.min()) and int(natural.max()) <= limits.max):
        raise InvalidRequest(
            f"input {name!r} holds {int(natural.min())} to {int(natural.max())}, {datatype} holds"
            f" {limits.min} to {limits.max}"
        )
    return natural.astype(target)


def _narrow(array: Array, datatype: str) -> Array:
    if datatype != "BF16":
        return array
    try:
        import ml_dtypes  # noqa: PLC0415 - NumPy has no bfloat16; only who sends it needs the package
    except ImportError as error:
        raise InvalidRequest("BF16 from plain numbers needs the package ml_dtypes") from error
    return array.astype(ml_dtypes.bfloat16)


def _words(dtype: np.dtype[Any]) -> str:
    kinds = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats", "U": "text", "S": "bytes"}
    return kinds.get(dtype.kind, f"values of dtype {dtype}")
