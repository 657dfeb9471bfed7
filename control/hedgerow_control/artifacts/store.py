"""Verified model files on disk, one folder a digest. Methods block: call them in a thread."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator
from io import FileIO
from pathlib import Path

from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import manifest

_INCOMING = ".incoming-"


class ArtifactStore:
    """A private directory (0700). What is in it under a digest has been hashed to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        # Leftovers of a process that was killed while fetching.
        for leftover in root.glob(f"{_INCOMING}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Path]:
        """A new directory for files that are not verified yet; removed at the end unless `keep` took it."""
        directory = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def keep(self, incoming: Path, digest: str) -> Path:
        """Moves an incoming directory, in one step, to where its digest says."""
        final = self.directory(digest)
        try:
            incoming.rename(final)
        except OSError:
            # There already, perhaps damaged: what has just been hashed replaces it. Who has
            # an old file open reads on.
            with self.incoming() as old:
                final.rename(old)
                incoming.rename(final)
        return final

    def directory(self, digest: str) -> Path:
        """Where the files of a digest are, if they are; raises `ManifestError` if it is no digest."""
        return self.root / manifest.check_digest(digest)

    def holds(self, version: pb.ModelVersion) -> bool:
        """Whether the files are there, by their sizes. Servers check every byte they fetch."""
        directory = self.directory(version.digest)
        try:
            return all((directory / file.path).lstat().st_size == file.size for file in version.files)
        except OSError:
            return False

    def open(self, digest: str, path: str) -> FileIO:
        """Opens a file for reading; raises `OSError` if there is none, or `ManifestError`."""
        manifest.check_path(path)
        # An opener, because FileIO closes only what it has opened itself when it refuses a directory.
        return FileIO(self.directory(digest) / path, opener=_open)

    def set_aside(self, keep: Collection[str]) -> dict[str, Path]:
        """Takes every digest that is not in `keep` out of the store, in no time.

        Returns:
            Digest to where its files are now: for `remove`, or for the next start.
        """
        wanted = {manifest.check_digest(digest) for digest in keep}
        aside = {}
        for entry in list(self.root.iterdir()):
            if entry.name.startswith(_INCOMING) or entry.name in wanted:
                continue
            aside[f"sha256:{entry.name}"] = entry.rename(self.root / f"{_INCOMING}{uuid.uuid4().hex}")
        return aside

    def remove(self, aside: Path) -> None:
        """Removes what was set aside; of gigabytes that takes time."""
        shutil.rmtree(aside, ignore_errors=True)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)
