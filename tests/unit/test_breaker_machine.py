"""Any calls of a circuit breaker in any order, with any endings, at any time."""

from __future__ import annotations

from breaker_calls import POLICY, Time
from hedgerow_protos.breaker import Breaker, State
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule


class BreakerMachine(RuleBasedStateMachine):
    """Whatever happens, a breaker lets through what its state allows, and always recovers."""

    tokens = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.breaker = Breaker("any", POLICY, self.time)
        self.opened: float | None = None
        self.under_way = 0

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds):
        self.time.now += seconds

    @rule(target=tokens)
    def acquire(self):
        before = self.breaker.state
        since = self.breaker.seconds_in_state
        refuses = self.breaker.refuses()
        token = self.breaker.acquire()
        assert refuses is (token is None)
        if before is State.CLOSED and self.breaker.state is State.CLOSED:
            assert token is not None
        if before is State.OPEN and since < POLICY.open_for:
            assert token is None
        return token

    @rule(
        token=consumes(tokens),
        ending=st.sampled_from(["success", "slow", "failure", "ignore", "twice", "late"]),
    )
    def end(self, token, ending):
        if token is None:
            return
        state, trips = self.breaker.state, self.breaker.trips
        if ending in ("success", "slow"):
            token.success(0.01 if ending == "success" else 1.0)
        elif ending == "failure":
            token.failure("x")
        elif ending == "late":
            token.late()
            token.success(0.01)
        else:
            token.ignore()
        if ending == "twice":
            token.failure("x")
            assert (self.breaker.state, self.breaker.trips) == (state, trips)

    @rule(good=st.integers(0, 5), failed=st.integers(0, 5))
    def tally(self, good, failed):
        state, trips = self.breaker.state, self.breaker.trips
        self.breaker.tally(good + failed, failed=failed)
        if state is not State.CLOSED or not failed:
            assert (self.breaker.state, self.breaker.trips) == (state, trips)

    @invariant()
    def at_most_one_probe(self):
        if self.breaker.state is State.HALF_OPEN:
            one, other = self.breaker.acquire(), self.breaker.acquire()
            assert one is None or other is None
            if one is not None:
                one.ignore()

    def teardown(self):
        """Once the dependency is well, it closes."""
        self.time.now += POLICY.open_for + POLICY.window + 1
        for _ in range(2):
            for _ in range(POLICY.probes):
                token = self.breaker.acquire()
                if token is not None:
                    token.success(0.01)
            self.time.now += POLICY.open_for + 0.2
        assert self.breaker.state is State.CLOSED


BreakerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
