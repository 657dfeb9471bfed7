"""Inputs to try a model with: the sample of serving.yaml, or made-up ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from hedgerow_protos.hedgerow_control_pb2 import Warmup, WarmupTensor

from .refusal import LoadRefused
from .signature import Signature, TensorSpec

Feeds = dict[str, npt.NDArray[Any]]

#: Sizes tried for dimensions that vary, until the model answers: vision models need a multiple
#: of 32, audio models a frame of 256. The first is the one that costs nothing.
_SIZES = (1, 32, 64, 256)
_MOST_ELEMENTS = 1 << 28
_SEED = 20


def samples(signature: Signature, warmup: Warmup) -> Iterator[Feeds]:
    """Samples to try, likeliest first: what `warmup` names, zeros for the rest.

    Where the model can be batched, all inputs have the same number of rows: one, unless `warmup`
    has more.

    Raises:
        LoadRefused: `warmup` does not fit the signature.
    """
    names = [spec.name for spec in signature.inputs]
    for name in warmup.inputs:
        if name not in names:
            raise LoadRefused(
                f"the warm-up sample names the input {name!r}, which the model does not have; "
                f"its inputs are {', '.join(names) or 'none'}"
            )
    given = {
        spec.name: _given(spec, warmup.inputs[spec.name])
        for spec in signature.inputs
        if spec.name in warmup.inputs
    }
    missing = [spec for spec in signature.inputs if spec.name not in given]
    is_batched = signature.max_batch_size > 0
    rows = {value.shape[0] for value in given.values()} if is_batched else set()
    if len(rows) > 1:
        raise LoadRefused(
            f"the inputs of the warm-up sample have different numbers of rows: {sorted(rows)}; "
            "give each the same first dimension"
        )
    varies = any(-1 in spec.shape[is_batched:] for spec in missing)
    for size in _SIZES if varies else _SIZES[:1]:
        zeros = {}
        for spec in missing:
            shape = [size if dim < 0 else dim for dim in spec.shape]
            if is_batched:
                shape[0] = next(iter(rows), 1)
            zeros[spec.name] = _zeros(spec, shape)
        yield {name: given[name] if name in given else zeros[name] for name in names}


def _zeros(spec: TensorSpec, shape: list[int]) -> npt.NDArray[Any]:
    if math.prod(shape) > _MOST_ELEMENTS:
        raise LoadRefused(
            f"input {spec.name!r} of shape {list(spec.shape)} is too large to make up; "
            "give a warm-up sample in serving.yaml"
        )
    return np.full(shape, "" if spec.datatype.name == "BYTES" else 0, spec.datatype.dtype)


def _given(spec: TensorSpec, tensor: WarmupTensor) -> npt.NDArray[Any]:
    what = f"the warm-up sample's input {spec.name!r}"
    shape = tuple(tensor.shape) or tuple(1 if dim < 0 else dim for dim in spec.shape)
    if len(shape) != len(spec.shape) or any(
        size != declared if declared >= 0 else size < 1
        for size, declared in zip(shape, spec.shape, strict=False)
    ):
        raise LoadRefused(f"{what} has shape {list(shape)}, the model takes {list(spec.shape)}")
    count = math.prod(shape)
    if count > _MOST_ELEMENTS:
        raise LoadRefused(f"{what} has {count} elements; at most {_MOST_ELEMENTS} are allowed")
    is_text = spec.datatype.name == "BYTES"
    if tensor.values if is_text else tensor.strings:
        wanted = "strings, not values" if is_text else "values, not strings"
        raise LoadRefused(f"{what} is {spec.datatype.name}; give {wanted}")
    elements: list[str] | list[float] = list(tensor.strings) if is_text else list(tensor.values)
    elements = elements or ([""] if is_text else [0.0])
    if len(elements) not in (1, count):
        raise LoadRefused(
            f"{what} has {len(elements)} values, but its shape {list(shape)} holds {count}; "
            "give as many, or one for all"
        )
    source = np.array(elements, dtype=object if is_text else np.float64)
    with np.errstate(all="ignore"):
        converted = source.astype(spec.datatype.dtype)
    if spec.datatype.dtype.kind in "iub" and not np.array_equal(converted, source):
        raise LoadRefused(f"{what} has values that are no {spec.datatype.name}")
    return np.broadcast_to(converted, shape).copy() if len(elements) == 1 else converted.reshape(shape)


def rows_of(feeds: Feeds) -> list[Feeds]:
    """At most two rows of a batched sample, each as a batch of one."""
    count = min((value.shape[0] for value in feeds.values()), default=0)
    return [{name: value[row : row + 1] for name, value in feeds.items()} for row in range(min(count, 2))]


def vary(signature: Signature, rows: list[Feeds]) -> Iterator[Feeds]:
    """The rows, then made-up ones; never the same row twice.

    The made-up rows differ widely in size, so that a model which takes its
    scale from the whole batch shows it. Integers become 0 or 1, or stay what
    they were: they are often indices.
    """
    seen: list[Feeds] = []
    source = np.random.default_rng(_SEED)
    made_up = (
        {
            spec.name: _noise(rows[0][spec.name], scale, source, keep_integers=keep_integers)
            for spec in signature.inputs
        }
        for keep_integers in (False, True)
        for scale in (10.0, 1.0)
    )
    for row in chain(rows, made_up):
        if not any(all(np.array_equal(row[name], old[name]) for name in row) for old in seen):
            seen.append(row)
            yield row


def _noise(
    value: npt.NDArray[Any], scale: float, source: np.random.Generator, *, keep_integers: bool
) -> npt.NDArray[Any]:
    if value.dtype.kind == "f":
        # One row around zero, one above it: some models take the logarithm.
        noise = source.normal(0.0, scale, value.shape) if scale > 1 else source.random(value.shape)
        with np.errstate(over="ignore"):
            return (value + noise).astype(value.dtype)
    if value.dtype.kind == "O":
        return np.full(value.shape, "a" if scale > 1 else "b", dtype=object)
    return value if keep_integers else source.integers(0, 2, value.shape).astype(value.dtype)


def describe(feeds: Feeds) -> str:
    """The names and shapes of a sample, for a message."""
    return (
        ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feeds.items()) or "no input"
    )
