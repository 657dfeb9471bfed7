"""An input or output of a model as plain values, and which of its dimensions is the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Every dimension as a model declares it: a size, a name for one that varies, or neither.
Dims = Sequence[int | str | None]


class TensorShape(NamedTuple):
    """An input or output of a model.

    Attributes:
        name: As in the model.
        datatype: As the Open Inference Protocol names it.
        shape: Every dimension, the batch included; -1 for one that varies.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def has_batch(inputs: Sequence[Dims], outputs: Sequence[Dims]) -> bool:
    """Whether dimension 0 of every input and output is the batch, as far as their declarations tell.

    Args:
        inputs: The dimensions of each; none at all also stands for those that do not say.
        outputs: Likewise.
    """
    if not inputs or not all(dims and not _is_size(dims[0]) for dims in (*inputs, *outputs)):
        return False
    batch = {name for dims in inputs if (name := _name(dims[0]))}
    # Exporters that number their dimensions (tf2onnx, paddle2onnx) call an output's rows something
    # new. Only a name that some other dimension of an input has says that these are not the rows.
    others = {name for dims in inputs for size in dims[1:] if (name := _name(size))}
    rows = {name for dims in outputs if (name := _name(dims[0]))}
    return len(batch) <= 1 and not (rows - batch) & others


def _is_size(size: int | str | None) -> bool:
    return isinstance(size, int) and size >= 0


def _name(size: int | str | None) -> str:
    return size if isinstance(size, str) and size != "?" else ""
