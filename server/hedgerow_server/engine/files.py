"""Model files on this machine's disk, by digest, shared by every process that uses the directory.

    <directory>/<hex>/          the files of one version, whole and verified
    <directory>/<hex>.lock      held shared by whoever uses them, exclusive by whoever writes them
    <directory>/.incoming-<hex> being written; becomes <hex> by one rename

Locks are flock(2): they end with the process, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import shutil
from collections.abc import AsyncGenerator, Callable, Collection
from enum import Enum
from functools import partial
from pathlib import Path

from hedgerow_protos import manifest
from hedgerow_protos.hedgerow_control_pb2 import File, ModelVersion
from hedgerow_protos.manifest import ManifestError

from hedgerow_server.engine.digest_lock import DigestLock
from hedgerow_server.engine.incoming import IncomingFile, in_thread, sync_directory

#: Gives the bytes of one file: (digest of the version, path of the file) -> chunks.
Fetch = Callable[[str, str], AsyncGenerator[bytes, None]]


#: How often files are found damaged, while another process uses them, before that is an error.
MAX_DAMAGED = 10


class _Found(Enum):
    """What is there under a digest, and which lock is held on it."""

    WHOLE = "shared lock: verified, ready for use"
    NOTHING = "exclusive lock: nothing usable, to be written"
    DAMAGED = "no lock: another process uses files that are not right"
    BUSY = "no lock: another process is about to change it"


class ArtifactError(Exception):
    """The files could not be had now; another try may go well."""


class ArtifactRefused(ArtifactError):
    """The version's list of files is not acceptable; it will not be later either."""


class ArtifactStore:
    """The versions' files below one directory.

    Holds: a shared lock on every digest that this process uses, and which
    digests it has verified since it started.

    Args:
        directory: made with mode 0700 if it is not there.
        spare: how many unused digests stay on the disk, the latest used first.
        stall_seconds: longest wait for the next chunk of a file.
        lock_seconds: between two looks at a lock that another process holds.
    """

    def __init__(
        self,
        directory: Path,
        *,
        spare: int = 4,
        stall_seconds: float = 30.0,
        lock_seconds: float = 0.05,
    ) -> None:
        self._directory = directory
        self._spare = spare
        self._stall_seconds = stall_seconds
        self._lock_seconds = lock_seconds
        self._used: dict[str, DigestLock] = {}
        self._verified: set[str] = set()
        # One task at a time works on a digest; entries go with their last waiter.
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}

    def __repr__(self) -> str:
        return f"<ArtifactStore {self._directory}, {len(self._used)} digests in use>"

    async def ensure(self, version: ModelVersion, fetch: Fetch) -> Path:
        """Returns the directory that holds a version's files, fetching them if they are not there.

        The files are verified before their first use in this process, and
        belong to it until `keep` lets them go. May be cancelled at any time.

        Args:
            version: its `digest` and `files` say what must be there.
            fetch: where files come from that are missing.

        Raises:
            ArtifactRefused: the list of files is malformed, or not what the digest names.
            ArtifactError: a file could not be fetched or stored, or its content was wrong.
        """
        name = _check(version)
        async with self._turn(name):
            if name not in self._used:
                self._used[name] = await self._take(name, version, fetch)
        return self._directory / name

    async def keep(self, digests: Collection[str]) -> None:
        """Lets every digest go but these, and removes the oldest that nobody uses.

        Args:
            digests: with their "sha256:".
        """
        wanted = {manifest.check_digest(digest) for digest in digests}
        for name in self._used.keys() - wanted:
            self._used.pop(name).release()
        used = frozenset(self._used)
        self._verified.difference_update(await in_thread(lambda: self._prune(used)))

    def close(self) -> None:
        """Lets every digest go."""
        for lock in self._used.values():
            lock.release()
        self._used.clear()

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncGenerator[None, None]:
        lock, waiting = self._turns.get(name, (asyncio.Lock(), 0))
        self._turns[name] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._turns.pop(name)
            if waiting > 1:
                self._turns[name] = (lock, waiting - 1)

    async def _take(self, name: str, version: ModelVersion, fetch: Fetch) -> DigestLock:
        """Returns a shared lock on files that are there and verified."""
        damaged = 0
        while True:
            lock = DigestLock(self._directory / f"{name}.lock")
            found = _Found.BUSY
            try:
                found = await in_thread(partial(self._look, lock, name, version))
                if found is _Found.WHOLE:
                    self._verified.add(name)
                    return lock
                if found is _Found.NOTHING:
                    await self._fetch(name, version, fetch)
                    self._verified.add(name)
                    continue  # a lock cannot be weakened in one step: take it anew, and look again
            except OSError as error:
                raise ArtifactError(_describe(error, self._directory, version)) from error
            finally:
                if found is not _Found.WHOLE:
                    lock.release()
            if found is _Found.DAMAGED:
                damaged += 1
                if damaged == MAX_DAMAGED:
                    raise ArtifactError(
                        f"the files in {self._directory / name} are damaged, and another process uses them"
                    )
            # flock has no asynchronous form, and a thread that waits in it cannot be cancelled.
            pause = self._lock_seconds * (10 if damaged else 1)
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311  spread, not secrecy

    def _look(self, lock: DigestLock, name: str, version: ModelVersion) -> _Found:
        """Finds out what is there; holds the lock that fits it. Blocks."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / name
        damaged = False
        if path.is_dir() and lock.try_shared():
            if path.is_dir() and (name in self._verified or _matches(path, version)):
                lock.touch()
                return _Found.WHOLE
            damaged = path.is_dir()
        if lock.try_exclusive():
            # Another process may have made or mended it before the lock was free.
            if path.is_dir() and not damaged:
                return _Found.BUSY
            return _Found.NOTHING
        return _Found.DAMAGED if damaged else _Found.BUSY

    async def _fetch(self, name: str, version: ModelVersion, fetch: Fetch) -> None:
        """Writes the files aside and moves them into place; the caller holds the exclusive lock."""
        incoming = self._directory / f".incoming-{name}"
        try:
            await in_thread(lambda: self._make_room(name, incoming, sum(file.size for file in version.files)))
            for file in version.files:
                await self._fetch_file(incoming, version.digest, file, fetch)
            await in_thread(lambda: _put_in_place(incoming, self._directory / name))
        finally:
            # After success there is nothing left under this name.
            await in_thread(lambda: shutil.rmtree(incoming, ignore_errors=True))

    async def _fetch_file(self, incoming: Path, digest: str, file: File, fetch: Fetch) -> None:
        target = IncomingFile(incoming, file)
        try:
            await in_thread(target.open)
            async with contextlib.aclosing(fetch(digest, file.path)) as chunks:
                while (chunk := await self._next(chunks, target, file)) is not None:
                    await in_thread(partial(target.write, chunk))
            await in_thread(target.finish)
        except ManifestError as error:
            raise ArtifactError(str(error)) from error
        finally:
            target.close()

    async def _next(
        self, chunks: AsyncGenerator[bytes, None], target: IncomingFile, file: File
    ) -> bytes | None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await anext(chunks, None)
        except TimeoutError:
            raise ArtifactError(
                f"{file.path!r} stalled after {target.size} of {file.size} bytes: "
                f"nothing came for {self._stall_seconds:g} s"
            ) from None

    def _make_room(self, name: str, incoming: Path, need: int) -> None:
        # What a process left that died while writing: under the exclusive lock nobody writes now.
        _remove(incoming)
        _remove(self._directory / name)
        free = shutil.disk_usage(self._directory).free
        if need > free:
            raise OSError(errno.ENOSPC, f"{free} bytes are free")
        incoming.mkdir(mode=0o700)

    def _prune(self, used: frozenset[str]) -> list[str]:
        """Removes the oldest digests beyond the spare ones; blocks. Returns which."""
        unused: list[tuple[float, str]] = []
        for path in self._directory.glob("*.lock"):
            if path.stem not in used:
                with contextlib.suppress(FileNotFoundError):
                    unused.append((path.stat().st_mtime, path.stem))
        unused.sort(reverse=True)
        removed: list[str] = []
        for _, name in unused[self._spare :]:
            lock = DigestLock(self._directory / f"{name}.lock")
            try:
                if lock.try_exclusive():  # else another process uses it
                    _remove(self._directory / f".incoming-{name}")
                    _remove(self._directory / name)
                    lock.remove()
                    removed.append(name)
            finally:
                lock.release()
        return removed


def _check(version: ModelVersion) -> str:
    """Returns the directory's name for a version whose list of files is sound."""
    try:
        name = manifest.check_digest(version.digest)
        named = manifest.digest(version.files)
    except ManifestError as error:
        raise ArtifactRefused(str(error)) from error
    if named != version.digest:
        raise ArtifactRefused(f"the digest is {version.digest}, but the listed files make {named}")
    if len(version.files) > manifest.MAX_FILES:
        raise ArtifactRefused(f"{len(version.files)} files; a version may have {manifest.MAX_FILES}")
    need = sum(file.size for file in version.files)
    if need > manifest.MAX_BYTES:
        raise ArtifactRefused(f"{need} bytes of files; a version may have {manifest.MAX_BYTES}")
    if version.path not in {file.path for file in version.files}:
        raise ArtifactRefused(f"the model {version.path!r} is not among its files")
    return name


def _matches(path: Path, version: ModelVersion) -> bool:
    """Whether exactly the version's files are there; reads them all."""
    try:
        return manifest.digest(manifest.scan(path)) == version.digest
    except ManifestError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(incoming: Path, final: Path) -> None:
    for directory, _, _ in os.walk(incoming):
        sync_directory(Path(directory))
    incoming.rename(final)
    sync_directory(final.parent)


def _describe(error: OSError, directory: Path, version: ModelVersion) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        need = sum(file.size for file in version.files)
        return f"no room in {directory} for {need} bytes of model files ({error.strerror}); make room there"
    return f"cannot store model files in {directory}: {error}"
