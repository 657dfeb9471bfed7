"""A private directory for the sockets between a server's own processes.

The path of a Unix socket has at most 107 bytes on Linux (unix(7)) and 103 on
macOS. A temporary directory deep in a CI job's workspace is longer than that,
so /tmp stands in for it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: `sun_path` without its final NUL, where it is shortest.
SOCKET_PATH_BYTES = 103
#: The longest name that a worker gives a socket: its process id, at most seven digits, and ".sock".
NAME_BYTES = len("/4194304.sock")
#: Used when the temporary directory's path is too long.
SHORT = Path("/tmp")  # noqa: S108  mkdtemp makes a directory of our own in it


class NoRuntimeDirectory(Exception):
    """There is no directory for sockets; the message says what to do."""


@contextmanager
def runtime_directory(short: Path = SHORT) -> Iterator[str]:
    """A directory that only this user may enter, removed at the end with all that is in it.

    Args:
        short: stands in for a temporary directory (`TMPDIR`) whose path is too long.

    Raises:
        NoRuntimeDirectory: none can be made, or none with a path short enough.
    """
    try:
        held = _made_in(None) or _made_in(short)
    except OSError as error:
        raise NoRuntimeDirectory(
            f"no directory for sockets can be made ({error}); set TMPDIR to one that this user may write to"
        ) from None
    if held is None:
        raise NoRuntimeDirectory(
            f"the temporary directories {tempfile.gettempdir()} and {short} are too long for Unix sockets, "
            f"whose path has at most {SOCKET_PATH_BYTES} bytes; set TMPDIR to a shorter one"
        )
    with held as path:
        yield path


def _made_in(parent: Path | None) -> tempfile.TemporaryDirectory[str] | None:
    """A new directory in `parent`, or in the temporary directory; None if its path is too long."""
    made = tempfile.TemporaryDirectory(prefix="hedgerow-", dir=parent)
    if len(os.fsencode(made.name)) + NAME_BYTES <= SOCKET_PATH_BYTES:
        return made
    made.cleanup()
    return None
