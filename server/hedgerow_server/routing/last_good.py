"""The last snapshot that went well, on disk: what a server boots from when nobody tells it anything."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from google.protobuf.message import DecodeError
from hedgerow_protos.hedgerow_control_pb2 import Snapshot

from hedgerow_server.engine.incoming import sync_directory

log = logging.getLogger(__name__)

#: First line of the file; the SHA-256 of the snapshot follows, then the snapshot.
MAGIC = b"hedgerow last good snapshot 1\n"
_HASH_BYTES = hashlib.sha256().digest_size


class LastGood:
    """Saves and loads one snapshot. Both block: call them in a thread.

    Args:
        directory: the server's state directory; made if it is not there. Several
            workers may share it: the last one to save wins, and each file is whole.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "last-good.snapshot"

    def __repr__(self) -> str:
        return f"<LastGood {self._path}>"

    def save(self, snapshot: Snapshot) -> None:
        """Replaces the file in one step, so that a crash leaves the old or the new one.

        Raises:
            OSError: it could not be written; the old one is still there.
        """
        data = snapshot.SerializeToString()
        directory = self._path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = directory / f".{self._path.name}.{os.getpid()}"
        try:
            with temporary.open("wb") as target:
                target.write(MAGIC + hashlib.sha256(data).digest() + data)
                target.flush()
                os.fsync(target.fileno())
            temporary.replace(self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_directory(directory)

    def load(self) -> Snapshot | None:
        """Returns the snapshot, or None if there is none that can be trusted.

        A file that is damaged or unreadable is a warning in the log, never an
        error: the server starts empty and waits for the control plane.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the last good snapshot cannot be read, starting without it: %s", error)
            return None
        if not content.startswith(MAGIC):
            log.warning("%s is not a snapshot of this release, starting without it", self._path)
            return None
        digest = content[len(MAGIC) : len(MAGIC) + _HASH_BYTES]
        data = content[len(MAGIC) + _HASH_BYTES :]
        if hashlib.sha256(data).digest() != digest:
            log.warning("%s is damaged (checksum differs), starting without it", self._path)
            return None
        try:
            return Snapshot.FromString(data)
        except DecodeError as error:
            log.warning("%s cannot be decoded (%s), starting without it", self._path, error)
            return None
