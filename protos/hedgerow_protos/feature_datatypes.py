"""The datatypes of feature fields, and what a field's default is in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from hedgerow_protos.hedgerow_control_pb2 import FeatureField

#: As the Open Inference Protocol names them; little-endian, as they lie in a row. BYTES is text
#: of its own length and no part of the fixed bytes, hence 0 bytes wide here.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("S0"),
}

#: UTF-8 bytes of one BYTES value.
MAX_TEXT_BYTES = 4096


def default_values(field: FeatureField) -> list[Any]:
    """A field's default, one Python value for each element of its width.

    Args:
        field: One that `default_problem` finds nothing wrong with.
    """
    width = max(field.width, 1)
    default = field.default
    values: list[Any]
    if field.datatype == "BYTES":
        values = list(default.strings)
    elif np.issubdtype(DTYPES[field.datatype], np.floating):
        # `default: 150` is a whole number in YAML, whatever the field is.
        values = [float(value) for value in (*default.numbers, *default.integers)]
    else:
        values = list(default.integers)
    return values * width if len(values) == 1 else values


def default_problem(field: FeatureField) -> str | None:
    """Says why a field's default will not do, or None if it will; the datatype is a known one."""
    default = field.default
    given: dict[str, list[Any]] = {
        name: list(values)
        for name, values in (
            ("numbers", default.numbers),
            ("whole numbers", default.integers),
            ("text", default.strings),
        )
        if values
    }
    width = max(field.width, 1)
    wanted = "text" if field.datatype == "BYTES" else f"numbers that fit {field.datatype}"
    if not given:
        return f"has no default; say what to serve when nothing is known ({wanted})"
    dtype = DTYPES[field.datatype]
    floating = bool(np.issubdtype(dtype, np.floating))
    if field.datatype == "BYTES":
        fitting = {"text"}
    else:
        fitting = {"numbers", "whole numbers"} if floating else {"whole numbers"}
    if len(given) > 1 or not set(given) <= fitting:
        return f"the default is {' and '.join(given)}; expected {wanted}"
    (values,) = given.values()
    if len(values) not in (1, width):
        return f"the default has {len(values)} values; expected 1 or {width}, the field's width"
    if field.datatype == "BYTES":
        size = len(values[0].encode())
        return f"the default has {size} bytes; at most {MAX_TEXT_BYTES}" if size > MAX_TEXT_BYTES else None
    return next((problem for value in values if (problem := _range_problem(value, field.datatype))), None)


def _range_problem(value: float, datatype: str) -> str | None:
    dtype = DTYPES[datatype]
    if datatype == "BOOL":
        return None if value in (0, 1) else f"the default {value} is neither true nor false"
    if np.issubdtype(dtype, np.floating):
        # NaN and infinities may be meant; a finite number that becomes infinite is a slip.
        with np.errstate(over="ignore"):
            overflows = bool(np.isfinite(float(value))) and not np.isfinite(dtype.type(value))
        return f"the default {value:g} is out of the range of {datatype}" if overflows else None
    bounds = np.iinfo(dtype)
    if bounds.min <= value <= bounds.max:
        return None
    return f"the default {value} is out of the range of {datatype}, {bounds.min} to {bounds.max}"
