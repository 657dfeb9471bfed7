"""The time a request gets."""

from __future__ import annotations

import pytest
from hedgerow_server.errors import DeadlineExceeded, InvalidTensor
from hedgerow_server.gate.deadlines import Deadlines
from hypothesis import given
from hypothesis import strategies as st

DEADLINES = Deadlines(default=10, maximum=60)


@pytest.mark.parametrize(
    ("remaining", "timeout_us", "seconds"),
    [
        (None, 0, 10),
        (1e7, 0, 10),  # grpcio's way of saying none
        (2.5, 0, 2.5),
        (600, 0, 60),
        (None, 1_500_000, 1.5),
        (None, 10**15, 60),
        (None, 30_000_000, 30),
        (2.0, 5_000_000, 2.0),
        (5.0, 2_000_000, 2.0),
        (1e7, 30_000_000, 30),
        (None, 1, 1e-6),
    ],
)
def test_the_shortest_of_what_the_caller_says_counts_up_to_the_maximum(
    remaining: float | None, timeout_us: int, seconds: float
) -> None:
    assert DEADLINES.end(1000.0, remaining, timeout_us) == pytest.approx(1000.0 + seconds)


@pytest.mark.parametrize("remaining", [0.0, -1e-9, -100.0])
def test_a_deadline_that_has_passed_is_told_so(remaining: float) -> None:
    with pytest.raises(DeadlineExceeded, match="nothing was run"):
        DEADLINES.end(1000.0, remaining, 0)


def test_a_negative_timeout_is_refused_with_its_unit() -> None:
    with pytest.raises(InvalidTensor, match="-5 microseconds"):
        DEADLINES.end(1000.0, None, -5)


@given(
    st.one_of(st.none(), st.floats(allow_nan=False)),
    st.integers(-(2**63), 2**64 - 1),
)
def test_whatever_a_caller_says_its_time_is_bounded(remaining: float | None, timeout_us: int) -> None:
    try:
        end = DEADLINES.end(0.0, remaining, timeout_us)
    except (DeadlineExceeded, InvalidTensor):
        return
    assert 0 < end <= 60
