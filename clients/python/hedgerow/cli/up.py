"""`hedgerow up`: the whole system on this machine."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hedgerow.cli.options import Json
from hedgerow.errors import FailedPrecondition

# Of the extra `local`, what stands for its parts: registry, server, control plane.
_NEEDED = ("mlflow", "onnxruntime", "pydantic_settings", "fastapi")

EXAMPLES = """\
Examples:
  hedgerow up                  until Ctrl-C; everything it writes lies in var/
  hedgerow up --ports free     on ports that are free, beside another stack\
"""


def up(
    *,
    ports: Annotated[
        Literal["default", "free"], Parameter(help="The default ports, or whichever are free.")
    ] = "default",
    workers: Annotated[int, Parameter(help="Processes of each server.")] = 1,
    state_dir: Annotated[Path, Parameter(help="Where MLflow, logs and addresses are kept.")] = Path(
        "var/local"
    ),
    json: Json = False,
) -> int:
    """Start MLflow, the control plane and servers in two regions, until Ctrl-C."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise FailedPrecondition(f"`hedgerow up` needs {', '.join(missing)}: pip install 'hedgerow[local]'")
    # By name: the client must not depend on the packages of the extra `local`, not even for its types.
    stack = importlib.import_module("hedgerow_local.up")
    return int(stack.run(ports=ports, root=state_dir, workers=workers, as_json=json))
