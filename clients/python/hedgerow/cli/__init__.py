"""The `hedgerow` command; one file a command, loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see `hedgerow.cli.exits`)."""
    from hedgerow.cli.app import run  # noqa: PLC0415 - `import hedgerow.cli` alone loads no cyclopts or rich

    return run(tokens)
