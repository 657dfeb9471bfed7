"""A view's values as bytes: one row, as it lies in the store and, behind a header, in the cache.

A row holds the numeric fields in the view's order without padding, little-endian, so that a
row of one datatype is copied into a tensor as it is. BYTES fields follow behind all of them:
four bytes of length and the UTF-8 text, each.

A cached value is

    2  magic "HF"      8  fingerprint of the view
    1  format 1        8  confirmed: when the store said so, microseconds since 1970
    1  kind            8  event time, microseconds since 1970; 0 for an absence
    4  crc32 of kind and all that follows it

and then the row. Kind 1 is a row, kind 0 the store's word that it has none. Whatever else is
found in the cache was written by somebody else or is damaged, and counts as nothing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hedgerow_protos.feature_datatypes import DTYPES, MAX_TEXT_BYTES, default_values
from hedgerow_protos.feature_view import fingerprint, view_ref
from hedgerow_protos.hedgerow_control_pb2 import FeatureView

_LENGTH = struct.Struct("<I")


class RowError(ValueError):
    """Values that do not make a row of their view."""


class RowLayout:
    """How a view's values lie in a row.

    Args:
        view: One that `check_view` accepts.

    Attributes:
        dtype: NumPy's record of the numeric fields, without padding; a wide field is a subarray.
        size: Bytes of the numeric part.
        texts: The BYTES fields, in the view's order.
        default_row: The row of the view's defaults.
    """

    __slots__ = ("default_row", "dtype", "size", "texts")

    def __init__(self, view: FeatureView) -> None:
        record: list[Any] = []
        for field in view.fields:
            if field.datatype != "BYTES":
                width = max(field.width, 1)
                dtype = DTYPES[field.datatype]
                record.append((field.name, dtype, (width,)) if width > 1 else (field.name, dtype))
        self.dtype: np.dtype[np.void] = np.dtype(record)
        self.size = self.dtype.itemsize
        self.texts = tuple(field.name for field in view.fields if field.datatype == "BYTES")
        defaults = {field.name: default_values(field) for field in view.fields}
        self.default_row = self.pack(
            {name: values[0] if len(values) == 1 else values for name, values in defaults.items()}
        )

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """One row from a value for each field: a number, a sequence as long as the field is wide, or text.

        Raises:
            RowError: A field is missing, or a value does not fit.
        """
        try:
            columns = {name: [values[name]] for name in (*(self.dtype.names or ()), *self.texts)}
        except KeyError as error:
            raise RowError(f"no value for the field {error}") from None
        return self.pack_columns(columns, 1)[0]

    def pack_columns(self, columns: Mapping[str, Any], count: int) -> list[bytes]:
        """`count` rows at once from a column of each field.

        Args:
            columns: Field name to an array or a sequence: [count] numbers, [count, width] for a wide
                field, or `count` texts.
            count: Rows.

        Raises:
            RowError: A value does not fit its field.
        """
        records = np.empty(count, self.dtype)
        for name in self.dtype.names or ():
            try:
                records[name] = columns[name]
            except (ValueError, TypeError, OverflowError) as error:
                raise RowError(f"field {name}: {error}") from None
        whole = records.tobytes()
        size = self.size
        rows = (
            [whole[start : start + size] for start in range(0, count * size, size)] if size else [b""] * count
        )
        for name in self.texts:
            rows = [row + _text(value, name) for row, value in zip(rows, columns[name], strict=True)]
        return rows

    def unpack(self, row: bytes) -> dict[str, Any]:
        """A row's values by field, in Python's own types, wide fields as lists; texts come last.

        Raises:
            RowError: It is no row of this view.
        """
        if not self.fits(row):
            raise RowError(f"{len(row)} bytes that are no row of this view")
        record = np.frombuffer(row, self.dtype, 1)[0] if self.size else None
        values: dict[str, Any] = {
            name: record[name].tolist() for name in self.dtype.names or () if record is not None
        }
        at = self.size
        for name in self.texts:
            (length,) = _LENGTH.unpack_from(row, at)
            values[name] = row[at + 4 : at + 4 + length].decode()
            at += 4 + length
        return values

    def fits(self, row: bytes) -> bool:
        """Whether these bytes are as long as a row, and its texts lie inside and are UTF-8."""
        if not self.texts:
            return len(row) == self.size
        at, end = self.size, len(row)
        for _ in self.texts:
            if at + 4 > end:
                return False
            (length,) = _LENGTH.unpack_from(row, at)
            text = row[at + 4 : at + 4 + length]
            if len(text) != length:
                return False
            try:
                text.decode()
            except UnicodeDecodeError:
                return False
            at += 4 + length
        return at == end


def _text(value: object, name: str) -> bytes:
    if not isinstance(value, str):
        raise RowError(f"field {name}: {type(value).__name__}; expected text")
    encoded = value.encode("utf-8", errors="replace")
    if len(encoded) > MAX_TEXT_BYTES:
        raise RowError(f"field {name}: {len(encoded)} bytes of text; at most {MAX_TEXT_BYTES}")
    return _LENGTH.pack(len(encoded)) + encoded


class Cached(NamedTuple):
    """What the cache knows of one entity.

    Attributes:
        confirmed_us: When the store said so, microseconds since 1970.
        event_time_us: The row's event time, microseconds since 1970; 0 for an absence.
        row: None: the store has none.
    """

    confirmed_us: int
    event_time_us: int
    row: bytes | None


_HEADER = struct.Struct("<4sIQqq")
_BODY = struct.Struct("<Qqq")
_BODY_AT = _HEADER.size - _BODY.size
_ABSENT, _PRESENT = 0, 1
#: How a value begins, magic, format and kind, and the kind that it then is of.
_KINDS = {b"HF\x01\x00": _ABSENT, b"HF\x01\x01": _PRESENT}
_HEADS = {kind: head for head, kind in _KINDS.items()}


class CacheCodec:
    """Cached values of one view.

    Args:
        view: One that `check_view` accepts.
    """

    __slots__ = ("_fingerprint", "_layout", "_prefix")

    def __init__(self, view: FeatureView) -> None:
        self._fingerprint = fingerprint(view)
        self._layout = RowLayout(view)
        self._prefix = f"hedgerow:features:{view_ref(view)}:".encode()

    def key(self, entity_id: bytes) -> bytes:
        """The key under which an entity's value lies; `entity_id` as `EntityCodec` encodes it."""
        return self._prefix + entity_id

    def keys(self, entity_ids: Sequence[bytes]) -> list[bytes]:
        """The same for many."""
        prefix = self._prefix
        return [prefix + entity_id for entity_id in entity_ids]

    def pack(self, confirmed_us: int, event_time_us: int, row: bytes | None) -> bytes:
        """The value for a row, or for the store's word that there is none."""
        kind = _ABSENT if row is None else _PRESENT
        body = _BODY.pack(self._fingerprint, confirmed_us, 0 if row is None else event_time_us) + (row or b"")
        return struct.pack("<4sI", _HEADS[kind], zlib.crc32(body, kind)) + body

    def unpack(self, value: bytes) -> Cached | None:
        """What a value says, or None if it is damaged, or of another format or layout."""
        (said,) = self.unpack_all((value,))
        return None if said is None else Cached(*said)

    def unpack_all(self, values: Sequence[bytes | None]) -> list[tuple[int, int, bytes | None] | None]:
        """The same for many, in one pass and in plain tuples; None also for None: the cache has no value."""
        marker, size = self._fingerprint, self._layout.size
        fits = self._layout.fits if self._layout.texts else None
        header, at, body_at, crc32, kinds = _HEADER.unpack_from, _HEADER.size, _BODY_AT, zlib.crc32, _KINDS
        found: list[tuple[int, int, bytes | None] | None] = []
        for value in values:
            said: tuple[int, int, bytes | None] | None = None
            if value is not None and len(value) >= at:
                head, checksum, whose, confirmed, event_time = header(value)
                kind = kinds.get(head)
                if (
                    kind is not None
                    and whose == marker
                    and crc32(memoryview(value)[body_at:], kind) == checksum
                ):
                    row = value[at:]
                    if kind == _ABSENT:
                        said = None if row else (confirmed, event_time, None)
                    elif len(row) == size if fits is None else fits(row):
                        said = (confirmed, event_time, row)
            found.append(said)
        return found
