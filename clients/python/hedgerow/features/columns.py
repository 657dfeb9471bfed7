"""A column of a file as a column of a view: cast in bulk, and row by row only where that fails."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hedgerow_protos.feature_datatypes import DTYPES, MAX_TEXT_BYTES, default_values
from hedgerow_protos.feature_entity import EntityCodec, EntityError
from hedgerow_protos.hedgerow_control_pb2 import EntityKey, FeatureField

#: A row's place in its batch, and what is wrong with it.
Bad = dict[int, str]

_ARROW = {
    "BOOL": pa.bool_(),
    **{name: pa.from_numpy_dtype(dtype) for name, dtype in DTYPES.items() if dtype.kind in "iu"},
}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class ColumnError(ValueError):
    """A column of a type from which its field cannot be read; the message says what is expected."""


def numbers(column: pa.Array[Any], field: FeatureField, bad: Bad) -> tuple[np.ndarray[Any, Any], int]:
    """A numeric field's values, [rows] or, for a wide field, [rows, width].

    Args:
        column: Numbers, or text that says numbers; a wide field's lists, or text such as `[1, 2]`.
        field: Of any datatype but BYTES.
        bad: Rows that cannot be read are added; their values mean nothing.

    Returns:
        The values, and how many were missing and are the field's default.

    Raises:
        ColumnError: The column has another type altogether.
    """
    if field.width > 1:
        return _vectors(column, field, bad)
    dtype = DTYPES[field.datatype]
    missing = column.null_count
    wide = pa.float64() if dtype.kind == "f" else _ARROW[field.datatype]
    cast = _cast(_numeric(column, field), wide, bad, f"{field.name} is %r; expected {field.datatype}")
    default = default_values(field)[0]
    filler = pa.scalar(bool(default) if field.datatype == "BOOL" else default, wide)
    values = pc.fill_null(cast, filler).to_numpy(zero_copy_only=False)
    return _narrowed(values, dtype, field, bad), missing


def texts(column: pa.Array[Any], field: FeatureField, bad: Bad) -> tuple[list[str], int]:
    """A BYTES field's values; arguments and result as in `numbers`."""
    if not _is_text(column.type):
        raise ColumnError(f"column {field.name} is {column.type}; field {field.name} is BYTES and takes text")
    missing = column.null_count
    cast = _cast(column, pa.string(), bad, f"{field.name} is %r; expected UTF-8 text")
    size = pc.max(pc.binary_length(cast)).as_py() or 0
    if size > MAX_TEXT_BYTES:
        for row in np.flatnonzero(pc.fill_null(pc.greater(pc.binary_length(cast), MAX_TEXT_BYTES), False)):
            bad.setdefault(int(row), f"{field.name} has more than {MAX_TEXT_BYTES} bytes of text")
    return list(pc.fill_null(cast, default_values(field)[0]).to_pylist()), missing


def entity_ids(
    columns: list[pa.Array[Any]], keys: list[EntityKey], codec: EntityCodec, bad: Bad
) -> list[bytes]:
    """The encoded ids of a batch; those of rows in `bad`, to which bad ids are added, mean nothing.

    Raises:
        ColumnError: A column has another type altogether.
    """
    parts = [_key_part(column, key, bad) for column, key in zip(columns, keys, strict=True)]
    try:
        return codec.encode_columns(parts)
    except EntityError:
        pass
    ids: list[bytes] = []
    for row, one in enumerate(zip(*parts, strict=True)):
        try:
            ids.append(codec.encode(one))
        except EntityError as error:
            bad.setdefault(row, str(error))
            ids.append(b"")
    return ids


def event_times(column: pa.Array[Any], name: str, latest_us: int, bad: Bad) -> np.ndarray[Any, Any]:
    """Event times in microseconds since 1970, [rows] of int64; times without a zone are UTC.

    Args:
        column: Timestamps, dates, or ISO 8601 text.
        name: Of the column, for errors.
        latest_us: Whatever is later lies in the future, and is bad.
        bad: Rows that cannot be read are added.

    Raises:
        ColumnError: The column has another type altogether.
    """
    for row in np.flatnonzero(column.is_null()):
        bad.setdefault(int(row), f"{name} is empty; expected an event time")
    stamp = pa.timestamp("us")
    if _is_text(column.type):
        cast = _text_times(column, name, bad)
    elif pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        utc = pa.timestamp("us", "UTC") if getattr(column.type, "tz", None) else stamp
        cast = column.cast(utc, safe=False).cast(pa.int64())  # unsafe: nanoseconds lose their last digits
    else:
        raise ColumnError(f"column {name} is {column.type}; event times are timestamps, or ISO 8601 text")
    times: np.ndarray[Any, Any] = pc.fill_null(cast, 0).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(times > latest_us):
        ahead = (int(times[row]) - latest_us) / 1e6
        bad.setdefault(
            int(row),
            f"{name} {column[int(row)].as_py()!s:.60} lies in the future, by {_span(ahead)} too much",
        )
    return times


def _cast(column: pa.Array[Any], to: pa.DataType, bad: Bad, message: str, start: int = 0) -> pa.Array[Any]:
    """Casts, and halves what does not cast until the bad rows are alone; they become null."""
    try:
        return column.cast(to)
    except pa.ArrowInvalid:
        pass
    if _is_text(column.type) and pa.types.is_integer(to):
        try:  # "3.0" is how pandas writes a whole number in a column with gaps
            return column.cast(pa.float64()).cast(to)
        except pa.ArrowInvalid:
            pass
    if len(column) == 1:
        value = column[0].as_py()
        shown = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        bad.setdefault(start, message % (shown[:60] if isinstance(shown, str) else shown))
        return pa.nulls(1, to)
    half = len(column) // 2
    return pa.concat_arrays(
        [
            _cast(column[:half], to, bad, message, start),
            _cast(column[half:], to, bad, message, start + half),
        ]
    )


def _numeric(column: pa.Array[Any], field: FeatureField) -> pa.Array[Any]:
    """The column, if numbers can be read from its type; text without the spaces around it."""
    kind = column.type
    if _is_text(kind):
        try:
            return pc.utf8_trim_whitespace(column.cast(pa.string()))
        except pa.ArrowInvalid:
            return column  # not UTF-8, which no number is: the cast will tell the row
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if pa.types.is_boolean(kind) or (number and field.datatype != "BOOL"):
        return column.cast(pa.uint8()) if pa.types.is_boolean(kind) and field.datatype != "BOOL" else column
    raise ColumnError(f"column {field.name} is {kind}; field {field.name} is {field.datatype}")


def _narrowed(
    values: np.ndarray[Any, Any], dtype: np.dtype[Any], field: FeatureField, bad: Bad
) -> np.ndarray[Any, Any]:
    """The values as the field's type; finite numbers that would become infinite are bad."""
    if dtype.kind != "f" or dtype.itemsize == 8:
        return values.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    for row in np.flatnonzero(np.isinf(narrow) & np.isfinite(values)):
        bad.setdefault(int(row), f"{field.name} is {values[row]:g}; out of the range of {field.datatype}")
    return narrow


def _vectors(column: pa.Array[Any], field: FeatureField, bad: Bad) -> tuple[np.ndarray[Any, Any], int]:
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists and not _is_text(kind):
        raise ColumnError(
            f"column {field.name} is {kind}; field {field.name} takes lists of {field.width} numbers"
        )
    if (
        lists
        and not column.null_count
        and pc.all(pc.equal(pc.list_value_length(column), field.width)).as_py()
    ):
        elements = column.flatten()
    else:
        elements = _elements(column.to_pylist(), field, bad)
    inside: Bad = {}
    one = FeatureField(name=field.name, datatype=field.datatype)
    one.default.integers.append(0)
    values, missing = numbers(elements, one, inside)
    for place, reason in inside.items():
        bad.setdefault(place // field.width, reason)
    if missing:
        for element in np.flatnonzero(elements.is_null()):
            bad.setdefault(int(element) // field.width, f"{field.name} has an empty element")
    return values.reshape(len(column), field.width), column.null_count


def _elements(cells: list[Any], field: FeatureField, bad: Bad) -> pa.Array[Any]:
    """The elements of lists, or of texts that say lists, in one array; the default's for what is bad."""
    default = default_values(field)
    flat: list[Any] = []
    for row, cell in enumerate(cells):
        items = _json_list(cell) if isinstance(cell, str | bytes) else cell
        if cell is None:
            items = default
        elif (
            not isinstance(items, list)
            or len(items) != field.width
            or not all(isinstance(item, int | float | None) for item in items)
        ):
            shown = cell.decode("utf-8", "backslashreplace") if isinstance(cell, bytes) else cell
            bad.setdefault(row, f"{field.name} is {shown!s:.60}; expected a list of {field.width} numbers")
            items = default
        flat.extend(items)
    try:
        return pa.array(flat)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        # Whole numbers among fractions that no double holds exactly.
        return pa.array([None if item is None else float(item) for item in flat], pa.float64())


def _json_list(text: str | bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _key_part(column: pa.Array[Any], key: EntityKey, bad: Bad) -> list[Any]:
    for row in np.flatnonzero(column.is_null()):
        bad.setdefault(int(row), f"{key.name} is empty; expected an id")
    if key.datatype == "BYTES":
        if not _is_text(column.type):
            raise ColumnError(
                f"column {key.name} is {column.type}; entity key {key.name} is BYTES and takes text"
            )
        return list(pc.fill_null(column.cast(pa.binary()), b"?").to_pylist())
    scalar = FeatureField(name=key.name, datatype="INT64")
    cast = _cast(_numeric(column, scalar), pa.int64(), bad, f"{key.name} is %r; expected a whole number")
    return list(pc.fill_null(cast, 0).to_pylist())


def _text_times(column: pa.Array[Any], name: str, bad: Bad) -> pa.Array[Any]:
    column = _cast(column, pa.string(), bad, f"{name} is %r; expected UTF-8 text")
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return column.cast(kind).cast(pa.int64())
        except pa.ArrowInvalid:
            continue
    micros: list[int | None] = []
    for row, text in enumerate(column.to_pylist()):
        if text is None:
            micros.append(None)
            continue
        try:
            time = dt.datetime.fromisoformat(text.strip())
        except ValueError:
            bad.setdefault(row, f"{name} is {text[:60]!r}; expected ISO 8601 such as 2026-01-31T12:00:00Z")
            micros.append(None)
            continue
        aware = time if time.tzinfo else time.replace(tzinfo=dt.UTC)
        micros.append((aware - _EPOCH) // dt.timedelta(microseconds=1))
    return pa.array(micros, pa.int64())


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_null(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
