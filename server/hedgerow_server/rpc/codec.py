"""Between the protocol's messages and the engine's tensors.

`TensorCodec` belongs to one model version and one variant of it: what can be
worked out once (which shapes fit, the constant part of a reply) is kept, what
is left for each request is its own bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hedgerow_protos.hedgerow_control_pb2 import NAN_CHOICE_REJECT
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse

from hedgerow_server.engine.model import Model
from hedgerow_server.engine.signature import TensorSpec
from hedgerow_server.engine.work import Part
from hedgerow_server.errors import Internal, InvalidTensor, Unimplemented
from hedgerow_server.rpc.elements import read_bytes_tensor, read_contents, shown, write_bytes_tensor

#: Shapes remembered for each model as fitting; enough for every batch size of a
#: model with a few dynamic dimensions, and a bound for one with many.
KNOWN_SHAPES = 1024

#: NumPy's and more than any model's; a longer shape is refused before it is looked through.
MAX_RANK = 64
#: Product of the other dimensions of a tensor that has none of one: [2**40, 0]
#: takes no bytes to send, but may take 2**40 rows to answer.
MAX_EMPTY = 65_536

_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class Tensors:
    """A request's tensors, found to fit the model.

    `parts` and `shapes` are in the order of the model's inputs. `rows` is what
    the request adds to a batch (1 for a model without a batch dimension),
    `kind` what must be equal for requests to share a run (None: never shares).
    `outputs` are the positions of the outputs asked for, in that order; None: all.
    """

    parts: list[Part]
    shapes: list[tuple[int, ...]]
    rows: int
    kind: Hashable | None
    outputs: tuple[int, ...] | None


class TensorCodec:
    """Reads requests for one model version, and writes its replies.

    Args:
        model: the version.
        parameters: what every reply of this codec says beside its tensors, where
            it is not the plain case.
    """

    def __init__(self, model: Model, parameters: dict[str, str] | None = None) -> None:
        signature = model.signature
        self._model = model
        self._parameters = parameters or {}
        self._specs = signature.inputs
        self._positions = {spec.name: i for i, spec in enumerate(signature.inputs)}
        self._output_positions = {spec.name: i for i, spec in enumerate(signature.outputs)}
        self._has_batch = signature.max_batch_size > 0
        self._check_inputs = model.serving.nan.inputs == NAN_CHOICE_REJECT
        self._check_outputs = model.serving.nan.outputs == NAN_CHOICE_REJECT
        # (name, datatype, *shape) -> (position, bytes or -1, shape): checked before.
        self._known: dict[tuple[Any, ...], tuple[int, int, tuple[int, ...]]] = {}
        # Outputs and shapes -> the reply's constant fields, encoded.
        self._prefixes: dict[Hashable, bytes] = {}

    # ------------------------------------------------------------- requests

    def read(self, request: ModelInferRequest) -> Tensors:
        """Checks a request's tensors against the model.

        Raises:
            InvalidTensor: they do not fit; says which, why, and what would.
            Unimplemented: they ask for an extension that is not here.
        """
        specs = self._specs
        inputs = request.inputs
        count = len(specs)
        if len(inputs) != count:
            self._refuse_names(request)
        raws = request.raw_input_contents
        if raws and len(raws) != count:
            raise InvalidTensor(
                f"raw_input_contents has {len(raws)} entries for {count} inputs; "
                "send one for each input, in the order of the inputs, or none and use contents"
            )
        parts: list[Part | None] = [None] * count
        shapes: list[tuple[int, ...]] = [()] * count
        known = self._known
        for i, tensor in enumerate(inputs):
            dims = tensor.shape
            if len(dims) > MAX_RANK:
                raise InvalidTensor(
                    f"input {tensor.name[:64]!r} has {len(dims)} dimensions, at most {MAX_RANK} make sense"
                )
            key = (tensor.name, tensor.datatype, *dims)
            found = known.get(key)
            if found is None:
                found = self._learn(tensor, key)
            position, size, shape = found
            if parts[position] is not None:
                raise InvalidTensor(f"input {tensor.name!r} comes twice; send each input once")
            spec = specs[position]
            if raws:
                if tensor.HasField("contents"):
                    raise InvalidTensor(
                        f"input {spec.name!r} has contents and raw_input_contents; use one of the two"
                    )
                part: Part = raws[i]
                if size < 0:
                    part = read_bytes_tensor(raws[i], spec.name, shape)
                elif len(part) != size:
                    raise InvalidTensor(
                        f"input {spec.name!r} has {len(part)} bytes, but {spec.datatype.name} of shape "
                        f"{list(shape)} takes {size}"
                    )
            else:
                if tensor.parameters and _SHARED_MEMORY in tensor.parameters:
                    raise _no_shared_memory()
                part = read_contents(tensor.contents, spec, shape)
            parts[position] = part
            shapes[position] = shape
            if self._check_inputs:
                _refuse_nan(part, spec)
        outputs = self._asked_outputs(request) if request.outputs else None
        rows, kind = self._rows(shapes, outputs)
        return Tensors(parts, shapes, rows, kind, outputs)  # type: ignore[arg-type]  # none is None: count and names agree

    def _rows(
        self, shapes: list[tuple[int, ...]], outputs: tuple[int, ...] | None
    ) -> tuple[int, Hashable | None]:
        if not self._has_batch:
            return 1, None
        rows = shapes[0][0]
        if len(shapes) == 1:
            kind: Hashable = (shapes[0][1:], outputs)
        else:
            for spec, shape in zip(self._specs, shapes, strict=True):
                if shape[0] != rows:
                    raise InvalidTensor(
                        f"input {spec.name!r} has {shape[0]} rows, {self._specs[0].name!r} has {rows}; "
                        "the first dimension is the batch and must be the same for all inputs"
                    )
            kind = (tuple([shape[1:] for shape in shapes]), outputs)
        return rows, kind if self._model.batches else None

    def _learn(
        self, tensor: ModelInferRequest.InferInputTensor, key: tuple[Any, ...]
    ) -> tuple[int, int, tuple[int, ...]]:
        """Checks a name, datatype and shape that did not come before."""
        position = self._positions.get(tensor.name)
        if position is None:
            raise InvalidTensor(
                f"model {self._model.name!r} has no input {tensor.name[:64]!r}; "
                f"its inputs are {', '.join(self._positions)}"
            )
        spec = self._specs[position]
        if tensor.datatype != spec.datatype.name:
            raise InvalidTensor(
                f"input {spec.name!r} is {tensor.datatype[:16]!r}; the model takes {spec.datatype.name}"
            )
        shape = tuple(tensor.shape)
        if not spec.shape and shape == (1,):
            # Triton has no scalars, its clients send one element.
            shape = ()
        if len(shape) != len(spec.shape) or any(
            size < 0 or (want >= 0 and size != want) for size, want in zip(shape, spec.shape, strict=True)
        ):
            raise InvalidTensor(
                f"input {spec.name!r} has shape {shown(shape)}; the model takes {shown(spec.shape)}"
                f"{' where -1 is any size from 0 up' if -1 in spec.shape else ''}"
            )
        if self._has_batch and shape[0] == 0:
            raise InvalidTensor(f"input {spec.name!r} has no rows; send at least one")
        elements = math.prod(shape)
        # No message can hold more; refused here, before anything multiplies or allocates.
        if elements >= 2**31:
            raise InvalidTensor(
                f"input {spec.name!r} of shape {shown(shape)} has {elements} elements; "
                "at most 2147483647 fit in a message"
            )
        if not elements and math.prod(size or 1 for size in shape) > MAX_EMPTY:
            raise InvalidTensor(
                f"input {spec.name!r} of shape {shown(shape)} is empty and yet huge; "
                f"the other dimensions of an empty tensor may multiply to {MAX_EMPTY}"
            )
        found = (position, elements * spec.datatype.itemsize if spec.datatype.itemsize else -1, shape)
        if len(self._known) >= KNOWN_SHAPES:
            self._known.clear()
        self._known[key] = found
        return found

    def _refuse_names(self, request: ModelInferRequest) -> None:
        # A message may hold millions of inputs: what is told is found among the first.
        asked = Counter(tensor.name for tensor in request.inputs[: len(self._specs) + 10])
        missing = [spec.name for spec in self._specs if spec.name not in asked]
        extra = [name[:64] for name in asked if name not in self._positions]
        twice = [name[:64] for name, times in asked.items() if times > 1]
        what = [
            f"{word} {', '.join(map(repr, names[:10]))}"
            for word, names in (
                ("missing", missing),
                ("not an input of the model", extra),
                ("sent twice", twice),
            )
            if names
        ]
        raise InvalidTensor(
            f"model {self._model.name!r} takes {len(self._specs)} inputs ({', '.join(self._positions)}), "
            f"the request has {len(request.inputs)}: {'; '.join(what)}"
        )

    def _asked_outputs(self, request: ModelInferRequest) -> tuple[int, ...] | None:
        positions = []
        for output in request.outputs:
            position = self._output_positions.get(output.name)
            if position is None:
                raise InvalidTensor(
                    f"model {self._model.name!r} has no output {output.name[:64]!r}; "
                    f"its outputs are {', '.join(self._output_positions)}"
                )
            if output.parameters:
                if _SHARED_MEMORY in output.parameters:
                    raise _no_shared_memory()
                if output.parameters["classification"].int64_param:
                    raise Unimplemented(
                        "the classification extension is not supported; take the largest values of the tensor"
                    )
            if position in positions:
                raise InvalidTensor(f"output {output.name!r} is asked for twice; name each output once")
            positions.append(position)
        asked = tuple(positions)
        return None if asked == tuple(range(len(self._output_positions))) else asked

    # -------------------------------------------------------------- replies

    def write(
        self,
        request_id: str,
        outputs: Sequence[np.ndarray],
        asked: tuple[int, ...] | None,
        first: int,
        rows: int,
        *,
        alone: bool,
    ) -> bytes:
        """Encodes the reply to one request.

        Args:
            request_id: the request's own id, given back.
            outputs: of the whole run, as `asked` for.
            asked: positions of these outputs in the model; None: all.
            first: the request's first row in the outputs.
            rows: how many rows are its own.
            alone: the run was for this request only: the outputs are its own whole.

        Returns:
            A `ModelInferResponse`. Contents are always raw: Triton's C++ client
            reads them unchecked.

        Raises:
            Internal: an output has NaN or infinity and the model's policy rejects it.
        """
        pieces: list[Any] = [b""]
        shapes: list[tuple[int, ...]] = []
        for output in outputs:
            mine = output if alone else output[first : first + rows]
            shapes.append(mine.shape)
            if mine.dtype.hasobject:
                raw: Any = write_bytes_tensor(mine)
                size = len(raw)
            else:
                if self._check_outputs and mine.dtype.kind == "f" and not np.isfinite(mine).all():
                    raise Internal("the model's answer is not a finite number, which its policy rejects")
                raw = mine.data if mine.flags.c_contiguous else np.ascontiguousarray(mine).data
                size = mine.nbytes
                if not size:
                    raw = b""
            pieces.append(b"\x32" + _varint(size))
            pieces.append(raw)
        key = (asked, *shapes)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._prefix(asked, outputs, shapes, key)
        if request_id:
            encoded = request_id.encode()
            prefix = prefix + b"\x1a" + _varint(len(encoded)) + encoded
        pieces[0] = prefix
        return b"".join(pieces)

    def _prefix(
        self,
        asked: tuple[int, ...] | None,
        outputs: Sequence[np.ndarray],
        shapes: list[tuple[int, ...]],
        key: Hashable,
    ) -> bytes:
        specs = self._model.signature.outputs
        positions = range(len(specs)) if asked is None else asked
        reply = ModelInferResponse(model_name=self._model.name, model_version=self._model.version)
        for name, value in self._parameters.items():
            reply.parameters[name].string_param = value
        for position, _, shape in zip(positions, outputs, shapes, strict=True):
            spec = specs[position]
            reply.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=shape)
        prefix: bytes = reply.SerializeToString()
        if len(self._prefixes) >= KNOWN_SHAPES:
            self._prefixes.clear()
        self._prefixes[key] = prefix
        return prefix


def _refuse_nan(part: Part, spec: TensorSpec) -> None:
    if spec.datatype.dtype.kind != "f" or isinstance(part, np.ndarray):
        return
    values = np.frombuffer(part, spec.datatype.dtype)
    finite = np.isfinite(values)
    if not finite.all():
        at = int(np.argmin(finite))
        raise InvalidTensor(
            f"input {spec.name!r} has {float(values[at])} at element {at}; this model takes finite numbers"
        )


def _no_shared_memory() -> Unimplemented:
    return Unimplemented("shared memory is not supported; send the tensor in raw_input_contents")


def _varint(value: int) -> bytes:
    """Protobuf's base-128 number, at most 5 bytes here."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
