"""Reads a protobuf message in a file without parsing it, and without holding it in memory.

What a file of gigabytes says can be looked at in a few reads: everything that is not asked for is
stepped over. The wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

#: Wire types, named as in protobuf's documentation. Groups (3 and 4), long deprecated, are not read.
VARINT, I64, LEN, I32 = 0, 1, 2, 5

_WINDOW = 1 << 14
#: Bytes that a number takes at most.
_LONGEST = 10


class Malformed(Exception):
    """Not the message that is read for: no protobuf, or it ends too early."""


class Field(NamedTuple):
    """Where a field is.

    Attributes:
        number: By which its message knows it.
        kind: Its wire type.
        start: Where its tag begins, in bytes from the begin of the file.
        value: Where its content begins.
        end: Behind its content.
    """

    number: int
    kind: int
    start: int
    value: int
    end: int


class MessageReader:
    """Reads an open file through one small window.

    Holds: the window, and how many fields may still be read.

    Args:
        descriptor: Of a regular file, open for reading. It stays the caller's to close; where it is read
            at does not change.
        most_fields: Reading more, over all messages, raises `Malformed`.
    """

    def __init__(self, descriptor: int, *, most_fields: int = sys.maxsize) -> None:
        self._descriptor = descriptor
        self._start = 0
        self._window = b""
        self._left = most_fields
        #: Of the file, in bytes.
        self.size = os.fstat(descriptor).st_size

    def take(self, start: int, count: int) -> bytes:
        """At most `count` bytes from `start`; fewer at the end of the file.

        Raises:
            OSError: The file could not be read; so do all the others.
        """
        offset = start - self._start
        if offset < 0 or offset + count > len(self._window):
            self._start, offset = start, 0
            self._window = os.pread(self._descriptor, max(count, _WINDOW), start)
        return self._window[offset : offset + count]

    def varint(self, position: int) -> tuple[int, int]:
        """The number at `position`, and the position behind it; raises Malformed."""
        offset = position - self._start
        if 0 <= offset < len(self._window) and (first := self._window[offset]) < 0x80:
            return first, position + 1  # as almost all tags and most lengths: 2.5 times as fast
        value = 0
        for index, byte in enumerate(self.take(position, _LONGEST)):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise Malformed

    def text(self, start: int, end: int) -> str:
        """A string in `start:end`; what is not UTF-8 in it as file names have it (`surrogateescape`)."""
        return self.take(start, end - start).decode("utf-8", "surrogateescape")

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message in `start:end`, one behind the other; raises Malformed."""
        position = start
        while position < end:
            if self._left <= 0:
                raise Malformed
            self._left -= 1
            tag, value = self.varint(position)
            kind = tag & 7
            if kind == LEN:
                length, value = self.varint(value)
                stop = value + length
            elif kind == VARINT:
                _, stop = self.varint(value)
            elif kind == I64:
                stop = value + 8
            elif kind == I32:
                stop = value + 4
            else:
                raise Malformed
            if stop > end:
                raise Malformed
            yield Field(tag >> 3, kind, position, value, stop)
            position = stop

    def contents(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, begin and end of what each length-delimited field of the message in `start:end` holds.

        These are messages, texts, bytes and packed numbers; the other fields are stepped over.

        Raises:
            Malformed: As in `fields`.
        """
        for number, kind, _, value, stop in self.fields(start, end):
            if kind == LEN:
                yield number, value, stop
