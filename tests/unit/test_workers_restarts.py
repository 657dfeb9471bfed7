"""When a worker that ended is started again; time is an argument, nothing waits."""

from __future__ import annotations

from hedgerow_server.restarts import Restarts
from hypothesis import given
from hypothesis import strategies as st


def test_waits_double_from_a_tenth_of_a_second_to_ten():
    restarts = Restarts()
    delays = [restarts.ended(served_seconds=0) for _ in range(9)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]


def test_thirty_good_seconds_forgive_what_was_before():
    restarts = Restarts()
    for _ in range(6):
        restarts.ended(served_seconds=29.9)
    assert restarts.ended(served_seconds=29.9) > 0.1
    assert restarts.ended(served_seconds=30.0) == 0.1
    assert restarts.failures == 1


@given(st.lists(st.floats(min_value=0, max_value=1e9), max_size=2000))
def test_no_history_makes_the_wait_long_or_short(history):
    """Also years of failures overflow nothing."""
    restarts = Restarts()
    assert all(0.1 <= restarts.ended(served_seconds=served) <= 10 for served in history)
