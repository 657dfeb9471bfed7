"""A log that cannot fill the disk."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

#: Bytes after which a file is set aside as NAME.1, replacing the one before.
LIMIT = 8 << 20


class LogFile:
    """Appends to a file, and keeps at most twice `limit` bytes in it and the one before.

    Each start begins a new file and keeps the last run's as NAME.1.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path = path
        self._limit = limit
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._begin()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, line: bytes) -> None:
        """Appends; a reader sees it at once."""
        if self._size + len(line) > self._limit:
            self._file.close()
            self._file = self._begin()
            self._size = 0
        self._file.write(line)
        self._size += len(line)

    def _begin(self) -> BinaryIO:
        if self._path.exists():
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        return self._path.open("wb", buffering=0)
