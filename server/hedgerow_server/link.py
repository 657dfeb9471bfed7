"""What a worker and its supervisor say to each other, over an inherited socket pair.

Each message is four bytes of length, big-endian, then JSON. The end of the
stream means that the other process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Generic, TypeVar

import msgspec

#: A dump of metrics is the largest message; 64 models fill about 200 KB.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The supervisor's first message."""

    worker: int
    #: `Settings` as JSON with secrets in clear, and with the ports that were reserved.
    settings: str
    #: The server's own directory, for sockets; the supervisor removes it at the end.
    directory: str
    #: A gRPC port that only this worker listens on, besides the shared one.
    own_port: int | None = None


class Collect(msgspec.Struct, frozen=True, tag="collect"):
    """Asks for `Collected`; also how the supervisor sees that a worker still turns its loop."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker listens and can answer."""

    grpc_port: int
    http_port: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker cannot serve; it ends after this."""

    reason: str


class Collected(msgspec.Struct, frozen=True, tag="collected"):
    """The worker's metrics as `telemetry.metrics.dump` wrote them."""

    dump: msgspec.Raw


FromSupervisor = Start | Collect
FromWorker = Ready | Failed | Collected

M = TypeVar("M")


class Channel(Generic[M]):
    """One end of the socket pair; receives messages of type `M`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.json.Decoder[M]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder

    async def receive(self) -> M | None:
        """The next message, or None when the other process closed its end or died."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            if size > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {size} bytes, {MAX_MESSAGE_BYTES} are allowed")
            return self._decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def send(self, message: FromSupervisor | FromWorker) -> None:
        """Queues a message; one to a process that is gone is dropped."""
        body = msgspec.json.encode(message)
        if not self._writer.is_closing():
            self._writer.write(len(body).to_bytes(4, "big") + body)

    async def close(self) -> None:
        """Sends what is queued and closes this end."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):  # the other process was gone already
            await self._writer.wait_closed()


async def worker_end(end: socket.socket) -> Channel[FromSupervisor]:
    """The worker's end of the pair."""
    reader, writer = await asyncio.open_unix_connection(sock=end)
    return Channel(reader, writer, msgspec.json.Decoder(FromSupervisor))


async def supervisor_end(end: socket.socket) -> Channel[FromWorker]:
    """The supervisor's end of the pair."""
    reader, writer = await asyncio.open_unix_connection(sock=end)
    return Channel(reader, writer, msgspec.json.Decoder(FromWorker))
