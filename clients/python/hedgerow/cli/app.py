"""Puts the commands together and turns whatever they raise into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from cyclopts import App, CycloptsError

from hedgerow.cli import bench, exits, features, infer, models, output, publish, rollback, status, up
from hedgerow.cli.unreachable import explained
from hedgerow.errors import HedgerowError

EXAMPLES = """\
Examples:
  hedgerow up                                MLflow, control plane, two regions
  hedgerow publish model.onnx --name delay   register; servers pick it up
  hedgerow infer delay --zeros               ask it
  hedgerow models                            what is served
  hedgerow status --watch                    versions, routes, latencies, live
  hedgerow features get planes@1 N14228      what is known of an entity
  hedgerow rollback delay                    back to the version before
  hedgerow bench                             measure this machine\
"""


def build() -> App:
    """The command line, without running it."""
    app = App(
        name="hedgerow",
        help="Serves ONNX models over gRPC and keeps answering when things break.",
        help_format="plaintext",
        help_prologue=EXAMPLES,
        help_epilogue=exits.TEXT,
        version=lambda: metadata.version("hedgerow"),
        suppress_keyboard_interrupt=False,
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    commands: tuple[tuple[Callable[..., object], str], ...] = (
        (up.up, up.EXAMPLES),
        (infer.infer, infer.EXAMPLES),
        (models.models, models.EXAMPLES),
        (status.status, status.EXAMPLES),
        (publish.publish, publish.EXAMPLES),
        (rollback.rollback, rollback.EXAMPLES),
    )
    for command, examples in commands:
        app.command(command, help_prologue=examples)
    app.command(features.build())
    # It has commands of its own, and tells of them itself.
    app.command(App(name="bench", help=bench.bench.__doc__, help_flags=[], default_command=bench.bench))
    return app


def run(tokens: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    tokens = sys.argv[1:] if tokens is None else list(tokens)
    as_json = "--json" in tokens
    try:
        result = build()(tokens)
        sys.stdout.flush()
    except CycloptsError as error:
        output.print_error(f"{error} (hedgerow --help shows examples)", as_json=as_json)
        return exits.USAGE
    except HedgerowError as error:
        output.print_error(explained(error), as_json=as_json, kind=type(error).__name__, error=error)
        return exits.code(error)
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    return result if isinstance(result, int) else exits.OK
