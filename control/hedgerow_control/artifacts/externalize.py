"""Moves the weights of an ONNX file into a file beside it, so that servers can map them.

A server maps external data: it serves such a model within milliseconds, and all
its workers share one copy. Weights inside the model's own file it must copy.

The protobuf wire format is rewritten as it is read: only the graph's own large
tensors change, everything else is copied byte for byte, and no more than a
chunk is in memory, however large the file. Blocks: call it in a thread.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO
from itertools import count
from pathlib import Path
from typing import BinaryIO

from hedgerow_protos.message_reader import LEN, VARINT, Field, Malformed, MessageReader

#: Weights in sum below which a file stays as it is: servers load so little in a moment.
#: No more than `PAYS_BYTES` of hedgerow_server.engine.gears.
WORTH_BYTES = 4 << 20
#: Smaller tensors stay where they are: shape inference reads some of them.
_TENSOR_BYTES = 1 << 12
#: Each tensor begins on a page of the weights' file.
_PAGE = 1 << 12
_CHUNK = 1 << 20
#: A graph of more parts is left alone: looking at each would take minutes.
_MOST_FIELDS = 1_000_000

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_RAW, _TENSOR_DOUBLES = 2, 4, 9, 10
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_FLOAT, _DOUBLE = 1, 11
_EXTERNAL = 1


@dataclass(frozen=True, slots=True)
class _Move:
    """A tensor to be moved.

    Attributes:
        tensor: Its field in the graph.
        begin: Of its weights in the model's file.
        size: Of its weights, in bytes.
        offset: Of its weights in their new file.
        instead: What stands in the graph in place of the field.
    """

    tensor: Field
    begin: int
    size: int
    offset: int
    instead: bytes


def externalize(directory: Path, path: str) -> bool:
    """Moves the weights inside a model's file into a file of their own, where that is worth it.

    The same file always becomes the same two files, and those stay as they are
    when they come again. A file that is no ONNX model is left alone.

    Args:
        directory: Of the version's files; a file is added beside the model.
        path: The model in it, relative and checked.

    Returns:
        Whether anything has changed.

    Raises:
        OSError: A file could not be read or written; the model's file is as it was.
    """
    model = directory / path
    weights = _free_name(model)
    rewritten = model.with_name(f"{weights.name}.incoming")
    with FileIO(model, opener=_open) as source:
        try:
            graph, moves = _plan(MessageReader(source.fileno(), most_fields=_MOST_FIELDS), weights.name)
        except Malformed:
            return False
        if sum(move.size for move in moves) < WORTH_BYTES:
            return False
        try:
            with weights.open("xb") as target:
                for move in moves:
                    target.seek(move.offset)
                    _copy(source, move.begin, move.begin + move.size, target)
            with rewritten.open("xb") as target:
                _write_model(source, graph, moves, target)
            rewritten.replace(model)
        except BaseException:
            weights.unlink(missing_ok=True)
            rewritten.unlink(missing_ok=True)
            raise
    return True


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _free_name(model: Path) -> Path:
    """A name beside the model that nothing has; the same every time for the same folder."""
    for number in count():
        free = model.with_name(f"{model.name}.weights{number or ''}")
        if not os.path.lexists(free):
            return free
    raise AssertionError("unreachable: one of the names is free")


def _plan(reader: MessageReader, location: str) -> tuple[Field, list[_Move]]:
    """Finds the graph, and what of it is to be moved where."""
    graphs = [field for field in reader.fields(0, reader.size) if field.number == _MODEL_GRAPH]
    if len(graphs) != 1 or graphs[0].kind != LEN:
        raise Malformed
    (graph,) = graphs
    moves: list[_Move] = []
    offset = 0
    for field in reader.fields(graph.value, graph.end):
        if field.number == _GRAPH_INITIALIZER and field.kind == LEN:
            move = _plan_tensor(reader, field, location, offset)
            if move is not None:
                moves.append(move)
                offset += -(-move.size // _PAGE) * _PAGE
    return graph, moves


def _plan_tensor(reader: MessageReader, tensor: Field, location: str, offset: int) -> _Move | None:
    """What becomes of an initializer; None if it stays where it is."""
    if tensor.end - tensor.value < _TENSOR_BYTES:
        return None
    kind = 0
    weights: list[Field] = []
    rest = b""
    for field in reader.fields(tensor.value, tensor.end):
        if field.number in (_TENSOR_EXTERNAL, _TENSOR_LOCATION):
            return None
        if field.number in (_TENSOR_FLOATS, _TENSOR_RAW, _TENSOR_DOUBLES):
            weights.append(field)
            continue
        if field.number == _TENSOR_TYPE and field.kind == VARINT:
            kind, _ = reader.varint(field.value)
        if field.end - field.start > _TENSOR_BYTES:
            return None  # weights in yet another form
        rest += reader.take(field.start, field.end - field.start)
    if len(weights) != 1 or weights[0].kind != LEN:
        return None
    (field,) = weights
    # Packed floats are laid out as raw data is: one behind the other, little-endian.
    if field.number not in (_TENSOR_RAW, {_FLOAT: _TENSOR_FLOATS, _DOUBLE: _TENSOR_DOUBLES}.get(kind)):
        return None
    size = field.end - field.value
    if size < _TENSOR_BYTES:
        return None
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(size))):
        rest += _message(_TENSOR_EXTERNAL, _message(1, key.encode()) + _message(2, value.encode()))
    rest += _number(_TENSOR_LOCATION << 3 | VARINT) + _number(_EXTERNAL)
    return _Move(tensor, field.value, size, offset, _message(_GRAPH_INITIALIZER, rest))


def _write_model(source: FileIO, graph: Field, moves: list[_Move], target: BinaryIO) -> None:
    shrunk = sum(len(move.instead) - (move.tensor.end - move.tensor.start) for move in moves)
    _copy(source, 0, graph.start, target)
    target.write(_number(_MODEL_GRAPH << 3 | LEN) + _number(graph.end - graph.value + shrunk))
    position = graph.value
    for move in moves:
        _copy(source, position, move.tensor.start, target)
        target.write(move.instead)
        position = move.tensor.end
    # The rest of the graph, and what comes behind it.
    _copy(source, position, os.fstat(source.fileno()).st_size, target)


def _copy(source: FileIO, begin: int, end: int, target: BinaryIO) -> None:
    while begin < end:
        chunk = os.pread(source.fileno(), min(_CHUNK, end - begin), begin)
        if not chunk:
            raise OSError("the model's file became shorter while it was read")
        target.write(chunk)
        begin += len(chunk)


def _message(number: int, content: bytes) -> bytes:
    return _number(number << 3 | LEN) + _number(len(content)) + content


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
