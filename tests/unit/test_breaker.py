"""The circuit breaker in made-up time: when it opens, whom it probes, when it closes."""

from __future__ import annotations

import pytest
from breaker_calls import POLICY, call, trip
from hedgerow_protos.breaker import Breaker, State


def test_opens_when_half_of_the_calls_fail_and_says_why(breaker):
    for fails in (False, True, False):
        call(breaker, fails=fails)
    assert breaker.state is State.CLOSED
    call(breaker, fails=True)
    assert breaker.state is State.OPEN
    assert breaker.reason == "2 of 4 calls failed; the last: no route"
    assert breaker.acquire() is None
    assert breaker.refused == 1


def test_few_calls_say_nothing(breaker):
    for _ in range(POLICY.minimum - 1):
        call(breaker, fails=True)
    assert breaker.state is State.CLOSED


def test_opens_when_half_of_the_calls_are_slow(breaker):
    for takes in (0.01, 0.2, 0.01, 0.2):
        call(breaker, takes=takes)
    assert breaker.state is State.OPEN
    assert "took longer than 0.1 s" in breaker.reason


def test_calls_that_hang_open_it_before_they_end(breaker, time):
    """A dependency that hangs ends no call; it must not take its timeout to be noticed."""
    hanging = [breaker.acquire() for _ in range(POLICY.minimum)]
    time.now += POLICY.slow_after + 0.001
    assert breaker.check() is State.OPEN
    for token in hanging:
        token.failure("timeout")
    assert breaker.trips == 1


def test_a_call_counted_as_overdue_counts_once(breaker, time):
    first = breaker.acquire()
    time.now += 0.2
    breaker.check()
    first.success()
    for _ in range(2):
        call(breaker)
    assert breaker.state is State.CLOSED, "one slow call of three"
    call(breaker, takes=0.2)
    assert breaker.state is State.OPEN, "two of four"


def test_what_happened_before_the_window_is_forgotten(breaker, time):
    for _ in range(POLICY.minimum - 1):
        call(breaker, fails=True)
    time.now += POLICY.window + 0.5
    for _ in range(POLICY.minimum - 1):
        call(breaker, fails=True)
    assert breaker.state is State.CLOSED


def test_lets_one_probe_at_a_time_through_after_its_time(breaker, time):
    trip(breaker)
    time.now += POLICY.open_for - 0.001
    assert breaker.acquire() is None
    time.now += 0.002
    probe = breaker.acquire()
    assert probe is not None
    assert breaker.state is State.HALF_OPEN
    assert breaker.acquire() is None
    probe.success()
    assert breaker.acquire() is not None


def test_closes_after_good_probes_in_a_row(breaker, time):
    trip(breaker)
    time.now += POLICY.open_for
    for _ in range(POLICY.probes):
        assert breaker.state is not State.CLOSED
        call(breaker)
    assert breaker.state is State.CLOSED
    assert breaker.reason == ""


@pytest.mark.parametrize("ending", [{"fails": True}, {"takes": 0.2}])
def test_a_failed_or_slow_probe_opens_it_again(breaker, time, ending):
    trip(breaker)
    time.now += POLICY.open_for
    call(breaker)
    call(breaker, **ending)
    assert breaker.state is State.OPEN
    assert breaker.trips == 2
    assert breaker.acquire() is None


def test_a_hanging_probe_opens_it_again(breaker, time):
    trip(breaker)
    time.now += POLICY.open_for
    assert breaker.acquire() is not None
    time.now += POLICY.slow_after + 0.001
    assert breaker.acquire() is None
    assert breaker.state is State.OPEN


def test_an_ignored_probe_makes_room_for_the_next(breaker, time):
    trip(breaker)
    time.now += POLICY.open_for
    breaker.acquire().ignore()
    assert breaker.state is State.HALF_OPEN
    assert breaker.acquire() is not None


def test_ignored_calls_do_not_count(breaker):
    for _ in range(3 * POLICY.minimum):
        breaker.acquire().ignore()
    for _ in range(POLICY.minimum - 1):
        call(breaker, fails=True)
    assert breaker.state is State.CLOSED


def test_calls_from_before_a_change_of_state_say_nothing(breaker, time):
    """A late answer to a call from before the outage is no probe, a late failure no relapse."""
    late = [breaker.acquire() for _ in range(2 * POLICY.minimum)]
    trip(breaker)
    time.now += POLICY.open_for
    late[0].failure("reset")
    for _ in range(POLICY.probes):
        call(breaker)
    for token in late[1:]:
        token.failure("reset")
    assert breaker.state is State.CLOSED


def test_tells_every_change_once(time):
    seen = []
    breaker = Breaker("store", POLICY, time, lambda it: seen.append((it.state, it.reason)))
    trip(breaker)
    time.now += POLICY.open_for
    for _ in range(POLICY.probes):
        call(breaker)
    assert [state for state, _ in seen] == [State.OPEN, State.HALF_OPEN, State.CLOSED]
