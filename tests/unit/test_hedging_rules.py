"""The rules of hedging in made-up time: budget, percentiles, delay, race, and what is said in metadata."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hedgerow_protos.hedging import (
    LONGEST_PUSHBACK,
    Budget,
    HedgeDelay,
    Percentiles,
    Race,
    bucket,
    read_load,
    read_previous_attempts,
    read_pushback,
    write_load,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

#: Seconds, a factor of about 1.3 apart, as a histogram of latencies has them.
BOUNDS = [1e-4 * 1.3**step for step in range(52)]


def histogram(seconds):
    counts = [0] * (len(BOUNDS) + 1)
    for one in seconds:
        counts[bucket(BOUNDS, one)] += 1
    return counts


# Budget.


class BudgetMachine(RuleBasedStateMachine):
    """In every stretch of n requests: at most share * n + burst further attempts, and what is owed."""

    def __init__(self) -> None:
        super().__init__()
        self.budget: Budget | None = None
        #: Requests and attempts as they came: 1 is a request, -1 an attempt that was sent.
        self.events: list[int] = []

    @precondition(lambda self: self.budget is None)
    @rule(share=st.sampled_from([0.001, 0.02, 0.05, 0.3, 1.0]), burst=st.sampled_from([1.0, 3.5, 10.0]))
    def make(self, share, burst):
        self.budget = Budget(share, burst)

    @precondition(lambda self: self.budget is not None)
    @rule(requests=st.integers(0, 200))
    def deposit(self, requests):
        self.budget.deposit(requests)
        self.events += [1] * requests

    @precondition(lambda self: self.budget is not None)
    @rule(attempts=st.integers(1, 15))
    def withdraw(self, attempts):
        for _ in range(attempts):
            tokens = self.budget.tokens
            allowed = self.budget.withdraw()
            assert allowed == (tokens >= 1)
            if allowed:
                self.events.append(-1)

    @precondition(lambda self: self.budget is not None)
    @rule(attempts=st.integers(1, 15))
    def charge(self, attempts):
        """Made on credit: nothing more is allowed until it is paid for."""
        for _ in range(attempts):
            self.budget.charge()
            self.events.append(-1)

    @precondition(lambda self: self.budget is not None)
    @rule(meanwhile=st.sampled_from([0, 1, 1000]))
    def an_attempt_is_never_sent(self, meanwhile):
        """Its token comes back, and another attempt may be made."""
        if self.budget.withdraw():
            self.deposit(meanwhile)
            self.budget.refund()

    @invariant()
    def every_stretch_is_within_budget(self):
        # The worst stretch that ends now, in one pass (Kadane): attempts less what its requests allow.
        excess = 0.0
        for event in self.events:
            excess = max(0.0, excess + (1.0 if event < 0 else -self.budget.share))
        if self.budget is not None:
            assert excess <= self.budget.burst - self.budget.tokens + 1e-6

    @invariant()
    def never_more_than_the_burst(self):
        if self.budget is not None:
            assert self.budget.tokens <= self.budget.burst
            assert 0.0 <= self.budget.fullness <= 1.0


BudgetMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestBudgetMachine = BudgetMachine.TestCase


def test_a_busy_service_spends_its_whole_share():
    """The share is what is allowed, and is not lost to rounding or to the cap."""
    budget = Budget(0.02)
    sent = 0
    for _ in range(100_000):
        budget.deposit()
        sent += budget.withdraw()
    assert sent == pytest.approx(2000 + 10, abs=2)


@pytest.mark.parametrize(("share", "burst"), [(0, 10), (-0.1, 10), (1.1, 10), (0.02, 0.5), (math.nan, 10)])
def test_a_budget_that_allows_nothing_is_refused(share, burst):
    with pytest.raises(ValueError, match="allows nothing"):
        Budget(share, burst)


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


# The race.


def test_races_begin_with_the_first_attempt_and_go_through_the_targets_in_order():
    race = Race(3)
    assert race.pending == {0}
    assert race.begin(lambda number: True) == 1
    assert race.begin(lambda number: True) == 2
    assert race.begin(lambda number: True) is None
    assert race.win(1) == {0, 2}
    assert race.win(0) is None


def test_a_target_that_cannot_be_used_now_may_be_used_later():
    """A backup that pushes back while the hedge is due is there for the failover half a second later."""
    race = Race(3)
    assert race.begin(lambda number: number == 2) == 2
    assert race.begin(lambda number: False) is None
    assert race.begin(lambda number: True) == 1
    assert race.begin(lambda number: True) is None


class RaceMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: one outcome, each attempt made and ended once."""

    def __init__(self) -> None:
        super().__init__()
        self.targets = 4
        self.race = Race(self.targets)
        self.begun = {0}
        self.ended: set[int] = set()
        self.told: list[int] = []
        self.winner: int | None = None
        self.over = False

    @rule(usable=st.sets(st.integers(0, 4)))
    def begin(self, usable):
        number = self.race.begin(usable.__contains__)
        left = [one for one in range(1, self.targets) if one not in self.begun and one in usable]
        assert number == (left[0] if left and not self.over else None)
        if number is not None:
            self.begun.add(number)

    @rule(number=st.integers(0, 4))
    def win(self, number):
        under_way = self.begun - self.ended
        losers = self.race.win(number)
        if self.over or number not in under_way:
            assert losers is None
            return
        assert losers == under_way - {number}
        self.winner = number
        self.told += losers
        self.ended = set(self.begun)
        self.over = True

    @rule(number=st.integers(0, 4))
    def fail(self, number):
        counted = self.race.fail(number)
        assert counted == (not self.over and number in self.begun - self.ended)
        if counted:
            self.ended.add(number)

    @rule()
    def end(self):
        under_way = self.begun - self.ended
        losers = self.race.end()
        assert losers == (set() if self.over else under_way)
        self.told += losers
        self.ended = set(self.begun)
        self.over = True

    @invariant()
    def consistent(self):
        assert self.race.over == self.over
        assert self.race.pending == self.begun - self.ended
        assert len(self.told) == len(set(self.told))
        assert self.winner not in self.told


RaceMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)
TestRaceMachine = RaceMachine.TestCase


@pytest.mark.parametrize("seed", range(20))
def test_random_schedules_have_one_outcome_each(seed):
    """500 requests a seed: attempts of random length and fate, hedged, failed over, given up."""
    choose = random.Random(seed)
    for _ in range(500):
        targets = choose.randint(1, 4)
        race = Race(targets)
        outcomes: list[str] = []
        told: list[int] = []
        ended: list[int] = []
        events: list[tuple[float, int, str]] = []

        def start(now, number, events=events):
            fate = choose.choices(["win", "fail", "hang"], [5, 3, 1])[0]
            if fate != "hang":
                heapq.heappush(events, (now + choose.expovariate(10), number, fate))

        start(0.0, 0)
        for step in range(1, 4):
            heapq.heappush(events, (step * choose.uniform(0.01, 0.1), -1, "hedge"))
        heapq.heappush(events, (choose.uniform(0.05, 1.0), -1, "deadline"))
        while events:
            now, number, what = heapq.heappop(events)
            if what == "win":
                losers = race.win(number)
                if losers is not None:
                    outcomes.append("answered")
                    told += losers
                    ended.append(number)
            elif what == "fail":
                if race.fail(number):
                    ended.append(number)
            elif what == "deadline" and not race.over:
                outcomes.append("deadline")
                told += race.end()
            if what in ("fail", "hedge") and not race.over:
                begun = race.begin(lambda number: choose.random() < 0.8)
                if begun is not None:
                    start(now, begun)
                elif not race.pending:
                    outcomes.append("failed")
                    told += race.end()
        assert len(outcomes) == 1
        assert race.over
        assert not race.pending
        assert len(told) == len(set(told)), "every loser is told once"
        assert not set(told) & set(ended), "nobody who has ended is told to end"


# What is said in metadata.


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("250", 0.25),
        (b"250", 0.25),
        ("999999999", LONGEST_PUSHBACK),
        ("-1", math.inf),
        ("-0", 0.0),
        ("soon", math.inf),
        ("", math.inf),
        ("1.5", math.inf),
        (b"\xff", math.inf),
        ("9" * 5000, math.inf),
    ],
)
def test_pushback(said, seconds):
    """What is no number of milliseconds means never, as gRFC A6 has it."""
    assert read_pushback(said) == seconds


@given(st.one_of(st.text(), st.binary()))
def test_pushback_is_never_a_surprise(said):
    found = read_pushback(said)
    assert found == math.inf or 0 <= found <= LONGEST_PUSHBACK


@pytest.mark.parametrize(("said", "count"), [("0", 0), ("2", 2), (b"3", 3), ("-4", 0), ("many", 1), ("", 1)])
def test_previous_attempts(said, count):
    assert read_previous_attempts(said) == count


@given(st.floats(0, 1000))
def test_load_is_read_as_it_was_written(utilization):
    assert read_load(write_load(utilization)) == pytest.approx(utilization, abs=0.001)
    assert read_load(write_load(utilization).encode()) == pytest.approx(utilization, abs=0.001)


@given(st.one_of(st.none(), st.text(), st.binary()))
def test_load_is_never_a_surprise(said):
    found = read_load(said)
    assert found is None or (math.isfinite(found) and found >= 0)


@pytest.mark.parametrize(
    ("said", "load"),
    [
        ("TEXT cpu_utilization=0.1,application_utilization=0.5", 0.5),
        ("text application_utilization = 0.5", 0.5),
        ("TEXT application_utilization=-1", None),
        ("TEXT application_utilization=nan", None),
        ("TEXT application_utilization", None),
        ('JSON {"application_utilization": 0.5}', None),
    ],
)
def test_load_in_the_text_format_of_orca(said, load):
    assert read_load(said) == load


@given(st.floats(0, 1e9, exclude_min=True))
def test_buckets_hold_what_is_not_above_their_bound(seconds):
    assume(seconds > 0)
    place = bucket(BOUNDS, seconds)
    assert place == len(BOUNDS) or seconds <= BOUNDS[place]
    assert place == 0 or seconds > BOUNDS[place - 1]
