"""What a rule must give for an output of a model, and how it becomes the tensor that the model would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hedgerow_protos.feature_datatypes import DTYPES
from hedgerow_protos.rule_expression import EvaluationError, Expression
from hedgerow_protos.rule_variables import kind_of
from hedgerow_protos.tensor_shape import TensorShape

#: Other numbers of CEL that an output of numbers takes as well. Nothing is rounded to a whole number.
_ALSO = {"double": ("int", "uint"), "int": ("uint",), "uint": ("int",)}

#: A row of an output: a number, bool or text, or the array of a row that has several.
Row = Any


class RuleOutput:
    """One output of a model, as rules fill it.

    Args:
        shape: Of the output.
        batched: Whether its dimension 0 is the batch, so that an expression gives one row of it; else it
            gives all of it.
        finite: A NaN or infinity will not do, as the model's policy rejects it.

    Attributes:
        name: Of the output.
        wanted: What expressions must give, for people.
    """

    def __init__(self, shape: TensorShape, *, batched: bool, finite: bool) -> None:
        self.name = shape.name
        self._batched = batched
        dims = shape.shape[1:] if batched else shape.shape
        #: One element is written as itself, however many dimensions of 1 it has.
        self._single = all(size == 1 for size in dims)
        self._dims = () if self._single else dims
        self._whole = dims
        self._kind = kind_of(shape.datatype)
        self._dtype = np.dtype(object) if self._kind == "string" else DTYPES[shape.datatype]
        rank = len(self._dims)
        self._types = {
            f"{'list(' * rank}{kind}{')' * rank}" for kind in (self._kind, *_ALSO.get(self._kind, ()))
        }
        self._range = _range(self._dtype, finite=finite)
        sizes = " x ".join("any" if size < 0 else str(size) for size in self._dims)
        self.wanted = f"{'list(' * rank}{self._kind}{')' * rank}" + (
            f" with {sizes} elements" if rank else ""
        )

    def problem(self, expression: Expression) -> str | None:
        """Why an expression will not do for the output whatever the row; None if it will."""
        if expression.type not in self._types:
            hint = ""
            if self._kind in ("int", "uint") and expression.type.endswith(("double", "double)")):
                hint = "; int() cuts a number off to a whole one"
            if "dyn" in expression.type:
                hint = "; its elements are of several types or none"
            return f"it gives {expression.type}; the output takes {self.wanted}{hint}"
        for given, size in zip(expression.literal, self._dims, strict=False):
            if size not in (-1, given):
                return f"it lists {given} element{'s' * (given != 1)}; the output takes {self.wanted}"
        return None

    def row(self, value: object) -> Row:
        """One row of the output from the value of an expression without `problem`.

        Raises:
            EvaluationError: The value is out of the datatype's range, not finite where it must be, or of
                another size.
        """
        if not self._single:
            return self._array(value)
        if self._range is not None and not self._range[0] <= cast("float", value) <= self._range[1]:
            raise EvaluationError(f"{value} is out of the range of output {self.name!r}")
        return value

    def _array(self, value: object) -> npt.NDArray[Any]:
        # Whole numbers of CEL are signed or unsigned; both fit only Python's.
        kept = self._dtype if self._dtype.kind in "fb" else np.dtype(object)
        try:
            with np.errstate(over="ignore"):
                exact = np.array(value, kept)
        except (ValueError, OverflowError):
            raise EvaluationError(f"output {self.name!r} would have rows of several lengths") from None
        if exact.ndim != len(self._dims) or any(
            size not in (-1, given) for given, size in zip(exact.shape, self._dims, strict=True)
        ):
            raise EvaluationError(
                f"output {self.name!r} would have the shape {list(exact.shape)}; it takes {self.wanted}"
            )
        if self._range is not None and exact.size:
            low, high = self._range
            if not (exact.min() >= low and exact.max() <= high):
                raise EvaluationError(f"a value is out of the range of output {self.name!r}")
        return exact if exact.dtype == self._dtype else exact.astype(self._dtype)

    def stack(self, rows: Sequence[Row]) -> npt.NDArray[Any]:
        """The output's tensor from its rows; of a model without a batch, the only one is all of it.

        Raises:
            EvaluationError: A dimension that varies has several sizes.
        """
        if self._single:
            array = np.empty(len(rows), self._dtype)
            with np.errstate(over="ignore"):
                array[:] = rows
            return array.reshape((len(rows), *self._whole) if self._batched else self._whole)
        if not self._batched:
            only: npt.NDArray[Any] = rows[0]
            return only
        if len({row.shape for row in rows}) > 1:
            raise EvaluationError(
                f"rows of output {self.name!r} have several sizes; those of one request must be alike"
            )
        return np.stack(rows)


def _range(dtype: np.dtype[Any], *, finite: bool) -> tuple[float, float] | None:
    """The lowest and highest value that will do; None: any."""
    if dtype.kind in "iu":
        whole = np.iinfo(dtype)
        return int(whole.min), int(whole.max)
    if dtype.kind == "f" and finite:
        # NaN is not between them either.
        real = np.finfo(dtype)
        return float(real.min), float(real.max)
    return None
