"""How long a request waits for its hedge: latencies in buckets, their percentiles, and the delay."""

from __future__ import annotations

import math
import random

from hedgerow_protos.hedging import Budget, HedgeDelay, Percentiles, bucket
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

#: Seconds, a factor of about 1.3 apart, as a histogram of latencies has them.
BOUNDS = [1e-4 * 1.3**step for step in range(52)]


def histogram(seconds):
    counts = [0] * (len(BOUNDS) + 1)
    for one in seconds:
        counts[bucket(BOUNDS, one)] += 1
    return counts


@given(st.floats(0, 1e9, exclude_min=True))
def test_buckets_hold_what_is_not_above_their_bound(seconds):
    assume(seconds > 0)
    place = bucket(BOUNDS, seconds)
    assert place == len(BOUNDS) or seconds <= BOUNDS[place]
    assert place == 0 or seconds > BOUNDS[place - 1]


# Percentiles.


class PercentilesMachine(RuleBasedStateMachine):
    """As the exact percentiles of what happened since the window began, to a bucket's width."""

    WINDOW = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.percentiles = Percentiles(BOUNDS, self.WINDOW)
        self.counts = histogram([])
        #: What came since the last update, and before that by the update that first saw it.
        self.new: list[float] = []
        self.seen: list[tuple[float, float]] = []
        self.updates: list[float] = []

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds):
        self.now += seconds

    @rule(seconds=st.floats(1, 100))
    def pause(self, seconds):
        self.now += seconds

    @rule(some=st.lists(st.floats(1e-6, 200.0), max_size=40))
    def observe(self, some):
        for one in some:
            self.counts[bucket(BOUNDS, one)] += 1
        self.new += some

    @rule()
    def update(self):
        changed = self.percentiles.update(self.now, self.counts)
        assert changed == (not self.updates or self.now >= self.updates[-1] + self.WINDOW / Percentiles.STEPS)
        if not changed:
            return
        self.seen += [(self.now, one) for one in self.new]
        self.updates.append(self.now)
        self.new = []
        # The window begins at the last update that is a whole window ago, or with the first.
        begins = max((at for at in self.updates if at <= self.now - self.WINDOW), default=-math.inf)
        exact = sorted(one for at, one in self.seen if at > begins)
        assert self.percentiles.samples == len(exact)
        if not exact:
            assert self.percentiles.at(0.5) == math.inf
            return
        for quantile in (0.01, 0.5, 0.9, 0.98, 0.999, 1.0):
            found = self.percentiles.at(quantile)
            true = exact[max(0, math.ceil(quantile * len(exact) - 1e-9) - 1)]
            place = bucket(BOUNDS, true)
            low = BOUNDS[place - 1] if place else 0.0
            high = BOUNDS[place] if place < len(BOUNDS) else math.inf
            assert low <= found <= high, (quantile, true)
        assert self.percentiles.at(0.5) <= self.percentiles.at(0.98) <= self.percentiles.at(1.0)

    @invariant()
    def what_is_remembered_is_bounded(self):
        assert len(self.percentiles._taken) <= Percentiles.STEPS + 2


PercentilesMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPercentilesMachine = PercentilesMachine.TestCase


def test_the_first_samples_count_for_a_whole_window():
    """They are not forgotten at the second look, which would make a warm delay cold again."""
    percentiles = Percentiles(BOUNDS, 10.0)
    counts = histogram([0.01] * 600)
    percentiles.update(0.0, counts)
    for step in range(1, 20):
        percentiles.update(step / 2, counts)
        assert percentiles.samples == 600
    percentiles.update(11.0, counts)
    assert percentiles.samples == 0


# The delay.


def observed(seconds) -> Percentiles:
    percentiles = Percentiles(BOUNDS)
    percentiles.update(0.0, histogram(seconds))
    return percentiles


LATENCIES = st.lists(st.floats(1e-5, 30.0), min_size=1, max_size=50)


@given(
    after=st.floats(HedgeDelay.SHORTEST, 1.0),
    some=LATENCIES,
    repeated=st.integers(1, 600),
    share=st.sampled_from([0.001, 0.02, 0.05]),
    spent=st.integers(0, 10),
)
def test_the_delay_keeps_its_bounds(after, some, repeated, share, spent):
    budget = Budget(share)
    for _ in range(spent):
        budget.withdraw()
    latencies = observed(some * repeated)
    seconds = HedgeDelay(after, budget, adaptive=True).seconds(latencies)
    assert HedgeDelay.SHORTEST <= seconds <= after
    if len(some) * repeated < HedgeDelay.WARM:
        assert seconds == after, "cold"
    assert HedgeDelay(after, budget).seconds(latencies) == after, "fixed"


@given(some=LATENCIES, left=st.lists(st.integers(0, 10), min_size=2, max_size=2, unique=True))
def test_the_emptier_the_budget_the_later_the_hedge(some, left):
    """So that what is left goes to the slowest requests."""
    latencies = observed(some * HedgeDelay.WARM)

    def delay(tokens):
        budget = Budget(0.02)
        for _ in range(10 - tokens):
            budget.withdraw()
        return HedgeDelay(10.0, budget, adaptive=True).seconds(latencies)

    assert delay(min(left)) >= delay(max(left))


def test_an_empty_budget_is_spent_on_the_slowest():
    latencies = observed([0.001 * (1 + step / 1000) ** 4 for step in range(1000)])
    budget = Budget(0.02)
    full = HedgeDelay(1.0, budget, adaptive=True).seconds(latencies)
    while budget.withdraw():
        pass
    assert HedgeDelay(1.0, budget, adaptive=True).seconds(latencies) > full


def test_no_delay_is_below_what_timers_have():
    instant = observed([1e-5] * 1000)
    assert HedgeDelay(0.03, Budget(0.02), adaptive=True).seconds(instant) == HedgeDelay.SHORTEST


def test_a_host_that_is_slow_all_the_time_does_not_switch_hedging_off():
    """Its percentile is its slowness (Cassandra-14293); the cap holds all the same."""
    slow = observed([0.5] * 2000)
    assert HedgeDelay(0.03, Budget(0.02), adaptive=True).seconds(slow) == 0.03
    beyond = observed([1e6] * 2000)
    assert HedgeDelay(0.03, Budget(0.02), adaptive=True).seconds(beyond) == 0.03


def test_the_adaptive_delay_is_what_the_budgets_share_of_requests_is_slower_than():
    choose = random.Random(5)
    some = [choose.lognormvariate(math.log(0.003), 0.5) for _ in range(20_000)]
    delay = HedgeDelay(0.03, Budget(0.02), adaptive=True).seconds(observed(some))
    slower = sum(one > delay for one in some) / len(some)
    assert 0.005 < slower <= 0.02
