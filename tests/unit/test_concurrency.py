"""The limit on requests under way, from made-up waits: no clock, no sleep."""

from __future__ import annotations

import math

import pytest
from hedgerow_server.gate.concurrency import DEFAULT_BOUNDS, ONE_TURN, OPEN_TO_ALL, Bounds, ConcurrencyLimit
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

#: Requests of five in a run of 10 ms, 500 a second, from callers with a second.
RUN, LEFT, IN_A_RUN, RATE = 0.01, 1.0, 5, 500.0
#: A fifth of the second.
TARGET = 0.2


def threaded(bounds: Bounds = DEFAULT_BOUNDS) -> ConcurrencyLimit:
    limit = ConcurrencyLimit(bounds)
    limit.move(threaded=True)
    return limit


def feed(
    limit: ConcurrencyLimit,
    waited: float,
    in_flight: int,
    *,
    begin: float = 0.0,
    seconds: float = 1.0,
    left: float = LEFT,
    run: float = RUN,
) -> None:
    """Runs begin for some time, every 10 ms, and their requests have all waited as long."""
    for i in range(round(seconds * RATE / IN_A_RUN)):
        limit.sample(begin + i * IN_A_RUN / RATE, waited, run, left, IN_A_RUN, in_flight)


def test_what_was_never_seen_overloaded_is_not_limited() -> None:
    limit = threaded()
    feed(limit, waited=0.0, in_flight=20)
    assert limit.value == Bounds().maximum


def test_a_standing_queue_brings_it_down_to_what_waits_for_as_long_as_it_may() -> None:
    limit = threaded()
    feed(limit, waited=0.6, in_flight=200, seconds=0.5)
    assert limit.value == pytest.approx(RATE * (TARGET + RUN), rel=0.02)


def test_one_wait_that_was_short_shows_that_no_queue_stands() -> None:
    limit = threaded()
    for i in range(300):
        limit.sample(i * 0.01, 0.0 if i % 15 == 0 else 0.5, RUN, LEFT, IN_A_RUN, 300)
    assert limit.value == Bounds().maximum


def test_waits_from_before_the_limit_changed_do_not_count() -> None:
    """Those of a shorter queue would make it grow again before anybody has waited in the longer one."""
    limit = threaded()
    feed(limit, waited=0.5, in_flight=200, seconds=0.25)
    feed(limit, waited=0.0, in_flight=limit.value, begin=10.0, seconds=0.22)
    value = limit.value
    for i in range(40):
        limit.sample(10.3 + i * 0.01, 0.4 + i * 0.01, RUN, LEFT, IN_A_RUN, value)
    assert limit.value == value
    feed(limit, waited=0.0, in_flight=value, begin=11.0, seconds=0.22)
    assert limit.value > value


def test_it_doubles_while_it_is_used_and_nobody_waits() -> None:
    limit = threaded()
    feed(limit, waited=0.5, in_flight=3000, seconds=0.25)
    feed(limit, waited=0.5, in_flight=200, begin=1.0, seconds=0.25)
    value = float(limit.value)
    feed(limit, waited=0.0, in_flight=limit.value, begin=10.0, seconds=0.22)
    assert limit.value == pytest.approx(2 * value + math.sqrt(value), abs=2)


def test_the_nearer_it_is_to_its_target_the_less_it_grows() -> None:
    grown = []
    for waited in (0.0, TARGET / 2, TARGET * 0.9, TARGET):
        limit = threaded()
        feed(limit, waited=0.5, in_flight=200, seconds=0.25)
        value = limit.value
        feed(limit, waited=waited, in_flight=value, begin=10.0, seconds=0.22)
        grown.append(limit.value - value)
    assert grown == sorted(grown, reverse=True)
    assert grown[2] > grown[3] == 0


def test_a_moment_in_which_nothing_was_answered_halves_what_is_in_use() -> None:
    """The machine stood still: the rate of that moment would leave next to nothing."""
    limit = threaded()
    feed(limit, waited=0.5, in_flight=200, seconds=0.25)
    assert limit.value == 105
    for i in range(8):
        limit.sample(10.0 + i * 0.1, 0.5, RUN, LEFT, 1, 100)
    assert limit.value == 50


def test_it_does_not_grow_while_less_than_half_of_it_is_used() -> None:
    limit = threaded()
    feed(limit, waited=0.5, in_flight=3000, seconds=0.25)
    value = limit.value
    feed(limit, waited=0.0, in_flight=value // 2 - 1, begin=10.0, seconds=100.0)
    assert limit.value == value


@pytest.mark.parametrize(
    ("left", "run", "target"),
    [
        (1.0, 0.01, 0.2),  # a fifth of the time given
        (0.1, 0.03, 0.035),  # two runs would be 60 ms: half of what the run leaves
        (0.3, 0.05, 0.1),  # two runs
        (0.01, 0.001, 0.005),  # the shortest that counts as a wait
        (0.01, 0.02, 0.005),  # callers who cannot be answered at all
    ],
)
def test_how_long_requests_may_wait(left: float, run: float, target: float) -> None:
    """Just below it the limit stays, just above it falls."""
    for waited, falls in ((target * 0.99, False), (target * 1.01, True)):
        limit = threaded()
        feed(limit, waited, in_flight=100, left=left, run=run)
        assert (limit.value < Bounds().maximum) is falls, waited


def test_the_most_hurried_caller_counts() -> None:
    limit = threaded()
    for i in range(100):
        limit.sample(i * 0.01, 0.1, RUN, 0.2 if i % 8 == 0 else 10.0, IN_A_RUN, 100)
    assert limit.value < Bounds().maximum


def test_a_wait_for_company_is_no_queue() -> None:
    limit = ConcurrencyLimit(company=0.5)
    limit.move(threaded=True)
    feed(limit, waited=0.6, in_flight=100)
    assert limit.value == Bounds().maximum
    feed(limit, waited=0.71, in_flight=100, begin=5.0)
    assert limit.value < Bounds().maximum


def test_one_that_is_not_adaptive_stays_at_its_maximum() -> None:
    limit = threaded(Bounds(4, 100, adaptive=False))
    feed(limit, waited=5.0, in_flight=100)
    assert limit.value == 100


def test_a_model_on_the_loop_takes_a_turns_requests_whatever_was_learned_in_threads() -> None:
    limit = threaded()
    assert limit.ample == 1, "in threads each request is looked at"
    feed(limit, waited=0.5, in_flight=200)
    learned = limit.value
    limit.move(threaded=False)
    assert limit.ample == int(2 * ONE_TURN * OPEN_TO_ALL)
    assert limit.value == 2 * ONE_TURN
    limit.move(threaded=True)
    assert limit.value == learned


def test_a_model_on_the_loop_whose_queue_empties_between_samples_has_none_standing() -> None:
    limit = ConcurrencyLimit()
    for i in range(200):
        limit.sample(i * 0.01, 0.5, RUN, LEFT, IN_A_RUN, 3000)
        if limit.is_open:
            limit.emptied()
    assert limit.value == Bounds().maximum


def test_utilization_follows_the_wait_and_forgets_it() -> None:
    """At 1 callers wait as long as they may; a second after the last window only what is under way counts."""
    limit = threaded()
    feed(limit, waited=0.0, in_flight=10)
    assert limit.utilization(1.0, 10) < 0.01
    feed(limit, waited=0.19, in_flight=100, begin=2.0, seconds=3.0)
    assert 0.8 < limit.utilization(5.0, 100) < 1.0
    feed(limit, waited=0.9, in_flight=900, begin=5.0, seconds=3.0)
    assert limit.utilization(8.0, 0) > 1.0
    assert limit.utilization(10.0, 0) == 0.0


class Limiting(RuleBasedStateMachine):
    """Any waits, in any order, at any pace."""

    @initialize(minimum=st.integers(1, 50), more=st.integers(0, 5000), is_threaded=st.booleans())
    def begin(self, *, minimum: int, more: int, is_threaded: bool) -> None:
        self.bounds = Bounds(minimum, minimum + more)
        self.limit = ConcurrencyLimit(self.bounds)
        self.limit.move(threaded=is_threaded)
        self.now = 0.0

    @rule(
        seconds=st.floats(0, 0.5),
        waited=st.floats(0, 30),
        run=st.floats(1e-6, 10),
        left=st.floats(0, 60),
        requests=st.integers(1, 200),
        in_flight=st.integers(0, 6000),
        times=st.integers(1, 20),
    )
    def sample(
        self,
        seconds: float,
        waited: float,
        run: float,
        left: float,
        requests: int,
        in_flight: int,
        times: int,
    ) -> None:
        before = self.limit._limit
        for _ in range(times):
            self.now += seconds
            self.limit.sample(self.now, waited, run, left, requests, in_flight)
        if waited <= ConcurrencyLimit.SHORT and not self.limit.is_open:
            assert self.limit._limit >= min(before, self.bounds.maximum), "nobody has waited, nothing is cut"

    @rule(seconds=st.floats(0, 1000), in_flight=st.integers(0, 6000))
    def idle(self, seconds: float, in_flight: int) -> None:
        """Time alone changes nothing."""
        before = self.limit.value
        self.now += seconds
        assert self.limit.utilization(self.now, in_flight) >= 0
        assert self.limit.value == before

    @rule()
    def moves(self) -> None:
        self.limit.move(threaded=not self.limit.threaded)

    @precondition(lambda self: self.limit.is_open)
    @rule()
    def emptied(self) -> None:
        self.limit.emptied()

    @invariant()
    def stays_within_its_bounds(self) -> None:
        if not hasattr(self, "limit"):
            return
        assert self.bounds.minimum <= self.limit.value <= self.bounds.maximum
        assert self.limit.ample <= max(1, int(self.limit.value * OPEN_TO_ALL))


Limiting.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestLimiting = Limiting.TestCase
