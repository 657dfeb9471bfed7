"""Where the server, the control plane and the stores are, when the command line does not say.

In this order: the flag, the environment, the local stack running in this
directory, the default ports of this machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from hedgerow.errors import InvalidRequest

DEFAULTS = {
    "server": "127.0.0.1:8001",
    "control": "127.0.0.1:8101",
    "mlflow": "http://127.0.0.1:5000",
    "store": "postgresql://127.0.0.1:5432/hedgerow",
}
#: Of these, gRPC addresses have a form of their own.
_GRPC = ("server", "control")
ENVIRONMENT = {
    "server": ("HEDGEROW_SERVER",),
    "control": ("HEDGEROW_CONTROL",),
    "mlflow": ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"),
    "store": ("HEDGEROW_FEATURES__STORE",),
    "cache": ("HEDGEROW_FEATURES__CACHE",),
}
#: Backup regions of the server that the environment names; commas between.
BACKUPS = "HEDGEROW_BACKUPS"
#: Written by `hedgerow up`, with the real ports and its process id.
LOCAL_STACK = Path("var/local/endpoints.json")


def resolve(which: str, given: str | None, *, local_stack: Path = LOCAL_STACK) -> str:
    """The address of `server`, `control`, `mlflow` or `store`.

    Raises:
        InvalidRequest: gRPC could not make sense of it, and would say so in many words.
    """
    return known(which, given, local_stack=local_stack) or DEFAULTS[which]


def known(which: str, given: str | None, *, local_stack: Path = LOCAL_STACK) -> str | None:
    """The same for what need not be there, such as the `cache`: None if nothing names it."""
    if given:
        return _checked(which, given, f"--{which}")
    for variable in ENVIRONMENT[which]:
        if value := os.environ.get(variable):
            return _checked(which, value, variable)
    return _running(local_stack).get(which)


def backups(server: str | None, given: Sequence[str] | None) -> tuple[str, ...]:
    """The addresses of backup regions.

    Args:
        server: As given by flag; whoever names a server does not mean the environment's backups.
        given: By flag.

    Raises:
        InvalidRequest: As for `resolve`.
    """
    if given or server:
        return tuple(_checked("server", one, "--backup") for one in given or ())
    named = os.environ.get(BACKUPS, "").split(",")
    return tuple(_checked("server", one.strip(), BACKUPS) for one in named if one.strip())


def _checked(which: str, address: str, where: str) -> str:
    if which not in _GRPC:
        return address
    if address.startswith(("http://", "https://")):
        raise InvalidRequest(f"{where} {address}: write {address.partition('://')[2]}, without http://")
    if ":" not in address:
        raise InvalidRequest(
            f"{where} {address}: the port is missing; write {address}:{DEFAULTS[which][-4:]}"
        )
    return address


def _running(local_stack: Path) -> dict[str, str]:
    """The local stack's addresses, if its process is alive; a file left behind by a crash is ignored."""
    try:
        written = json.loads(local_stack.read_text(encoding="utf-8"))
        os.kill(int(written["pid"]), 0)
    except PermissionError:
        pass  # alive, somebody else's
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {key: value for key, value in written.items() if isinstance(value, str)}
