"""What a person is told when nobody answers: gRPC's own text names every address and layer it tried."""

from __future__ import annotations

import re

from hedgerow.errors import HedgerowError, RegistryError, StoreError, Unavailable

_CONNECT = re.compile(
    r"(?P<target>.+?): failed to connect to all addresses; last error: (?P<last>.*)", re.DOTALL
)
_RESOLVE = re.compile(r"(?P<target>.+?): errors resolving ", re.DOTALL)


def explained(error: HedgerowError) -> str:
    """The error's text, with what to do where nobody answered, and who else was asked."""
    notes: list[str] = getattr(error, "__notes__", [])
    return "\n".join((_explained(error), *map(_shorter, notes)))


def _shorter(note: str) -> str:
    who, connects, last = note.partition(": failed to connect to all addresses; last error: ")
    return f"{who}: {_reason(last)}" if connects else note


def _explained(error: HedgerowError) -> str:
    if isinstance(error, StoreError):
        return f"{error.details} (--store names another; `hedgerow up` starts one)"
    if not isinstance(error, Unavailable) or isinstance(error, RegistryError):
        return error.details
    if unknown := _RESOLVE.match(error.details):
        return f"{unknown['target']}: no such host{_hint(unknown['target'])}"
    if refused := _CONNECT.match(error.details):
        return f"{refused['target']}: {_reason(refused['last'])}{_hint(refused['target'])}"
    return f"{error.details}{_hint(error.details)}"


def _reason(last: str) -> str:
    if "http1.x" in last:
        return "HTTP/1 answers there, not gRPC; is it the port of the health checks or metrics?"
    return last.rpartition("Failed to connect to remote host: ")[2]


def _hint(target: str) -> str:
    if target.startswith("control plane"):
        return (
            " (is it running? `hedgerow up` starts one, --control names another;"
            " `hedgerow models` asks a server that has none)"
        )
    return " (is it running? `hedgerow-server` or `hedgerow up` starts one, --server names another)"
