"""The gRPC status in an encoded block of HTTP/2 headers (HPACK, RFC 7541), without decoding the rest.

A server's trailers may hold something new each time (an id), which a decoder
would decode each time, at more cost than all else that a load generator does.
Here fields are skipped by their lengths; a name or value is decoded the first
time that its bytes are seen. Only for connections without a dynamic table
(SETTINGS_HEADER_TABLE_SIZE 0), where equal bytes mean the same.
"""

from __future__ import annotations

from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

#: What a reply's block may say of its fate.
_READ = (b"grpc-status", b":status")
_STATIC: tuple[tuple[bytes, bytes], ...] = ((b"", b""), *HeaderTable.STATIC_TABLE)
#: Encoded strings that are remembered.
_KNOWN = 1024


class StatusReader:
    """Holds the encoded names and values that it has decoded."""

    def __init__(self) -> None:
        self._decoded: dict[bytes, bytes] = {}

    def read(self, block: bytes) -> dict[bytes, bytes]:
        """`grpc-status` and `:status` of a block, as far as they are in it.

        Raises:
            ValueError: It is no header block, or refers to a dynamic table.
        """
        found: dict[bytes, bytes] = {}
        view = memoryview(block)
        at, end = 0, len(block)
        while at < end:
            first = block[at]
            if first & 0x80:  # a name and a value of the static table
                index, used = decode_integer(view[at:], 7)
                name, value = self._static(index)
                at += used
                if name in _READ:
                    found[name] = value
                continue
            if first & 0xE0 == 0x20:  # the size of a table that is not there
                at += decode_integer(view[at:], 5)[1]
                continue
            bits = 6 if first & 0x40 else 4
            index, used = (0, 1) if not first & ((1 << bits) - 1) else decode_integer(view[at:], bits)
            at += used
            if index:
                name = self._static(index)[0]
            else:
                begin, at = at, _end(block, view, at)
                name = self._text(block[begin:at])
            begin, at = at, _end(block, view, at)
            if name in _READ:
                found[name] = self._text(block[begin:at])
        if at != end:
            raise ValueError("a header block ends in the middle of a field")
        return found

    def _static(self, index: int) -> tuple[bytes, bytes]:
        if not 0 < index < len(_STATIC):
            raise ValueError(f"a header block refers to entry {index} of a table that it may not have")
        return _STATIC[index]

    def _text(self, encoded: bytes) -> bytes:
        text = self._decoded.get(encoded)
        if text is None:
            _, used = decode_integer(memoryview(encoded), 7)
            text = bytes(decode_huffman(encoded[used:])) if encoded[0] & 0x80 else encoded[used:]
            if len(self._decoded) >= _KNOWN:
                self._decoded.clear()
            self._decoded[encoded] = text
        return text


def _end(block: bytes, view: memoryview, at: int) -> int:
    """Where a string ends whose length stands at `at`."""
    if at >= len(block):
        raise ValueError("a header block ends in the middle of a field")
    length = block[at] & 0x7F
    if length < 0x7F:
        return at + 1 + length
    length, used = decode_integer(view[at:], 7)
    return at + used + length
