"""Where PostgreSQL and Valkey listen: Unix sockets in a directory that only this user may enter.

No port to clash with one that runs here already, and no password to keep: who
may open the directory may connect.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from urllib.parse import quote

#: Bytes of a socket's path that Linux takes (sun_path without its closing zero).
LONGEST = 107
#: PostgreSQL names its socket by a port, whether or not it listens there.
POSTGRES = ".s.PGSQL.5432"
VALKEY = "valkey.sock"


def make(root: Path) -> Path:
    """Makes the directory for a stack's sockets.

    Args:
        root: The stack's own directory.

    Returns:
        `root/run`, or, where that is too long for a socket, one in the temporary
        directory whose name follows from `root`.

    Raises:
        PermissionError: Somebody else's directory stands in the temporary one's place.
    """
    name = f"hedgerow-{os.geteuid()}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"
    candidates = (root / "run", Path(tempfile.gettempdir()) / name, Path("/tmp") / name)  # noqa: S108 - checked below
    directory = next(path for path in candidates if len(os.fsencode(path / POSTGRES)) <= LONGEST)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{directory} belongs to somebody else; remove it or set TMPDIR.")
    directory.chmod(0o700)
    return directory


def store_dsn(directory: Path, database: str = "hedgerow") -> str:
    """The DSN of the PostgreSQL that listens in a directory, as asyncpg and libpq read it."""
    return f"postgresql://hedgerow@/{database}?host={quote(str(directory))}"


def cache_url(directory: Path) -> str:
    """The URL of the Valkey that listens in a directory, as redis-py reads it."""
    return f"unix://{quote(str(directory / VALKEY))}"
