r"""Entity ids: what callers send, as the bytes under which the store and the cache know an entity.

One key gives its own bytes, an INT64 its decimal digits. The parts of a composite key are joined
by `|`; inside a part, `|` and `\` are escaped by `\`. As a view fixes the number and the types of
its parts, two different entities never share an encoding, and each has only one.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import SupportsIndex, cast

from hedgerow_protos.feature_view import view_ref
from hedgerow_protos.hedgerow_control_pb2 import EntityKey, FeatureView

#: Of an encoded id; PostgreSQL's index takes five times as much, cache keys stay short.
MAX_ID_BYTES = 512

_INT64 = range(-(2**63), 2**63)
_INTEGER = re.compile(rb"-?(0|[1-9][0-9]*)")


class EntityError(ValueError):
    """An id that cannot name an entity of the view; the message says which, and what is expected."""


class EntityCodec:
    """Ids of one view's entities.

    Args:
        view: One that `check_view` accepts.
    """

    __slots__ = ("_keys", "_parts", "_ref")

    def __init__(self, view: FeatureView) -> None:
        self._ref = view_ref(view)
        self._keys = [key.name for key in view.entity]
        self._parts = [_part(key) for key in view.entity]

    def encode(self, parts: Sequence[object]) -> bytes:
        """The id of one entity.

        Args:
            parts: One for each entity key, in the view's order: text or bytes for BYTES, a whole
                number for INT64.

        Raises:
            EntityError: A part is of the wrong type, empty or missing, or the id is too long.
        """
        if len(parts) != len(self._parts):
            raise EntityError(
                f"{self._ref}: {len(parts)} key parts; expected {len(self._parts)}: {', '.join(self._keys)}"
            )
        return self.encode_columns([[part] for part in parts])[0]

    def encode_columns(self, columns: Sequence[Sequence[object]]) -> list[bytes]:
        """The ids of many entities, one for each row.

        Args:
            columns: For each entity key, in the view's order, a value for each row.

        Raises:
            EntityError: As `encode`; the message names the row, from 0, where there are several.
        """
        encoded = [self._column(index, column) for index, column in enumerate(columns)]
        ids = (
            encoded[0]
            if len(encoded) == 1
            else [b"|".join(map(_escaped, parts)) for parts in zip(*encoded, strict=True)]
        )
        if ids and max(map(len, ids)) > MAX_ID_BYTES:
            row = next(row for row, entity_id in enumerate(ids) if len(entity_id) > MAX_ID_BYTES)
            raise EntityError(
                f"{self._ref}: {self._where(row, len(ids))}an id of {len(ids[row])} bytes"
                f" ({', '.join(self._keys)}); at most {MAX_ID_BYTES}"
            )
        return ids

    def decode(self, entity_id: bytes) -> tuple[bytes | int, ...]:
        """The parts of an encoded id.

        Raises:
            EntityError: These bytes are no id of this view's.
        """
        raw = [entity_id] if len(self._parts) == 1 else _split(entity_id)
        if len(raw) != len(self._parts):
            raise EntityError(
                f"{self._ref}: {entity_id[:100]!r} has {len(raw)} key parts; expected {len(self._parts)}:"
                f" {', '.join(self._keys)}, joined by '|'"
            )
        parts: list[bytes | int] = []
        for index, piece in enumerate(raw):
            if self._parts[index] is _integer:
                if not _INTEGER.fullmatch(piece) or piece == b"-0":
                    raise EntityError(
                        f"{self._ref}: {self._keys[index]} is {piece[:100]!r}; expected a whole number"
                    )
                parts.append(int(piece))
            else:
                parts.append(piece)
        self.encode(parts)  # refuses what is empty, too long or too large
        return tuple(parts)

    def _column(self, index: int, column: Sequence[object]) -> list[bytes]:
        part = self._parts[index]
        try:
            return [part(value) for value in column]
        except EntityError:
            pass
        # Once more, slowly, to name the row.
        for row, value in enumerate(column):
            try:
                part(value)
            except EntityError as error:
                where = self._where(row, len(column))
                raise EntityError(f"{self._ref}: {where}{self._keys[index]} {error}") from None
        raise AssertionError("unreachable: a part was refused once and taken the second time")

    @staticmethod
    def _where(row: int, rows: int) -> str:
        return f"row {row}: " if rows > 1 else ""


def _part(key: EntityKey) -> Callable[[object], bytes]:
    return _integer if key.datatype == "INT64" else _text


def _text(value: object) -> bytes:
    if isinstance(value, str):
        value = value.encode("utf-8", errors="surrogateescape")
    if not isinstance(value, bytes):
        raise EntityError(f"is {type(value).__name__}; expected text (BYTES)")
    if not value:
        raise EntityError("is empty; expected an id")
    return value


def _integer(value: object) -> bytes:
    if type(value) is int and value in _INT64:  # nearly always
        return b"%d" % value
    if isinstance(value, bool):
        raise EntityError("is true or false; expected a whole number (INT64)")
    try:
        number = operator.index(cast("SupportsIndex", value))  # what has no index is refused below
    except TypeError:
        raise EntityError(f"is {type(value).__name__}; expected a whole number (INT64)") from None
    if number not in _INT64:
        raise EntityError(f"is {number}; expected a number that fits INT64")
    return b"%d" % number


def _escaped(part: bytes) -> bytes:
    if b"|" in part or b"\\" in part:
        return part.replace(b"\\", b"\\\\").replace(b"|", b"\\|")
    return part


def _split(entity_id: bytes) -> list[bytes]:
    parts = [bytearray()]
    rest = iter(entity_id)
    for byte in rest:
        if byte == 0x5C:  # a backslash: the next byte is meant as it is
            following = next(rest, None)
            if following not in (0x5C, 0x7C):
                raise EntityError(f"{entity_id[:100]!r}: a '\\' stands before '|' or another '\\' only")
            parts[-1].append(following)
        elif byte == 0x7C:
            parts.append(bytearray())
        else:
            parts[-1].append(byte)
    return [bytes(part) for part in parts]
