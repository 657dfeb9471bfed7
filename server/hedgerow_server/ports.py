"""Ports that the workers share, reserved before any worker starts.

SO_REUSEPORT lets any number of processes of one user listen on one port, so a
second server would start silently and take half of the connections. The
supervisor therefore binds each port alone first, and shares it only then: the
bind fails if anything else has the port, and there is no moment between check
and reservation. Its socket never listens, so the kernel sends it no
connection (tests/integration/test_workers.py), and a port that was chosen by
the kernel stays ours while workers come and go.
"""

from __future__ import annotations

import errno
import socket
from typing import Self


class PortError(Exception):
    """A port cannot be had; the message says what to do."""


class Reservation:
    """One TCP port held for the workers."""

    def __init__(self, host: str, port: int, *, flag: str) -> None:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except socket.gaierror as error:
            raise PortError(f"server.host {host!r} is no address of this machine: {error.strerror}") from None
        self._socket = socket.socket(family, kind, protocol)
        # Connections of a server that ended a moment ago linger in TIME_WAIT; they do not count.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(address)
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EADDRINUSE:
                raise PortError(
                    f"port {port} on {host} is in use; name another with {flag}, or 0 for a free one"
                ) from None
            raise PortError(f"cannot listen on {host} port {port} ({flag}): {error.strerror}") from None
        # From here on workers may bind it too, and still no stranger: that
        # takes SO_REUSEPORT and our user, or SO_REUSEADDR on both sides.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        self.host = host
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def join(host: str, port: int) -> str:
    """HOST:PORT as people and gRPC write it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on a port that the supervisor reserved."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
