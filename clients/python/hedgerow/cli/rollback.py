"""`hedgerow rollback`: the champion goes back, and the command waits until every server has followed."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter

from hedgerow.cli import exits, output
from hedgerow.cli.endpoints import resolve
from hedgerow.cli.options import Control, Json, Timeout
from hedgerow.operator import Operator

EXAMPLES = """\
Examples:
  hedgerow rollback delay             to the version that was champion before
  hedgerow rollback delay --to 3      to version 3\
"""


def rollback(
    model: Annotated[str, Parameter(help="The registered model.")],
    /,
    *,
    to: Annotated[str, Parameter(help="A version number; empty: the champion before this one.")] = "",
    control: Control = None,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> int:
    """Move a model's champion back and wait until no server answers from the old one."""
    began = time.monotonic()
    console = output.progress_console()
    with (
        Operator(resolve("control", control)) as operator,
        console.status(f"Rolling {model} back; waiting for every server to follow"),
    ):
        answer = operator.rollback(model, to, timeout=timeout)
    if json:
        output.print_json(
            {"model": model, **output.plain(answer), "command_seconds": time.monotonic() - began}
        )
    else:
        out = output.console()
        out.print(f"{model}: version {answer.from_version} -> {answer.to_version}", markup=False)
        out.print(
            f"last reply of version {answer.from_version} after {answer.seconds * 1000:.1f} ms;"
            f" snapshot {answer.snapshot_version}; command took {time.monotonic() - began:.2f} s",
            markup=False,
        )
        if not answer.complete:
            out.print(f"not every server has followed yet: {answer.detail}", markup=False)
    return exits.OK if answer.complete else exits.FAILED
