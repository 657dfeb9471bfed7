"""What several rounds say together: the median, and how far the rounds lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of what the rounds gave, and the rounds themselves.

    Raises:
        ValueError: There is no value.
    """
    if not len(values):
        raise ValueError("no round, no spread")
    return {
        "median": float(np.median(values)),
        "lowest": float(min(values)),
        "highest": float(max(values)),
        "rounds": [float(value) for value in values],
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The spread of ours / theirs, round by round: the two of a round met the same machine.

    Raises:
        ValueError: The rounds do not pair up, or one of theirs is not positive.
    """
    if len(ours) != len(theirs) or not all(value > 0 for value in theirs):
        raise ValueError(f"no pairs: {list(ours)} and {list(theirs)}")
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def interleaved(rounds: int, subjects: Sequence[T]) -> Iterator[tuple[int, T]]:
    """Every subject once a round, in turn forwards and backwards, so that no place in the order helps."""
    for number in range(rounds):
        yield from ((number, subject) for subject in (subjects if number % 2 == 0 else subjects[::-1]))
