"""What an ONNX file says about itself, read without loading it.

ONNX Runtime tells less than a server must know before it opens a model: which
other files it would read (it follows a hard link to anything on the disk), and
whether an input's shape is a scalar's or just not given. This reads those few
fields of the protobuf wire format and steps over everything else, so a file
of gigabytes costs a few reads.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hedgerow_protos.message_reader import Malformed, MessageReader

from .refusal import LoadRefused

#: Graphs inside nodes (If, Loop, Scan) inside graphs; protobuf's own limit on nesting is 100 messages.
_DEEPEST = 24


@dataclass(slots=True)
class ModelFile:
    """What was found in the file.

    Attributes:
        external: The files that hold the weights, relative to the model's own folder.
        unranked: Inputs that give no shape at all.
        external_bytes: Size of those files together.
        loops: Whether some node goes round as often as values say, so that a run may take any time.
        stamp: Which files these are, the model's own first: device, inode, size in bytes and time
            of the last change in nanoseconds of each.
    """

    external: set[str] = field(default_factory=set)
    unranked: list[str] = field(default_factory=list)
    external_bytes: int = 0
    loops: bool = False
    stamp: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all the files."""
        return sum(size for _, _, size, _ in self.stamp)


def check(directory: Path, path: str) -> ModelFile:
    """Reads the model's file and checks every other file it would make ONNX Runtime open.

    Args:
        directory: Nothing outside it may be read.
        path: The model in it, relative.

    Returns:
        What the file says.

    Raises:
        LoadRefused: The file is missing, truncated or no ONNX model; external data is absolute,
            outside the model's folder, a link, missing or not a regular file.
    """
    relative = PurePosixPath(path)
    if not path or "\0" in path or relative.is_absolute() or ".." in relative.parts:
        raise LoadRefused(f"the model's path {path!r} must be relative and stay inside its folder")
    file = directory / relative
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise LoadRefused(f"cannot open the model {path!r}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LoadRefused(f"the model {path!r} is not a regular file; name the .onnx file itself")
        model = _read(descriptor, path)
    finally:
        os.close(descriptor)
    externals = [_check_external(file.parent, location) for location in sorted(model.external)]
    model.external_bytes = sum(external.st_size for external in externals)
    model.stamp = tuple(
        (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in (status, *externals)
    )
    return model


def _read(descriptor: int, path: str) -> ModelFile:
    reader = MessageReader(descriptor)
    model = ModelFile()
    has_graph = False
    try:
        for number, start, end in reader.contents(0, reader.size):
            if number == 7:  # ModelProto.graph
                has_graph = True
                _read_graph(reader, start, end, model, 0)
            elif number == 25:  # ModelProto.functions
                for inner, first, last in reader.contents(start, end):
                    if inner == 7:  # FunctionProto.node
                        _read_node(reader, first, last, model, 0)
    except Malformed:
        raise LoadRefused(_not_a_model(reader, path)) from None
    if not has_graph:
        raise LoadRefused(_not_a_model(reader, path))
    return model


def _not_a_model(reader: MessageReader, path: str) -> str:
    if reader.size == 0:
        return f"the model {path!r} is empty; export or copy it again"
    if reader.take(0, 64).startswith(b"version https://git-lfs"):
        return f"the model {path!r} is only a Git LFS pointer; fetch the file itself with: git lfs pull"
    return (
        f"the model {path!r} ({reader.size} bytes) is truncated or no ONNX file; "
        "compare its size with the original, then export or copy it again"
    )


def _read_graph(reader: MessageReader, start: int, end: int, model: ModelFile, depth: int) -> None:
    if depth > _DEEPEST:
        raise LoadRefused(f"the model nests graphs more than {_DEEPEST} deep; flatten it at export")
    for number, first, last in reader.contents(start, end):
        if number == 1:  # GraphProto.node
            _read_node(reader, first, last, model, depth)
        elif number == 5:  # GraphProto.initializer
            _read_tensor(reader, first, last, model)
        elif number == 15:  # GraphProto.sparse_initializer
            _read_sparse(reader, first, last, model)
        elif number == 11 and depth == 0:  # GraphProto.input
            _read_input(reader, first, last, model)


def _read_node(reader: MessageReader, start: int, end: int, model: ModelFile, depth: int) -> None:
    # External data always carries the one key, a loop the other; few nodes do, and the search spares
    # walking the others.
    content = reader.take(start, end - start)
    if b"location" not in content and b"Loop" not in content:
        return
    for number, first, last in reader.contents(start, end):
        if number == 4 and reader.text(first, last) == "Loop":  # NodeProto.op_type
            model.loops = True
        if number != 5:  # NodeProto.attribute
            continue
        for kind, begin, stop in reader.contents(first, last):
            if kind in (5, 10):  # AttributeProto.t, tensors
                _read_tensor(reader, begin, stop, model)
            elif kind in (6, 11):  # AttributeProto.g, graphs
                _read_graph(reader, begin, stop, model, depth + 1)
            elif kind in (22, 23):  # AttributeProto.sparse_tensor, sparse_tensors
                _read_sparse(reader, begin, stop, model)


def _read_sparse(reader: MessageReader, start: int, end: int, model: ModelFile) -> None:
    for number, first, last in reader.contents(start, end):
        if number in (1, 2):  # SparseTensorProto.values, indices
            _read_tensor(reader, first, last, model)


def _read_tensor(reader: MessageReader, start: int, end: int, model: ModelFile) -> None:
    for number, first, last in reader.contents(start, end):
        if number != 13:  # TensorProto.external_data
            continue
        entry = {inner: reader.text(begin, stop) for inner, begin, stop in reader.contents(first, last)}
        if entry.get(1) == "location":
            model.external.add(entry.get(2, ""))


def _read_input(reader: MessageReader, start: int, end: int, model: ModelFile) -> None:
    name, unranked = "", False
    for number, first, last in reader.contents(start, end):
        if number == 1:  # ValueInfoProto.name
            name = reader.text(first, last)
        elif number == 2:  # ValueInfoProto.type
            for kind, begin, stop in reader.contents(first, last):
                if kind == 1:  # TypeProto.tensor_type
                    unranked = all(inner != 2 for inner, _, _ in reader.contents(begin, stop))  # .shape
    if unranked:
        model.unranked.append(name)


def _check_external(folder: Path, location: str) -> os.stat_result:
    what = f"external data {location!r}"
    relative = PurePosixPath(location)
    if not relative.parts or "\0" in location or relative.is_absolute():
        raise LoadRefused(
            f"{what} is not a relative path; save the model again with its data beside it "
            "(onnx.save(..., save_as_external_data=True, location='weights.bin'))"
        )
    if ".." in relative.parts:
        raise LoadRefused(f"{what} points outside the model's folder; put the file beside the model")
    place = folder
    for part in relative.parts:
        place = place / part
        try:
            status = place.lstat()
        except OSError as error:
            raise LoadRefused(
                f"{what} cannot be read ({error.strerror}); copy it together with the model"
            ) from error
        if stat.S_ISLNK(status.st_mode):
            raise LoadRefused(f"{what} is or passes a symbolic link; put a copy of the file in its place")
    if not stat.S_ISREG(status.st_mode):
        raise LoadRefused(f"{what} is not a regular file")
    # A hard link may be another name of any file this user can read.
    if status.st_nlink > 1:
        raise LoadRefused(
            f"{what} is a hard link (the file has {status.st_nlink} names); put a copy of it in its place"
        )
    return status
