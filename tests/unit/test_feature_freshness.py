"""The rule of ages, and the memory it is applied to."""

from __future__ import annotations

import itertools
import math

import feature_reads
import pytest
from hedgerow_server.features.counts import AGE_BOUNDS
from hedgerow_server.features.freshness import (
    MAX_SKEW,
    Bounds,
    Freshness,
    Known,
    is_current,
    judge,
    since,
)
from hedgerow_server.features.local import OVERHEAD, LocalValues
from hedgerow_server.features.view import View
from hypothesis import given
from hypothesis import strategies as st

NOW = 1000.0
BOUNDS = Bounds(ttl=60.0, stale_ttl=3600.0)


def known(age: float, *, row: bytes | None = b"row", event_age: float = 0.0) -> Known:
    return Known(row, NOW - age, NOW - event_age, NOW)


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0, Freshness.FRESH),
        (60, Freshness.FRESH),
        (60.001, Freshness.STALE),
        (3600, Freshness.STALE),
        (3600.001, Freshness.DEFAULT),
    ],
)
def test_a_value_is_fresh_then_stale_then_gone(age, expected):
    assert judge(known(age), BOUNDS, NOW) is expected


def test_nothing_known_is_the_default():
    assert judge(None, BOUNDS, NOW) is Freshness.DEFAULT


def test_a_confirmed_absence_is_the_default_and_needs_no_question_for_a_while():
    absent = known(30, row=None)
    assert judge(absent, BOUNDS, NOW) is Freshness.DEFAULT
    assert is_current(absent, BOUNDS, NOW)
    assert not is_current(known(61, row=None), BOUNDS, NOW)


def test_a_value_whose_event_is_too_long_ago_counts_as_missing():
    bounds = Bounds(60.0, 3600.0, max_age=600.0)
    assert judge(known(1, event_age=600), bounds, NOW) is Freshness.FRESH
    assert judge(known(1, event_age=601), bounds, NOW) is Freshness.DEFAULT


def test_the_same_ttls_leave_no_room_for_stale():
    bounds = Bounds(60.0, 60.0)
    assert judge(known(60), bounds, NOW) is Freshness.FRESH
    assert judge(known(60.001), bounds, NOW) is Freshness.DEFAULT


def test_the_worst_of_several_is_the_largest():
    assert max(Freshness.FRESH, Freshness.DEFAULT, Freshness.STALE) is Freshness.DEFAULT
    assert [freshness.label for freshness in Freshness] == ["fresh", "stale", "default"]


def test_a_moment_of_another_clock_keeps_its_age():
    assert since(5000.0, wall=5090.0, monotonic=NOW) == NOW - 90


def test_a_moment_in_the_near_future_is_now():
    """Two servers' clocks differ; a value never looks younger than new."""
    assert since(5000.0 + MAX_SKEW, wall=5000.0, monotonic=NOW) == NOW


def test_a_moment_in_the_far_future_has_no_age():
    assert since(5000.0 + MAX_SKEW + 0.1, wall=5000.0, monotonic=NOW) is None


ages = st.floats(0, 5000)


@given(
    st.lists(st.none() | st.builds(known, ages, row=st.sampled_from([b"row", None]), event_age=ages)),
    st.sampled_from([0.0, 600.0]),
)
def test_what_is_served_and_counted_is_by_the_age_of_each(values, max_age):
    view = View(feature_reads.view(ttl=60, stale_ttl=3600, max_age=max_age))
    rows, worst = view.serve(values, NOW)
    judged = [judge(value, view.bounds, NOW) for value in values]
    good = [(one, how) for one, how in zip(values, judged, strict=True) if how is not Freshness.DEFAULT]
    assert rows == [
        view.rows.default_row if how is Freshness.DEFAULT else one.row
        for one, how in zip(values, judged, strict=True)
    ]
    assert worst is max(judged, default=Freshness.FRESH)
    assert view.counts.reads == [judged.count(how) for how in Freshness]
    assert view.counts.age_sum == pytest.approx(sum(NOW - one.confirmed for one, _ in good))
    at_most = [sum(NOW - one.confirmed <= bound for one, _ in good) for bound in (*AGE_BOUNDS, math.inf)]
    assert list(itertools.accumulate(view.counts.age_buckets)) == at_most


def test_memory_is_bounded_in_bytes_and_forgets_the_least_used():
    local = LocalValues(3 * (OVERHEAD + 100))
    for key in (b"a", b"b", b"c"):
        local.put({key: known(0, row=bytes(100))})
    local.get(b"a")
    local.put({b"d": known(0, row=bytes(100))})
    assert local.get(b"b") is None
    assert local.get(b"a") is not None
    assert len(local) == 3
    local.put({b"d": known(0, row=None)})
    assert local.bytes == 3 * OVERHEAD + 200
    local.put({b"huge": known(0, row=bytes(10_000))})
    assert len(local) == local.bytes == 0
