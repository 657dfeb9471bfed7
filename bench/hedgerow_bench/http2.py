"""The client's side of one gRPC connection over HTTP/2 (RFC 9113), just enough for load: bytes in, bytes out.

A gRPC library spends more on a call than the servers measured here. This one
sends the same few bytes for every request's headers and reads only the status of
replies' headers. It forbids the server a dynamic header table
(SETTINGS_HEADER_TABLE_SIZE 0), so that each block stands for itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import hpack

from hedgerow_bench.header_block import StatusReader

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    0,
    1,
    3,
    4,
    6,
    7,
    8,
    9,
)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_REFUSED_STREAM = 7
_LARGEST_WINDOW = 2**31 - 1
_REPLENISH = 2**30
_FRAME = struct.Struct(">BHBBI")

OK = "OK"
#: The connection ended, or the server turned the request away.
UNAVAILABLE = "UNAVAILABLE"
#: The server did not look at the request: it may be sent again.
UNSEEN = "UNSEEN"


class Connection:
    """State of one connection. Whoever holds it moves the bytes.

    Args:
        authority: HOST:PORT of the server.
        path: The method, `/package.Service/Method`.
        headers: Of every request, behind those of HTTP/2.
    """

    def __init__(self, authority: str, path: str, headers: Sequence[tuple[str, str]]) -> None:
        settings = ((_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW, _LARGEST_WINDOW))
        #: To be sent.
        self.out = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.out += _frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in settings))
        self.out += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 65_535))
        self._fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            *headers,
        ]
        self._encoder = hpack.Encoder()
        self._steady = b""
        self._reader = StatusReader()
        self._buffer = b""
        self._block = b""
        self._next = 1
        self._streams: dict[int, int] = {}
        self._closing: dict[int, str] = {}
        self._window = 65_535
        self._stream_window = 65_535
        self._frame_size = 16_384
        self._max_streams = 100
        self._owed = 0
        #: Whether the server's settings have arrived; nothing is asked before.
        self.ready = False
        #: Whether the server wants no more requests here.
        self.leaving = False

    @property
    def under_way(self) -> int:
        """Requests asked and not finished."""
        return len(self._streams)

    def has_room(self, size: int) -> bool:
        """Whether a request with a body of so many bytes may be sent now.

        Raises:
            ValueError: It never will: the server's window for one stream is smaller.
        """
        if size > self._stream_window:
            raise ValueError(f"a request of {size} bytes is larger than the server's window for one stream")
        return (
            self.ready
            and not self.leaving
            and len(self._streams) < self._max_streams
            and size <= self._window
        )

    def ask(self, number: int, body: bytes) -> None:
        """Appends a request to `out`; ask `has_room` before.

        Args:
            number: What `receive` calls it.
            body: A framed message.
        """
        stream = self._next
        self._next += 2
        self._streams[stream] = number
        self._window -= len(body)
        block = self._steady or self._encode()
        self.out += _FRAME.pack(0, len(block), _HEADERS, _END_HEADERS, stream)
        self.out += block
        size = len(body)
        if size <= self._frame_size:
            self.out += _FRAME.pack(size >> 16, size & 0xFFFF, _DATA, _END_STREAM, stream)
            self.out += body
            return
        for at in range(0, size, self._frame_size):
            last = at + self._frame_size >= size
            self.out += _frame(_DATA, _END_STREAM if last else 0, stream, body[at : at + self._frame_size])

    def _encode(self) -> bytes:
        """The request's headers: in full once, which fills the server's table; then the same few bytes."""
        first: bytes = self._encoder.encode(self._fields)
        self._steady = self._encoder.encode(self._fields)
        return first

    def receive(self, data: bytes) -> list[tuple[int, str]]:
        """Takes what the server sent.

        Returns:
            Number and status of each request that has ended: `OK`, a gRPC status
            number in words (`grpc-status 13`), `UNAVAILABLE` or `UNSEEN`.
        """
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        ended: list[tuple[int, str]] = []
        while end - at >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(buffer, at)
            begin = at + 9
            at = begin + (high << 16 | low)
            if at > end:
                at = begin - 9
                break
            if kind in (_HEADERS, _CONTINUATION):
                self._headers(buffer[begin:at], kind, flags, stream, ended)
            elif kind == _DATA:
                self._owed += at - begin
                if flags & _END_STREAM:
                    self._end(stream, "no trailers", ended)
            else:
                self._control(buffer[begin:at], kind, flags, stream, ended)
        self._buffer = buffer[at:]
        if self._owed > _REPLENISH:
            self.out += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._owed))
            self._owed = 0
        return ended

    def lost(self) -> list[tuple[int, str]]:
        """The connection has ended; so have its requests."""
        ended = [(number, UNAVAILABLE) for number in self._streams.values()]
        self._streams.clear()
        self.leaving = True
        return ended

    def _headers(
        self, payload: bytes, kind: int, flags: int, stream: int, ended: list[tuple[int, str]]
    ) -> None:
        if kind == _HEADERS:
            start, stop = 0, len(payload)
            if flags & _PADDED:
                start, stop = 1, stop - payload[0]
            if flags & _PRIORITY:
                start += 5
            payload = payload[start:stop]
            if flags & _END_STREAM:
                self._closing[stream] = ""
        if not flags & _END_HEADERS:
            self._block += payload
            return
        block, self._block = self._block + payload, b""
        status = _status(self._reader.read(block))
        if self._closing.pop(stream, None) is not None:
            self._end(stream, status or "no grpc-status", ended)

    def _end(self, stream: int, status: str, ended: list[tuple[int, str]]) -> None:
        number = self._streams.pop(stream, None)
        if number is not None:
            ended.append((number, status))

    def _control(
        self, payload: bytes, kind: int, flags: int, stream: int, ended: list[tuple[int, str]]
    ) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                self._set(key, value)
            self.ready = True
            self.out += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self.out += _frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += struct.unpack(">I", payload)[0]
        elif kind == _RST_STREAM:
            refused = struct.unpack(">I", payload)[0] == _REFUSED_STREAM
            self._end(stream, UNSEEN if refused else UNAVAILABLE, ended)
        elif kind == _GOAWAY:
            self.leaving = True
            last = struct.unpack_from(">I", payload)[0]
            for unseen in [each for each in self._streams if each > last]:
                self._end(unseen, UNSEEN, ended)

    def _set(self, key: int, value: int) -> None:
        if key == _TABLE_SIZE:
            # A smaller table could lose a field before it is sent again.
            self._encoder.header_table_size = 4096 if value >= 4096 else 0
        elif key == _MAX_STREAMS:
            self._max_streams = value
        elif key == _INITIAL_WINDOW:
            self._stream_window = value
        elif key == _MAX_FRAME:
            self._frame_size = min(value, 2**24 - 1)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def _status(fields: Mapping[bytes, bytes]) -> str | None:
    """A block's gRPC status; None for one without, before the body."""
    status = fields.get(b"grpc-status")
    if status == b"0":
        return OK
    http = fields.get(b":status", b"200")
    if http != b"200":
        return f"HTTP {http.decode('ascii', 'replace')}"
    return None if status is None else f"grpc-status {status.decode('ascii', 'replace')}"
