"""Who uses and who writes the files of one digest, across processes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class DigestLock:
    """An flock(2) on a lock file: shared by users, exclusive for a writer.

    Never waits. It ends with `release` or with the process.

    Holds: the open lock file while the lock is held.
    """

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_shared(self) -> bool:
        """Takes the lock beside other users; False if somebody writes."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Takes the lock alone; False if anybody holds it."""
        return self._try(fcntl.LOCK_EX)

    def touch(self) -> None:
        """Notes the time of use, by which the least used are removed."""
        assert self._descriptor is not None
        os.utime(self._descriptor)

    def remove(self) -> None:
        """Removes the lock file; only while it is held exclusively."""
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Lets go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self, how: int) -> bool:
        self.release()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            # Whoever prunes removes the file while holding it: a lock on a file
            # that no longer has this name excludes nobody.
            mine, named = os.fstat(descriptor), self._path.stat()
            if (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino):
                self._descriptor, descriptor = descriptor, -1
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return False
