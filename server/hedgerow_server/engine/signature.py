"""What a model takes and gives, read from its session.

Whether the first dimension can be a batch is decided here: it can when every
input and every output has a first dimension that varies, under one name where
names are given. Anything else (a scalar, a fixed first dimension, an output
without rows) makes a model that is never batched. The warm-up then checks it
against what the model answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hedgerow_protos.tensor_shape import Dims, TensorShape, has_batch

from .datatypes import DATATYPES, Datatype, from_onnx
from .refusal import LoadRefused


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: As in the model.
        datatype: The type of its elements.
        shape: Every dimension, the batch included; -1 for one that varies.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model, in the model's order.

    Attributes:
        inputs: All of them are required.
        outputs: A request may ask for some of them.
        max_batch_size: Rows in one run at most, where dimension 0 of every input and output is
            the batch; 0 for a model without a batch dimension, which is run once a request.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int

    @property
    def input_shapes(self) -> list[TensorShape]:
        """The inputs, as those parts know them that the server shares with others."""
        return _plain(self.inputs)

    @property
    def output_shapes(self) -> list[TensorShape]:
        """The outputs likewise."""
        return _plain(self.outputs)


def _plain(specs: Iterable[TensorSpec]) -> list[TensorShape]:
    return [TensorShape(spec.name, spec.datatype.name, spec.shape) for spec in specs]


class Argument(Protocol):
    """An input or output as ONNX Runtime describes it (`onnxruntime.NodeArg`)."""

    @property
    def name(self) -> str:
        """As in the model."""

    @property
    def type(self) -> str:
        """`tensor(float)`, `seq(map(int64,tensor(float)))`, and so on."""

    @property
    def shape(self) -> list[int | str | None]:
        """A number, a symbolic name, or None for each dimension; empty also when the model gives none."""


class Session(Protocol):
    """The part of `onnxruntime.InferenceSession` that tells the signature."""

    def get_inputs(self) -> list[Argument]:
        """The inputs without those that have an initializer."""

    def get_outputs(self) -> list[Argument]:
        """The outputs."""


def read(session: Session, *, max_batch_size: int) -> Signature:
    """Reads the signature of a loaded model.

    Args:
        session: The model, an `onnxruntime.InferenceSession`.
        max_batch_size: What `Signature.max_batch_size` is for a model that can be batched.

    Returns:
        The signature.

    Raises:
        LoadRefused: An input or output is not a tensor, or of a type that the Open Inference
            Protocol cannot carry; two have one name; there is no output.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if not outputs:
        raise LoadRefused("the model has no output; export it with at least one")
    return Signature(
        inputs=_specs(inputs, "input"),
        outputs=_specs(outputs, "output"),
        max_batch_size=max_batch_size if has_batch(_dims(inputs), _dims(outputs)) else 0,
    )


def _dims(arguments: Sequence[Argument]) -> list[Dims]:
    return [argument.shape for argument in arguments]


def _size(size: int | str | None) -> int:
    return size if isinstance(size, int) and size >= 0 else -1


def _specs(arguments: Iterable[Argument], kind: str) -> tuple[TensorSpec, ...]:
    specs: dict[str, TensorSpec] = {}
    for argument in arguments:
        if not argument.name:
            raise LoadRefused(f"an {kind} of the model has no name; name every {kind} at export")
        if argument.name in specs:
            raise LoadRefused(f"two {kind}s are called {argument.name!r}; give each its own name at export")
        specs[argument.name] = TensorSpec(
            argument.name,
            _datatype(argument, kind),
            tuple(map(_size, argument.shape)),
        )
    return tuple(specs.values())


def _datatype(argument: Argument, kind: str) -> Datatype:
    datatype = from_onnx(argument.type)
    if datatype is not None:
        return datatype
    what = f"{kind} {argument.name!r} is {argument.type}"
    if "map(" in argument.type:
        raise LoadRefused(
            f"{what}: maps cannot be carried by the Open Inference Protocol. Export a plain tensor: "
            'with skl2onnx pass options={id(model): {"zipmap": False}} to to_onnx or convert_sklearn; '
            "elsewhere remove the ZipMap node and make its input the output"
        )
    if argument.type.startswith("seq("):
        raise LoadRefused(
            f"{what}: sequences cannot be carried by the Open Inference Protocol. Export tensors: "
            "join the sequence into one tensor (ConcatFromSequence), or make each element an output "
            'of its own; with skl2onnx pass options={id(model): {"zipmap": False}}'
        )
    if argument.type.startswith("optional("):
        raise LoadRefused(
            f"{what}: optional values cannot be carried by the Open Inference Protocol. "
            f"Export the {kind} as a plain tensor that is always there"
        )
    if argument.type.startswith("sparse_tensor("):
        raise LoadRefused(f"{what}: export a dense tensor instead")
    raise LoadRefused(
        f"{what}, a type that cannot be carried; cast it inside the model (a Cast node next to the {kind}) "
        f"to one of {', '.join(DATATYPES)}"
    )
