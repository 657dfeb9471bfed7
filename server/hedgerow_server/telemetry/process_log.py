"""The processes' own messages: few, on stderr, one line each where nothing broke."""

from __future__ import annotations

import logging
import sys


def configure(level: str, process: str) -> None:
    """Sends log messages of `level` and above to stderr, each with the name of the process."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s [{process}] %(name)s: %(message)s",
        force=True,
    )
