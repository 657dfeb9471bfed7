"""A request's tensors as the variables of rules, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hedgerow_protos.rule_cost import MOST_TEXT_BYTES, MOST_VARYING
from hedgerow_protos.rule_variables import Variable

from hedgerow_server.engine.signature import Signature
from hedgerow_server.engine.work import Part

#: UTF-8 bytes of all texts of a variable in one row.
MOST_TEXTS_BYTES = 16 * MOST_TEXT_BYTES


class RuleRows:
    """What rules read of one request.

    Args:
        variables: That they read.
        signature: Of the model.
        parts: The model's inputs, in its order, as `engine.work.Work` has them.
        shapes: Of these.

    Attributes:
        count: Rows; 1 for a model without a batch dimension, whose rules see a request whole.
    """

    def __init__(
        self,
        variables: Sequence[Variable],
        signature: Signature,
        parts: Sequence[Part],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        batched = signature.max_batch_size > 0
        self.count = shapes[0][0] if batched else 1
        self._columns: list[tuple[Variable, np.ndarray | None]] = []
        for variable in variables:
            part, spec = parts[variable.input], signature.inputs[variable.input]
            flat = part if isinstance(part, np.ndarray) else np.frombuffer(part, spec.datatype.dtype)
            array = _cut(variable, flat.reshape(shapes[variable.input]))
            self._columns.append((variable, array if array is None or batched else array[np.newaxis]))

    def values(self, first: int, end: int) -> list[dict[str, object]]:
        """The values of some rows, by the names of their variables.

        A variable is missing where its value is more than rules are given: a list of a varying size
        beyond `MOST_VARYING` elements, a text beyond `MOST_TEXT_BYTES` or with a NUL, which the CEL
        library would take for its end.
        """
        rows: list[dict[str, object]] = [{} for _ in range(end - first)]
        for variable, array in self._columns:
            if array is None:
                continue
            some = array[first:end]
            name = variable.name
            listed = (some if variable.dims else some.reshape(len(some))).tolist()
            if variable.kind != "string":
                for row, value in zip(rows, listed, strict=True):
                    row[name] = value
                continue
            for row, value, texts in zip(rows, listed, some, strict=True):
                if _fit(np.ravel(texts)):
                    row[name] = value
        return rows


def _cut(variable: Variable, array: np.ndarray) -> np.ndarray | None:
    """A variable's part of an input; None where the request has none of a size that will do."""
    columns = variable.columns
    if columns is not None and array.ndim == 2:
        if array.shape[1] != columns.of:
            # An input of a varying width that was sent itself, with another width than its columns have.
            return None
        array = (
            array[:, columns.first]
            if columns.width == 1
            else array[:, columns.first : columns.first + columns.width]
        )
    if min(variable.dims, default=0) < 0:
        dims = array.shape[-len(variable.dims) :]
        if math.prod(dims) > MOST_VARYING:
            return None
    return array


def _fit(texts: Sequence[str] | np.ndarray) -> bool:
    total = 0
    for text in texts:
        if "\0" in text:
            return False
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        total += size
        if size > MOST_TEXT_BYTES or total > MOST_TEXTS_BYTES:
            return False
    return True
