"""Between the protocol's messages and the engine's tensors.

`TensorCodec` belongs to one model version and one variant of it: what can be
worked out once (which shapes fit, the constant part of a reply) is kept, what
is left for each request is its own bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hedgerow_protos.hedgerow_control_pb2 import NAN_CHOICE_REJECT
from hedgerow_protos.open_inference_pb2 import ModelInferRequest

from hedgerow_server.engine.model import Model
from hedgerow_server.engine.signature import TensorSpec
from hedgerow_server.engine.work import Part
from hedgerow_server.errors import InvalidTensor, Unimplemented
from hedgerow_server.features.binding import Binding
from hedgerow_server.features.freshness import Freshness
from hedgerow_server.rpc.elements import read_bytes_tensor, read_contents, shown
from hedgerow_server.rpc.heads import KNOWN_HEADS, Head
from hedgerow_server.rpc.replies import Encoded, ReplyWriter

#: Shapes remembered for each model as fitting; enough for every batch size of a
#: model with a few dynamic dimensions, and a bound for one with many.
KNOWN_SHAPES = 1024

#: Combinations of fallback rules whose replies are prepared.
KNOWN_RULES = 64

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
        callers: what requests bring in place of the model's inputs; one column
            may then come without its second dimension.

    Attributes:
        writer: writes the replies.
        bound: for requests that bring ids, where inputs are bound to features.
    """

    def __init__(
        self,
        model: Model,
        parameters: dict[str, str] | None = None,
        callers: tuple[TensorSpec, ...] | None = None,
    ) -> None:
        signature = model.signature
        self.bound: BoundCodec | None = None
        self._model = model
        self._takes_columns = callers is not None
        self._specs = signature.inputs if callers is None else callers
        self._positions = {spec.name: i for i, spec in enumerate(self._specs)}
        self._output_positions = {spec.name: i for i, spec in enumerate(signature.outputs)}
        self._has_batch = signature.max_batch_size > 0
        self._check_inputs = model.serving.nan.inputs == NAN_CHOICE_REJECT
        # (name, datatype, *shape) -> (position, bytes or -1, shape): checked before.
        self._known: dict[tuple[Any, ...], tuple[int, int, tuple[int, ...]]] = {}
        # What requests with a known head bring, and their raw tensors' places in `parts` where these differ.
        self._seen: dict[Head, tuple[Tensors, tuple[int, ...] | None]] = {}
        self._parameters = parameters or {}
        self.writer = self._writer(self._parameters)
        # Writers of what rules answered, by the rules' names.
        self._by_rules: dict[str, ReplyWriter] = {}

    def _writer(self, parameters: dict[str, str]) -> ReplyWriter:
        nan = self._model.serving.nan
        return ReplyWriter(self._model, parameters, reject_nan=nan.outputs == NAN_CHOICE_REJECT)

    # ------------------------------------------------------------- requests

    def recognise(self, head: Head, payload: bytes, shift: int) -> tuple[Tensors, list[Part]] | None:
        """The tensors of a request whose head came before and was found to fit.

        Args:
            head: of the message.
            payload: the message.
            shift: bytes of its id.

        Returns:
            What `read` found for that head, whose parts are another request's, and this one's parts;
            None if this codec has not seen it.

        Raises:
            InvalidTensor: a value is refused by the model's policy on NaN.
        """
        seen = self._seen.get(head)
        if seen is None:
            return None
        tensors, places = seen
        if tensors.kind is not None and not self._model.batches:
            # It was found meanwhile that its requests cannot share a run.
            self._seen.clear()
            return None
        parts = head.raws(payload, shift)
        if places is not None:
            parts = [parts[place] for place in places]
        if self._check_inputs:
            for part, spec in zip(parts, self._specs, strict=True):
                _refuse_nan(part, spec)
        return tensors, parts

    def read(self, request: ModelInferRequest, head: Head | None = None) -> Tensors:
        """Checks a request's tensors against the model.

        Args:
            request: as parsed.
            head: its head, if others may be recognised by it.

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
        rows, kind = self.rows(shapes, outputs)
        tensors = Tensors(parts, shapes, rows, kind, outputs)  # type: ignore[arg-type]  # none is None: count and names agree
        if head is not None and head.is_known and raws:
            self._remember(head, request, tensors)
        return tensors

    def _remember(self, head: Head, request: ModelInferRequest, tensors: Tensors) -> None:
        # The elements of a BYTES tensor are looked at one by one each time.
        if all(spec.datatype.itemsize for spec in self._specs):
            order = [self._positions[tensor.name] for tensor in request.inputs]
            places = tuple(order.index(position) for position in range(len(order)))
            if len(self._seen) >= KNOWN_HEADS:
                self._seen.clear()
            kept = replace(tensors, parts=[])
            self._seen[head] = (kept, None if places == tuple(range(len(places))) else places)

    def rows(
        self, shapes: list[tuple[int, ...]], outputs: tuple[int, ...] | None
    ) -> tuple[int, Hashable | None]:
        """What a request adds to a batch, and what it shares runs by; see `Tensors`.

        Raises:
            InvalidTensor: its inputs have different numbers of rows.
        """
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
        if self._takes_columns and len(shape) == 1 and spec.shape[1:] == (1,):
            shape = (*shape, 1)
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

    def write_fallback(self, request_id: str, outputs: Encoded, rows: int, rule: str) -> bytes:
        """Encodes the reply to a request that rules have answered, and says so; see `ReplyWriter.write`.

        Args:
            request_id: the request's own id, given back.
            outputs: its own.
            rows: how many it has.
            rule: the names of the rules.
        """
        writer = self._by_rules.get(rule)
        if writer is None:
            if len(self._by_rules) >= KNOWN_RULES:
                self._by_rules.clear()
            said = {"hedgerow_outcome": "fallback", "hedgerow_rule": rule}
            writer = self._by_rules[rule] = self._writer({**self._parameters, **said})
        return writer.write(request_id, outputs, 0, rows)


class BoundCodec:
    """Reads requests that bring ids in place of a model's inputs, and writes their replies.

    Attributes:
        model: the version.
        binding: how its inputs are bound to features.
        callers: reads what such requests bring.
        replies: writes their replies, by the freshness of what was joined.
    """

    def __init__(self, model: Model, parameters: dict[str, str], binding: Binding) -> None:
        self.model = model
        self.binding = binding
        self.callers = TensorCodec(model, callers=binding.callers)
        self.replies = {
            freshness: TensorCodec(model, {**parameters, "hedgerow_features": freshness.label})
            for freshness in Freshness
        }

    def is_for(self, request: ModelInferRequest) -> bool:
        """Whether a request means to bring ids, rather than the inputs themselves."""
        marks = self.binding.marks
        # One that has more inputs than either kind is refused in any case.
        return any(tensor.name in marks for tensor in request.inputs[: len(self.binding.callers)])


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
