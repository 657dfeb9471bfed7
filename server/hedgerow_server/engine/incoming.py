"""Writes a file that comes in chunks, and believes nothing until its hash fits."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TypeVar

from hedgerow_protos.hedgerow_control_pb2 import File
from hedgerow_protos.manifest import ManifestError

T = TypeVar("T")


class IncomingFile:
    """One file being written. Every method but `close` blocks: call it in a thread.

    Args:
        directory: where it goes; sub-directories of its path are made.
        file: its path, size in bytes and SHA-256.
    """

    def __init__(self, directory: Path, file: File) -> None:
        self._path = directory / file.path
        self._file = file
        self._target: FileIO | None = None
        self._sha256 = hashlib.sha256()
        self.size = 0

    def open(self) -> None:
        """Makes the file.

        Raises:
            OSError: it could not be made, or something of that name is there.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_EXCL: two entries of the manifest never meet in one file, and no link is followed.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._target = FileIO(os.open(self._path, flags, 0o600), "wb")

    def write(self, chunk: bytes) -> None:
        """Appends a chunk.

        Raises:
            ManifestError: the file grew beyond its size.
            OSError: it could not be written.
        """
        if self.size + len(chunk) > self._file.size:
            raise ManifestError(f"{self._file.path!r} is longer than its {self._file.size} bytes")
        assert self._target is not None, "written before it was opened"
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._target.write(rest) :]
        self._sha256.update(chunk)
        self.size += len(chunk)

    def finish(self) -> None:
        """Checks the whole and flushes it to the disk.

        Raises:
            ManifestError: it ended early, or is not the file that was announced.
            OSError: it could not be flushed.
        """
        file = self._file
        if self.size != file.size:
            raise ManifestError(f"{file.path!r} ended after {self.size} of {file.size} bytes")
        if self._sha256.hexdigest() != file.sha256:
            raise ManifestError(
                f"{file.path!r} arrived with sha256 {self._sha256.hexdigest()}, expected {file.sha256}"
            )
        assert self._target is not None, "finished before it was opened"
        os.fsync(self._target.fileno())

    def close(self) -> None:
        """Closes the file, finished or not."""
        if self._target is not None:
            self._target.close()


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def in_thread(work: Callable[[], T]) -> T:
    """Runs blocking work in a thread, and waits for its end also when cancelled.

    A thread cannot be cancelled. If the caller went on at once, it would clean
    up under the hands of work that still writes.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            # Further cancellations change nothing: this one is on its way.
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # looked at, so that it is not reported as lost
        raise
