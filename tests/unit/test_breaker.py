"""The circuit breaker in made-up time."""

from __future__ import annotations

import pytest
from hedgerow_protos.breaker import Breaker, Policy, State
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

POLICY = Policy(window=5.0, minimum=4, failed=0.5, slow_after=0.1, slow=0.5, open_for=1.0, probes=3)


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breaker(time) -> Breaker:
    return Breaker("store", POLICY, time)


def call(breaker: Breaker, *, fails: bool = False, takes: float = 0.01) -> None:
    token = breaker.acquire()
    assert token is not None
    if fails:
        token.failure("no route")
    else:
        token.success(takes)


def trip(breaker: Breaker) -> None:
    for _ in range(POLICY.minimum):
        call(breaker, fails=True)
    assert breaker.state is State.OPEN


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


# --------------------------------------------------- calls that need no leave


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
