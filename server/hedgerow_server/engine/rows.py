"""Do the rows of a batch depend on each other?

If they do, a caller's answer would depend on who else called at that moment: a
model that normalises over the batch, quantises with the batch's range, or takes
the largest of all rows. Such a model must run each request alone.

Two things are checked with a few made-up rows. A row keeps its outputs when
only its companions change: same number of rows, same place, so the kernels do
the same sums and even the last bits should stay. And a row alone gives about
what it gives in a batch: only about, because the kernel for one row adds in
another order than the one for several, and a deep model may amplify that (0.6 %
in Magika's for a random file).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .refusal import text_of
from .sample import Feeds, rows_of, vary
from .signature import Signature, TensorSpec

Outputs = Sequence[npt.NDArray[Any]]
Run = Callable[[Feeds], Outputs]
#: A row, and what it gave alone.
Known = tuple[Feeds, Outputs]

#: Few, because a slow model runs them one by one.
_ROWS = 3
#: Largest difference with other companions, as a part of the output's largest value.
_SAME = {"FP16": 1e-3, "FP32": 1e-5, "FP64": 1e-10}
#: Largest difference between two kernels that compute the same, likewise; see Magika above.
_ROUNDING = {"FP16": 0.05, "FP32": 0.01, "FP64": 1e-6}
#: Largest difference between alone and in a batch, likewise.
_ALIKE = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """What the check found.

    Attributes:
        is_batchable: Each row of the inputs has its row in every output.
        is_independent: And rows of different requests may share a run.
        reason: Why not; empty if so.
    """

    is_batchable: bool
    is_independent: bool
    reason: str


def check(run: Run, signature: Signature, feeds: Feeds) -> Finding:
    """Runs a batched model on rows alone and together.

    Args:
        run: Runs the model; any exception is a failure.
        signature: Of the model.
        feeds: Inputs that it answers, of one row or more.

    Returns:
        The finding. In doubt the rows are not independent.
    """
    known = _run_alone(run, signature, feeds)
    if any(value.shape[:1] != (1,) for _, outputs in known for value in outputs):
        return _no_rows("one row in does not give one row out")
    if len(known) < 2:
        return _dependent(
            "it answers too few made-up rows to see that they do not depend on each other; "
            "give a warm-up sample of two different rows in serving.yaml"
        )
    one, other, watched = known[0], known[1], known[-1]
    # The watched row first, then last: a model that sums up along the batch shows it in one place only.
    for batch, changed, place in (
        ([watched, one, one], [watched, other, other], 0),
        ([one, one, watched], [other, other, watched], 2),
    ):
        try:
            before, after = (run(_join([row for row, _ in rows])) for rows in (batch, changed))
        except Exception as error:  # noqa: BLE001  (ONNX Runtime's exceptions have nothing else in common)
            return _no_rows(f"it fails on three rows: {text_of(error)}")
        if any(value.shape[:1] != (3,) for value in (*before, *after)):
            return _no_rows("three rows in do not give three rows out")
        for index, spec in enumerate(signature.outputs):
            size = _size_of(known, index)
            same = _SAME.get(spec.datatype.name, 0.0) * size
            if not (
                _is_near(before[index][place], after[index][place], same)
                and _is_alike(batch, before[index], index, _ALIKE * size)
                and _is_alike(changed, after[index], index, _ALIKE * size)
            ):
                return _dependent(f"output {spec.name!r} of a row changes with the other rows in the run")
    return Finding(is_batchable=True, is_independent=True, reason="")


def is_rounding(spec: TensorSpec, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two answers to one input, by other kernels, differ no more than sums in another order do.

    Labels may tip over where two are equally likely, so of what is no float only the shape counts.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        return True
    size = float(np.abs(one[np.isfinite(one)]).max(initial=0))
    return _is_near(one, other, _ROUNDING[spec.datatype.name] * size)


def _no_rows(reason: str) -> Finding:
    return Finding(is_batchable=False, is_independent=False, reason=reason)


def _dependent(reason: str) -> Finding:
    return Finding(is_batchable=True, is_independent=False, reason=reason)


def _run_alone(run: Run, signature: Signature, feeds: Feeds) -> list[Known]:
    known: list[Known] = []
    for row in vary(signature, rows_of(feeds)):
        try:
            known.append((row, run(row)))
        except Exception:  # noqa: BLE001, S112  (a made-up row may be one that the model rightly refuses)
            continue
        if len(known) == _ROWS:
            break
    return known


def _join(rows: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _size_of(known: list[Known], index: int) -> float:
    """The largest value of an output over the rows that ran alone; what cancels out is compared to it."""
    largest = 0.0
    for _, outputs in known:
        if outputs[index].dtype.kind == "f":
            finite = outputs[index][np.isfinite(outputs[index])]
            largest = max(largest, float(np.abs(finite).max(initial=0)))
    return largest


def _is_alike(rows: list[Known], together: npt.NDArray[Any], index: int, within: float) -> bool:
    """Whether an output of rows that ran together is about what each gave alone."""
    alone = [outputs[index] for _, outputs in rows]
    if any(value.shape[1:] != together.shape[1:] for value in alone):
        return False
    # Labels may tip over between the two, where two are equally likely.
    return together.dtype.kind != "f" or _is_near(np.concatenate(alone), together, within)


def _is_near(one: npt.NDArray[Any], other: npt.NDArray[Any], within: float) -> bool:
    """Whether no value differs by more than `within`, NaN and infinity being equal to themselves."""
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return np.array_equal(one, other)
    with np.errstate(invalid="ignore"):
        return np.allclose(
            one.astype(np.float64), other.astype(np.float64), rtol=0.0, atol=within, equal_nan=True
        )
