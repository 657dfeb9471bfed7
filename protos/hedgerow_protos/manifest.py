"""The files of a model version, and the one digest that names them all.

Both sides of the control protocol compute it: the control plane when it has
fetched a version, the server when it has the files on its own disk.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from hedgerow_protos.hedgerow_control_pb2 import File

#: ONNX writes one file a tensor at worst; nobody has more than a few thousand.
MAX_FILES = 4096
MAX_BYTES = 64 * 2**30
MAX_DEPTH = 16
_CHUNK = 1 << 20


class ManifestError(ValueError):
    """The files are not what a model version may consist of; the message names the file."""


def digest(files: Iterable[File]) -> str:
    """Names a set of files by their content.

    Args:
        files: path, size in bytes and SHA-256 of each; the order does not matter.

    Returns:
        "sha256:" and the hex digest of the lines "<sha256>  <size>  <path>", sorted by path.

    Raises:
        ManifestError: a path is unsafe or there twice, or a hash is not 64 lower-case hex digits.
    """
    lines: dict[str, str] = {}
    for file in files:
        check_path(file.path)
        if file.path in lines:
            raise ManifestError(f"{file.path!r} is listed twice")
        if len(file.sha256) != 64 or file.sha256.strip("0123456789abcdef"):
            raise ManifestError(
                f"{file.path!r} has sha256 {file.sha256!r}; expected 64 lower-case hex digits"
            )
        lines[file.path] = f"{file.sha256}  {file.size}  {file.path}\n"
    whole = hashlib.sha256()
    for path in sorted(lines):
        whole.update(lines[path].encode())
    return f"sha256:{whole.hexdigest()}"


def check_digest(text: str) -> str:
    """Returns the hex part of a digest, which is safe as a file name.

    Raises:
        ManifestError: it is not "sha256:" and 64 lower-case hex digits.
    """
    algorithm, _, hexadecimal = text.partition(":")
    if algorithm != "sha256" or len(hexadecimal) != 64 or hexadecimal.strip("0123456789abcdef"):
        raise ManifestError(
            f"{text[:100]!r} is not a digest; expected 'sha256:' and 64 lower-case hex digits"
        )
    return hexadecimal


def check_path(path: str) -> None:
    """Refuses what could leave the directory or make two manifests look alike.

    Raises:
        ManifestError: the path is empty, absolute, not in its shortest form, longer
            than 1,024 bytes, or holds "..", a backslash or a control character.
    """
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise ManifestError(f"{path!r} is not UTF-8") from None
    pure = PurePosixPath(path)
    if not path or len(encoded) > 1024:
        raise ManifestError(f"a path has {len(encoded)} bytes; expected 1 to 1024")
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or path == ".":
        raise ManifestError(
            f"{path!r} is not a plain relative path; '..', '//', './' and a leading '/' are refused"
        )
    if "\\" in path or any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        raise ManifestError(f"{path!r} holds a backslash or a control character")


def scan(directory: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> list[File]:
    """Lists and hashes the files below a directory. Blocks: call it in a thread.

    Links are refused, hard ones too: ONNX Runtime reads a hard link to a file
    elsewhere as external data. A file must not change while it is read.

    Args:
        directory: searched with its subdirectories.
        max_files: how many files there may be.
        max_bytes: their size in sum.

    Returns:
        The files, sorted by path.

    Raises:
        ManifestError: a link, a device, a pipe, an unsafe name, too many files or bytes.
        OSError: the directory cannot be read.
    """
    files: list[File] = []
    total = 0
    for path in _paths(directory, "", 0):
        if len(files) == max_files:
            raise ManifestError(f"more than {max_files} files; a model version may have that many")
        file = _read(directory, path, max_bytes - total, max_bytes)
        total += file.size
        files.append(file)
    files.sort(key=lambda file: file.path)
    return files


def _paths(directory: Path, prefix: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ManifestError(f"{prefix!r} is nested more than {MAX_DEPTH} directories deep")
    with os.scandir(directory / prefix if prefix else directory) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            check_path(path)
            if entry.is_symlink():
                raise ManifestError(f"{path!r} is a symbolic link; put the file itself there")
            if entry.is_dir(follow_symlinks=False):
                yield from _paths(directory, path, depth + 1)
            else:
                yield path


def _read(directory: Path, path: str, left: int, max_bytes: int) -> File:
    # Checked on the open file, not on its name, so that it cannot be exchanged in between;
    # O_NONBLOCK so that opening a pipe returns.
    descriptor = os.open(directory / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as source:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ManifestError(f"{path!r} is not a regular file")
        if status.st_nlink > 1:
            raise ManifestError(
                f"{path!r} is a hard link ({status.st_nlink} names for one file); copy it instead"
            )
        if status.st_size > left:
            raise ManifestError(f"{path!r} takes the version over {max_bytes} bytes")
        sha256 = hashlib.sha256()
        size = 0
        while chunk := source.read(_CHUNK):
            sha256.update(chunk)
            size += len(chunk)
        if size != status.st_size:
            raise ManifestError(f"{path!r} changed while it was read")
    return File(path=path, size=size, sha256=sha256.hexdigest())
