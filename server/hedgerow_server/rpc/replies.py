"""Replies: a run's outputs, each request's rows of them, as encoded messages.

What a reply says before its tensors is the same for every request of a version
that brought as many rows, so it is encoded once; a reply is that and a slice.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from hedgerow_protos.open_inference_pb2 import ModelInferResponse

from hedgerow_server.engine.model import Model
from hedgerow_server.errors import Internal
from hedgerow_server.rpc.elements import write_bytes_tensor
from hedgerow_server.rpc.heads import varint

#: Shapes of replies remembered for each version; see KNOWN_HEADS.
KNOWN_FRAMES = 1024
#: Outputs up to so many bytes are copied out of the array at once: a slice of bytes costs half of a view's.
COPIED_BYTES = 65_536

_RAW_TAG = b"\x32"  # field 6, length-delimited


class Encoded(msgspec.Struct, gc=False, eq=False):
    """The outputs of one run, seen as bytes. A struct, since it costs less to make.

    Attributes:
        arrays: the outputs, over all rows of the run.
        asked: their positions in the model; None: all, in its order.
        alone: the run was for one request: the outputs are its own whole.
        fixed: all sizes but the rows are the same in each run of the model.
        first: the bytes of the first output, and `stride` those of a row of it, once they were needed.
        datas: the same for each output.
        last: where sizes vary: who used which frame last, and for how many rows; mostly that of all requests.
    """

    arrays: Sequence[np.ndarray]
    asked: tuple[int, ...] | None
    alone: bool
    fixed: bool = False
    first: bytes | memoryview | None = None
    stride: int = 0
    datas: list[tuple[bytes | memoryview, int] | None] | None = None
    last: tuple[ReplyWriter, int, Frame] | None = None

    def see_first(self) -> bytes | memoryview:
        """Sets `first` and `stride`."""
        output = self.arrays[0]
        self.stride = output.nbytes // len(output) if not self.alone else 0
        self.first = data = _bytes_of(output)
        return data

    def shapes(self, rows: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of a part of so many rows."""
        if self.alone:
            return tuple([output.shape for output in self.arrays])
        return tuple([(rows, *output.shape[1:]) for output in self.arrays])

    def part(self, index: int, first: int, rows: int) -> bytes | memoryview:
        """The bytes of some rows of an output."""
        output = self.arrays[index]
        if self.alone:
            return write_bytes_tensor(output) if output.dtype.hasobject else _bytes_of(output)
        if output.dtype.hasobject:
            return write_bytes_tensor(output[first : first + rows])
        if self.datas is None:
            self.datas = [None] * len(self.arrays)
        known = self.datas[index]
        if known is None:
            known = self.datas[index] = (_bytes_of(output), output.nbytes // len(output))
        data, stride = known
        return data[first * stride : (first + rows) * stride]


def _bytes_of(array: np.ndarray) -> bytes | memoryview:
    if array.nbytes <= COPIED_BYTES:
        return array.tobytes()
    whole = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    return memoryview(whole.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # NumPy's stubs for 3.11 do not say that arrays are buffers


class Frame:
    """What stands around the tensors of a reply; `tags` stand before each where their sizes are fixed."""

    __slots__ = ("fields", "head", "tags")

    def __init__(self, fields: bytes, tags: list[bytes] | None) -> None:
        #: Everything but id and tensors.
        self.fields = fields
        self.tags = tags
        #: What a reply without an id and with a single tensor begins with.
        self.head = fields + tags[0] if tags is not None and len(tags) == 1 else b""


class ReplyWriter:
    """Writes the replies of one version, as one variant of it.

    Args:
        model: the version.
        parameters: what every reply says beside its tensors.
        reject_nan: an output with NaN or infinity is not given to the caller.
    """

    def __init__(self, model: Model, parameters: Mapping[str, str], *, reject_nan: bool) -> None:
        self._model = model
        self._parameters = parameters
        self._reject_nan = reject_nan
        # By shapes and the outputs asked for; by rows where these say it all.
        self._frames: dict[Hashable, Frame] = {}

    def write(self, request_id: str, outputs: Encoded, first: int, rows: int) -> bytes:
        """Encodes the reply to one request.

        Args:
            request_id: the request's own id, given back.
            outputs: of the whole run.
            first: the request's first row in the outputs.
            rows: how many rows are its own.

        Returns:
            A `ModelInferResponse`. Contents are always raw: Triton's C++ client
            reads them unchecked.

        Raises:
            Internal: an output has NaN or infinity and the model's policy rejects it.
        """
        frame: Frame | None = None
        if outputs.fixed:
            frame = self._frames.get(rows)
        elif outputs.last is not None and outputs.last[0] is self and outputs.last[1] == rows:
            frame = outputs.last[2]
        if frame is None:
            frame = self._frame(outputs, rows)
            outputs.last = self, rows, frame
        if self._reject_nan:
            _refuse_nan(outputs, first, rows)
        if frame.head and not request_id:
            data = outputs.first
            if data is None:
                data = outputs.see_first()
            if not outputs.alone:
                data = data[first * outputs.stride : (first + rows) * outputs.stride]
            return frame.head + data
        pieces: list[Any] = [frame.fields]
        if request_id:
            encoded = request_id.encode()
            pieces += (b"\x1a", varint(len(encoded)), encoded)
        for index in range(len(outputs.arrays)):
            part = outputs.part(index, first, rows)
            pieces.append(_RAW_TAG + varint(len(part)) if frame.tags is None else frame.tags[index])
            pieces.append(part)
        return b"".join(pieces)

    def _frame(self, outputs: Encoded, rows: int) -> Frame:
        key: Hashable = rows if outputs.fixed else (outputs.asked, outputs.shapes(rows))
        frame = self._frames.get(key)
        if frame is None:
            if len(self._frames) >= KNOWN_FRAMES:
                self._frames.clear()
            frame = self._frames[key] = self._new_frame(outputs, outputs.shapes(rows))
        return frame

    def _new_frame(self, outputs: Encoded, shapes: Sequence[tuple[int, ...]]) -> Frame:
        specs = self._model.signature.outputs
        positions = range(len(specs)) if outputs.asked is None else outputs.asked
        reply = ModelInferResponse(model_name=self._model.name, model_version=self._model.version)
        for name, value in self._parameters.items():
            reply.parameters[name].string_param = value
        for position, shape in zip(positions, shapes, strict=True):
            spec = specs[position]
            reply.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=shape)
        tags: list[bytes] | None = None
        if not any(array.dtype.hasobject for array in outputs.arrays):
            sizes = [
                int(np.prod(shape, dtype=np.int64)) * array.dtype.itemsize
                for array, shape in zip(outputs.arrays, shapes, strict=True)
            ]
            tags = [_RAW_TAG + varint(size) for size in sizes]
        return Frame(reply.SerializeToString(), tags)


def _refuse_nan(outputs: Encoded, first: int, rows: int) -> None:
    for output in outputs.arrays:
        mine = output if outputs.alone else output[first : first + rows]
        if mine.dtype.kind == "f" and not np.isfinite(mine).all():
            raise Internal("the model's answer is not a finite number, which its policy rejects")
