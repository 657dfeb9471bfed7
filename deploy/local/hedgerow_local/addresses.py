"""Where the parts of a stack listen."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Literal

HOST = "127.0.0.1"
Ports = Literal["default", "free"]


class PortTaken(Exception):
    """Another process listens where a part of the stack should."""


@dataclass(frozen=True, slots=True)
class ServerPorts:
    """The three ports of one server; 0 lets it choose."""

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True, slots=True)
class StackPorts:
    """The ports of a whole stack; 0 where any will do."""

    server: ServerPorts
    backup: ServerPorts
    control_grpc: int
    control_http: int
    mlflow: int


DEFAULT = StackPorts(ServerPorts(8001, 8000, 8002), ServerPorts(9001, 9000, 9002), 8101, 8100, 5000)
FREE = StackPorts(ServerPorts(0, 0, 0), ServerPorts(0, 0, 0), 0, 0, 0)


def listen(port: int, purpose: str) -> socket.socket:
    """Binds and listens, so that nobody else gets the port.

    Raises:
        PortTaken: Somebody listens there already.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"Port {port}, meant for {purpose}, is taken by another process"
            f" (`ss -ltnp 'sport = :{port}'` names it). Stop it, or use free ports: hedgerow up --ports free"
        ) from error
    return listener


def check(ports: StackPorts) -> None:
    """Finds taken ports before anything is started.

    Raises:
        PortTaken: Naming the first of them, what it is for and what to do.
    """
    wanted = {
        "the server's gRPC": ports.server.grpc,
        "the server's HTTP": ports.server.http,
        "the server's metrics": ports.server.metrics,
        "the backup region's gRPC": ports.backup.grpc,
        "the backup region's HTTP": ports.backup.http,
        "the backup region's metrics": ports.backup.metrics,
        "the control plane's gRPC": ports.control_grpc,
        "the control plane's HTTP": ports.control_http,
        "MLflow": ports.mlflow,
    }
    for purpose, port in wanted.items():
        if port:
            listen(port, purpose).close()


def around_proxies() -> dict[str, str]:
    """Environment in which neither gRPC nor HTTP clients take a proxy to this machine itself."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = dict.fromkeys([*filter(None, listed.split(",")), HOST, "localhost"])
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(hosts))
