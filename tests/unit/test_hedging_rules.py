"""The rules of hedging: how many attempts the budget allows, and which of them wins the race."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hedgerow_protos.hedging import Budget, Race
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
