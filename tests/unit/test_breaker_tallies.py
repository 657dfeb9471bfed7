"""Calls that ask a circuit breaker for no leave: what is tallied of them, and what it would have said."""

from __future__ import annotations

from breaker_calls import POLICY, Time, call, trip
from hedgerow_protos.breaker import Breaker, State
from hypothesis import given
from hypothesis import strategies as st


def end(breaker: Breaker, *, failed: bool) -> None:
    """As those do who make too many calls for a token each: good ones are told only while it matters."""
    if failed:
        breaker.tally(1, failed=1, reason="broken")
    elif breaker.is_wary:
        breaker.tally(1)


@given(
    calls=st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 0.3, 1.0, 6.0]), st.booleans()), min_size=1, max_size=60
    )
)
def test_tallied_calls_count_as_those_with_a_token_do(calls):
    """Once one has failed; the good ones before it are those that nobody told."""
    time = Time()
    tallied, tokens = Breaker("one", POLICY, time), Breaker("other", POLICY, time)
    for seconds, failed in calls:
        time.now += seconds
        counts = failed or tallied.is_wary
        assert tallied.refuses() is tokens.refuses()
        if tallied.state is not State.CLOSED:
            end(tallied, failed=failed)  # of a call that began before it opened
            assert tallied.state is not State.CLOSED
            continue
        end(tallied, failed=failed)
        if counts:
            call(tokens, fails=failed)
        assert (tallied.state, tallied.trips) == (tokens.state, tokens.trips)


def test_good_calls_matter_only_for_a_while_after_a_failure(breaker, time):
    assert not breaker.is_wary
    end(breaker, failed=True)
    assert breaker.is_wary
    time.now += POLICY.window / 2
    end(breaker, failed=False)
    assert breaker.is_wary
    time.now += POLICY.window
    end(breaker, failed=False)
    assert not breaker.is_wary


def test_what_is_tallied_for_a_breaker_that_is_open_or_half_open_changes_nothing(breaker, time):
    """Those calls began before it opened; leave is what probes have."""
    trip(breaker)
    breaker.tally(100)
    breaker.tally(100, failed=100)
    assert breaker.trips == 1
    time.now += POLICY.open_for
    probe = breaker.acquire()
    breaker.tally(100, failed=100)
    assert breaker.state is State.HALF_OPEN
    probe.success()


def test_it_is_not_wary_when_it_closes_again(breaker, time):
    for _ in range(POLICY.minimum):
        end(breaker, failed=True)
    assert breaker.state is State.OPEN
    assert not breaker.is_wary
    assert breaker.reason.endswith("the last: broken")
    time.now += POLICY.open_for
    for _ in range(POLICY.probes):
        call(breaker)
    assert not breaker.is_wary


def test_a_share_of_many_is_told_by_batches_as_by_single_calls(breaker):
    """A batch of which some failed: all of its calls count once."""
    breaker.tally(1, failed=1)
    breaker.tally(7)
    assert breaker.state is State.CLOSED, "one of eight"
    breaker.tally(10, failed=9)
    assert breaker.state is State.OPEN
    assert breaker.reason == "10 of 18 calls failed"


def test_refuses_tells_what_acquire_would_do_and_changes_nothing(breaker, time):
    assert not breaker.refuses()
    trip(breaker)
    assert breaker.refuses()
    time.now += POLICY.open_for
    assert not breaker.refuses()
    assert breaker.state is State.OPEN
    probe = breaker.acquire()
    assert breaker.refuses()
    probe.ignore()
    assert not breaker.refuses()
    assert breaker.refused == 0
