"""What opens a circuit breaker soon: bad calls in a row, and calls that are late by a limit of their own."""

from __future__ import annotations

import pytest
from breaker_calls import POLICY, call, trip
from hedgerow_protos.breaker import Breaker, Policy, State

ROW = Policy(window=5.0, minimum=20, in_a_row=5, silence=0.25, open_for=1.0, probes=3)


@pytest.fixture
def rower(time) -> Breaker:
    return Breaker("region", ROW, time)


def test_a_row_of_bad_calls_opens_it_though_the_window_is_full_of_good_ones(rower, time):
    """What goes silent after 5,000 good calls must not take half a window to be noticed."""
    for _ in range(5000):
        call(rower)
    silent = [rower.acquire(slow_after=0.25) for _ in range(5)]
    time.now += 0.26
    for token in silent[:4]:
        token.late()
    assert rower.state is State.CLOSED
    silent[4].late()
    assert rower.state is State.OPEN
    assert rower.reason == "5 calls in a row failed or were slow"


def test_a_good_call_ends_a_row(rower, time):
    for _ in range(4):
        for _ in range(4):
            call(rower, fails=True)
            time.now += 0.1
        call(rower)
    assert rower.state is State.CLOSED


def test_a_row_shorter_than_the_silence_is_none(rower, time):
    """Fifty calls that fail in one moment are one event, not fifty."""
    for _ in range(15):
        call(rower, fails=True)
    assert rower.state is State.CLOSED
    time.now += ROW.silence
    call(rower, fails=True)
    assert rower.state is State.OPEN


def test_late_calls_among_good_ones_are_no_row(rower, time):
    """They began long ago, but it answers: a tenth of slow calls is no outage, however they bunch."""
    late = [rower.acquire(slow_after=0.25) for _ in range(5)]
    for _ in range(30):
        time.now += 0.01
        call(rower)
    for token in late:
        token.late()
    assert rower.state is State.CLOSED
    time.now += ROW.silence
    call(rower, fails=True)
    assert rower.state is State.OPEN


def test_a_call_with_a_limit_of_its_own_is_slow_by_that(rower):
    """Calls of models that are slow by nature and of fast ones share a breaker."""
    for _ in range(ROW.minimum):
        rower.acquire(slow_after=10.0).success(2.0)
    assert rower.state is State.CLOSED
    for _ in range(ROW.minimum):
        rower.acquire(slow_after=0.1).success(0.2)
    assert rower.state is State.OPEN


def test_a_late_call_counts_once_and_is_not_good_in_the_end(breaker, time):
    first = breaker.acquire(slow_after=0.1)
    first.late()
    first.late()
    first.success(0.01)
    for _ in range(3):
        call(breaker)
    call(breaker, takes=0.2)
    assert breaker.state is State.CLOSED, "two slow calls of five"
    call(breaker, takes=0.2)
    assert breaker.state is State.OPEN, "three of six"


@pytest.mark.parametrize("how", ["late", "overdue"])
def test_a_probe_with_a_limit_of_its_own_that_hangs_opens_it_again(breaker, time, how):
    trip(breaker)
    time.now += POLICY.open_for
    probe = breaker.acquire(slow_after=3.0)
    time.now += 2.9
    assert breaker.acquire() is None
    assert breaker.state is State.HALF_OPEN
    if how == "late":
        probe.late()
    else:
        time.now += 0.2
        assert breaker.check() is State.OPEN
    assert breaker.state is State.OPEN
    probe.success()
    assert breaker.state is State.OPEN


def test_an_ended_call_is_not_late(breaker):
    for _ in range(2 * POLICY.minimum):
        token = breaker.acquire()
        token.success(0.01)
        token.late()
    assert breaker.state is State.CLOSED
