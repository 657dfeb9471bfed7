"""What a client with backups does, in made-up time: the simulation runs what both clients run."""

from __future__ import annotations

import math
import random

import hedgerow
import pytest
from hedgerow.hedging import Hedging
from hedgerow.hedging.regions import ASK_READY, ASK_UNREADY, Regions
from hedgerow.hedging.target import LOAD_SECONDS
from hedgerow_protos.breaker import State
from hedgerow_protos.hedging import Budget, write_load, write_previous_attempts
from hedging_simulation import (
    CODES,
    DEADLINE_EXCEEDED,
    HANGS,
    LOAD,
    OK,
    PUSHBACK,
    Fate,
    Simulation,
    fails,
    hangs,
    spend,
    takes,
)

# The plain case.


def test_an_answer_in_time_is_the_primarys_alone():
    simulation = Simulation(takes(0.01), takes(0.01))
    request = simulation.answer()
    simulation.run()
    assert (request.outcome, request.ended - request.began) == ("primary", pytest.approx(0.01))
    assert [len(seen) for seen in simulation.seen] == [1, 0]
    assert request.made[0].headers == ()


# Hedges.


def test_a_slow_answer_is_sought_at_the_backup_too_and_the_first_one_counts():
    simulation = Simulation(takes(0.2), takes(0.01))
    request = simulation.answer()
    assert request.outcome == "hedge"
    assert request.ended - request.began == pytest.approx(0.03 + 0.01)
    first, hedge = request.made
    assert hedge.headers == (*write_previous_attempts(1), ("hedgerow-attempt", "hedge"))
    assert request.cancelled == [first]
    assert simulation.regions.budget.tokens == pytest.approx(9)


def test_the_primary_may_still_be_first():
    simulation = Simulation(takes(0.04), takes(0.1))
    request = simulation.answer()
    assert request.outcome == "primary"
    assert [attempt.kind for attempt in request.cancelled] == ["hedge"]


def test_backups_are_hedged_to_in_order_one_delay_after_the_other():
    simulation = Simulation(hangs, hangs, takes(0.01))
    request = simulation.answer()
    assert [attempt.target for attempt in request.made] == [0, 1, 2]
    assert request.made_at[1:] == pytest.approx([request.began + 0.03, request.began + 0.06])
    assert request.made[2].headers[0] == ("grpc-previous-rpc-attempts", "2")
    assert request.cancelled == request.made[:2]


def test_without_a_token_there_is_no_hedge_until_there_is_one():
    simulation = Simulation(takes(0.5), takes(0.01))
    spend(simulation)
    request = simulation.ask()
    simulation.run(simulation.now + 0.1)
    assert len(request.made) == 1
    simulation.regions.budget.deposit(50)
    simulation.run()
    assert request.outcome == "hedge"
    assert request.made_at[1] - request.began == pytest.approx(0.12)


def test_hedges_stay_within_their_share_of_the_requests():
    """Counted where they arrive, under load, with a tenth of the answers slow."""
    slow = random.Random(1)
    simulation = Simulation(lambda now: Fate(0.5 if slow.random() < 0.1 else 0.002), takes(0.002))
    simulation.load(500, 60)
    simulation.run()
    requests = len(simulation.requests)
    assert all(request.outcome in ("primary", "hedge") for request in simulation.requests)
    assert 0.9 * 0.02 * requests < len(simulation.seen[1]) <= 0.02 * requests + 10
    assert not simulation.changes, "slow answers now and then are no outage"


def test_hedging_off_means_backups_only_for_failures():
    simulation = Simulation(takes(0.5), takes(0.01), hedge=None)
    assert simulation.answer().outcome == "primary"
    simulation.behaviours[0] = fails(CODES.UNAVAILABLE)
    assert simulation.answer().outcome == "failover"


def test_no_hedge_to_a_backup_that_has_no_room():
    simulation = Simulation(takes(0.2), takes(0.01))
    target = simulation.regions.targets[1]
    target.hear(simulation.now, {LOAD: write_load(0.85)})
    assert simulation.answer().outcome == "primary"
    target.hear(simulation.now, {LOAD: write_load(0.5)})
    assert simulation.answer().outcome == "hedge"


def test_no_hedge_when_less_time_is_left_than_the_backup_usually_takes():
    simulation = Simulation(fails(CODES.UNAVAILABLE), takes(0.05))
    for _ in range(30):
        simulation.answer()
        simulation.run(simulation.now + 0.1)
    assert simulation.regions.model("m").at[1].median == pytest.approx(0.05, rel=0.3)
    simulation.behaviours[0] = takes(0.075)
    simulation.regions.targets[0].breaker.state = State.CLOSED
    request = simulation.answer(timeout=0.07)
    assert (request.outcome, len(request.made)) == ("DEADLINE_EXCEEDED", 1)
    assert len(simulation.answer(timeout=0.2).made) == 2


def test_a_hedge_that_fails_brings_the_next_at_once_for_another_token():
    simulation = Simulation(takes(0.5), fails(CODES.UNAVAILABLE), takes(0.01))
    request = simulation.answer()
    assert request.made_at[2] - request.began == pytest.approx(0.031)
    assert simulation.regions.budget.tokens == pytest.approx(8)


@pytest.mark.parametrize("code", [CODES.INVALID_ARGUMENT, CODES.PERMISSION_DENIED, CODES.NOT_FOUND])
def test_what_a_backup_says_of_the_request_does_not_end_the_primarys_attempt(code):
    """It may have another version of the model, or other rights."""
    simulation = Simulation(takes(0.2), fails(code))
    assert simulation.answer().outcome == "primary"


def test_the_adaptive_delay_follows_the_answers_and_ends_at_the_fixed_one():
    chance = random.Random(3)
    simulation = Simulation(
        lambda now: Fate(0.002 + chance.expovariate(2000)),
        takes(0.002),
        hedge=Hedging(after=0.03, adaptive=True),
    )
    assert simulation.regions.model("m").delay == 0.03, "none until warm"
    simulation.load(500, 20)
    simulation.run()
    assert 0.002 < simulation.regions.model("m").delay < 0.006
    simulation.behaviours[0] = takes(0.2)
    simulation.load(100, 20)
    simulation.run()
    assert simulation.regions.model("m").delay == 0.03, "a slow host does not switch hedging off"


def test_looking_early_hedges_nothing():
    """A client looks at all its requests when any breaker opens."""
    simulation = Simulation(takes(0.2), takes(0.01))
    request = simulation.ask()
    simulation.run(simulation.now + 0.01)
    assert request.attempts.on_time(simulation.now) == []
    simulation.run()
    assert request.made_at[1] - request.began == pytest.approx(0.03)


def test_a_timer_that_comes_late_says_nothing_of_the_primary():
    """A caller that blocked its loop for 400 ms finds the answers that came meanwhile, not slow servers."""
    simulation = Simulation(takes(0.002), takes(0.002))
    requests = [simulation.ask() for _ in range(50)]
    late = simulation.now + 0.4
    for request in requests:
        assert request.attempts.on_time(late) == []
        assert late < request.attempts.wake <= late + 0.05
    simulation.now = late
    simulation.run()
    assert all(request.outcome == "primary" for request in requests)
    assert not simulation.seen[1]
    assert not simulation.changes


def test_a_timer_that_comes_late_each_time_is_heard_the_second_time():
    simulation = Simulation(hangs, takes(0.002))
    request = simulation.ask()
    assert request.attempts.on_time(simulation.now + 0.1) == []
    (hedge,) = request.attempts.on_time(simulation.now + 0.3)
    assert hedge.kind == "hedge"


# Failover.


@pytest.mark.parametrize("code", sorted(CODES, key=lambda code: code.name))
def test_which_statuses_another_target_is_asked_for(code):
    simulation = Simulation(fails(code) if code is not OK else takes(0.001), takes(0.01), retries=0)
    request = simulation.answer()
    elsewhere = {
        CODES.UNAVAILABLE,
        CODES.RESOURCE_EXHAUSTED,
        CODES.INTERNAL,
        CODES.UNKNOWN,
        CODES.DATA_LOSS,
        CODES.CANCELLED,
        CODES.NOT_FOUND,
        CODES.UNIMPLEMENTED,
    }
    expected = "failover" if code in elsewhere else "primary" if code is OK else code.name
    assert request.outcome == expected
    if code in elsewhere:
        assert request.made_at[1] - request.began == pytest.approx(0.001), "at once"
        assert request.made[1].headers == write_previous_attempts(1), "its rules may answer"
    else:
        assert len(request.made) == 1


def test_a_failover_needs_no_token():
    simulation = Simulation(fails(CODES.UNAVAILABLE), takes(0.01))
    spend(simulation)
    assert simulation.answer().outcome == "failover"


def test_a_primary_that_fails_while_a_hedge_is_under_way_leaves_it_the_request():
    simulation = Simulation(fails(CODES.INTERNAL, 0.04), takes(0.015), takes(0.001))
    request = simulation.answer()
    assert [attempt.kind for attempt in request.made] == ["primary", "hedge"]
    assert request.outcome == "hedge"
    assert request.cancelled == []


@pytest.mark.parametrize("obstacle", ["not_ready", "pushback", "breaker", "missing"])
def test_a_backup_with_something_against_it_is_passed_over(obstacle):
    simulation = Simulation(fails(CODES.UNAVAILABLE), takes(0.01), takes(0.01))
    target = simulation.regions.targets[1]
    if obstacle == "not_ready":
        target.is_ready = False
    elif obstacle == "pushback":
        target.hear(simulation.now, {PUSHBACK: "5000"})
    elif obstacle == "breaker":
        target.breaker._open(simulation.now, "told so")
    else:
        target.miss(simulation.now, "m")
        assert not target.obstacle(simulation.now, "another")
    request = simulation.answer()
    assert (request.outcome, request.made[-1].target) == ("failover", 2)


def test_a_model_that_a_backup_does_not_have_is_not_asked_for_there_for_a_while():
    simulation = Simulation(fails(CODES.UNAVAILABLE), fails(CODES.NOT_FOUND), takes(0.01))
    assert simulation.answer().made[-1].target == 2
    assert [attempt.target for attempt in simulation.answer().made] == [0, 2]
    simulation.run(simulation.now + 6)
    assert [attempt.target for attempt in simulation.answer().made] == [0, 1, 2]


# Pushback and overload.


@pytest.mark.parametrize("name", ["grpc_retry_pushback_ms", "hedgerow_retry_pushback_ms"])
def test_pushback_keeps_further_attempts_away_for_its_time(name):
    simulation = Simulation(takes(0.5), fails(CODES.RESOURCE_EXHAUSTED, **{name: "400"}))
    assert simulation.answer().outcome == "primary"
    assert len(simulation.seen[1]) == 1
    simulation.behaviours[1] = takes(0.01)
    request = simulation.answer(timeout=2.0)
    assert len(simulation.seen[1]) == 1 or request.made_at[1] >= simulation.seen[1][0][0] + 0.4
    simulation.run(simulation.now + 0.5)
    assert simulation.answer().outcome == "hedge"


@pytest.mark.parametrize("said", ["-1", "never"])
def test_negative_pushback_forbids_further_attempts_for_that_request_only(said):
    simulation = Simulation(fails(CODES.UNAVAILABLE, grpc_retry_pushback_ms=said), takes(0.01))
    request = simulation.answer()
    assert (request.outcome, len(request.made)) == ("UNAVAILABLE", 1)
    simulation.behaviours[0] = fails(CODES.UNAVAILABLE)
    assert simulation.answer().outcome == "failover"


def test_negative_pushback_leaves_what_is_under_way_alone():
    simulation = Simulation(takes(0.2), fails(CODES.UNAVAILABLE, grpc_retry_pushback_ms="-1"), takes(0.001))
    request = simulation.answer()
    assert (request.outcome, len(request.made)) == ("primary", 2)


def test_an_overloaded_primary_fails_over_while_the_backup_says_that_it_has_room():
    simulation = Simulation(fails(CODES.RESOURCE_EXHAUSTED, grpc_retry_pushback_ms="100"), takes(0.01))
    spend(simulation)
    target = simulation.regions.targets[1]
    assert simulation.answer().outcome == "RESOURCE_EXHAUSTED", "nothing is known, and no token is there"
    target.hear(simulation.now, {LOAD: write_load(0.5)})
    assert simulation.answer().outcome == "failover"
    target.hear(simulation.now, {LOAD: write_load(0.9)})
    simulation.regions.budget.deposit(1000)
    assert simulation.answer().outcome == "RESOURCE_EXHAUSTED", "no room, whatever the budget"
    simulation.run(simulation.now + LOAD_SECONDS + 1)
    assert simulation.answer().outcome == "failover", "nothing is known any more, but there is a token"
    assert simulation.regions.budget.tokens == pytest.approx(9, abs=0.1)


def test_overload_is_not_met_with_repetitions():
    simulation = Simulation(*[fails(CODES.RESOURCE_EXHAUSTED)] * 2, retries=5)
    request = simulation.answer()
    assert (request.outcome, len(request.made)) == ("RESOURCE_EXHAUSTED", 2)


def test_overload_opens_no_breaker():
    """Who refuses in time is well; and the important requests still get through."""
    simulation = Simulation(fails(CODES.RESOURCE_EXHAUSTED), takes(0.01))
    simulation.load(100, 10)
    simulation.run()
    assert not simulation.changes


# Repetitions.


def test_when_nobody_can_be_reached_all_are_tried_again_after_a_pause_and_for_tokens():
    simulation = Simulation(*[fails(CODES.UNAVAILABLE)] * 2)
    request = simulation.answer()
    assert [attempt.target for attempt in request.made] == [0, 1, 0, 0]
    assert [attempt.headers for attempt in request.made[2:]] == [
        write_previous_attempts(2),
        write_previous_attempts(3),
    ]
    pauses = [
        later - earlier for earlier, later in zip(request.made_at[1:], request.made_at[2:], strict=False)
    ]
    assert 0.016 < pauses[0] - 0.001 < 0.024
    assert 0.048 < pauses[1] - 0.001 < 0.072
    assert simulation.regions.budget.tokens == pytest.approx(8)
    assert isinstance(request.error, hedgerow.Unavailable)


def test_a_repetition_may_bring_the_answer():
    simulation = Simulation(*[fails(CODES.UNAVAILABLE)] * 2)
    start = simulation.now
    simulation.behaviours[0] = lambda now: Fate(0.001, OK if now > start + 0.01 else CODES.UNAVAILABLE)
    assert simulation.answer().outcome == "primary"


def test_repetitions_stop_when_the_budget_is_empty():
    simulation = Simulation(*[fails(CODES.UNAVAILABLE)] * 2)
    spend(simulation)
    assert len(simulation.answer().made) == 2


def test_a_repetition_waits_for_the_pushback():
    simulation = Simulation(
        fails(CODES.UNAVAILABLE, grpc_retry_pushback_ms="300"),
        fails(CODES.UNAVAILABLE, grpc_retry_pushback_ms="200"),
        retries=1,
    )
    request = simulation.answer()
    assert [attempt.target for attempt in request.made] == [0, 1, 1]
    assert request.made_at[2] - request.began >= 0.2
    late = simulation.answer(timeout=0.1)
    assert len(late.made) == 1, "the primary alone: nobody wants more before the deadline"
    assert late.ended - late.began < 0.01, "and nobody waits for that"


def test_a_repetition_begins_with_who_was_not_asked():
    """What was not ready a moment ago is a better guess than what has just failed."""
    simulation = Simulation(fails(CODES.UNAVAILABLE), takes(0.01))
    simulation.regions.targets[1].is_ready = False
    request = simulation.answer()
    assert ([attempt.target for attempt in request.made], request.outcome) == ([0, 1], "failover")
    assert request.made[1].is_paid


def test_retries_off():
    assert len(Simulation(*[fails(CODES.UNAVAILABLE)] * 2, retries=0).answer().made) == 2


# Errors.


def test_the_error_is_that_of_the_primary_and_tells_of_the_others():
    simulation = Simulation(fails(CODES.INTERNAL), fails(CODES.UNAVAILABLE), retries=0)
    error = simulation.answer().error
    assert error.code is CODES.INTERNAL
    (note,) = error.__notes__
    assert note.startswith("also tried backup1 (failover): backup1: told so (UNAVAILABLE")


def test_what_a_server_says_of_the_request_is_the_better_error():
    simulation = Simulation(fails(CODES.UNAVAILABLE), fails(CODES.INVALID_ARGUMENT), takes(0.01))
    request = simulation.answer()
    assert request.outcome == "INVALID_ARGUMENT"
    assert len(request.made) == 2, "all others would say the same"
    assert "UNAVAILABLE" in request.error.__notes__[0]


def test_a_black_hole_and_a_refusal_make_the_refusal():
    simulation = Simulation(hangs, fails(CODES.INVALID_ARGUMENT))
    request = simulation.answer(timeout=0.2)
    assert request.outcome == "INVALID_ARGUMENT"


def test_a_primary_out_of_time_before_its_time_leaves_the_hedge_under_way():
    """A server may refuse what it cannot do in time; the backup may be quicker."""
    simulation = Simulation(fails(CODES.DEADLINE_EXCEEDED, 0.04), takes(0.05))
    assert simulation.answer().outcome == "hedge"


def test_out_of_time():
    simulation = Simulation(hangs, hangs)
    request = simulation.answer(timeout=0.5)
    assert request.outcome == "DEADLINE_EXCEEDED"
    assert request.ended == request.deadline


# Questions to backups.


def test_backups_are_asked_at_first_and_again_when_they_were_not_ready():
    regions = Regions(["a", "b", "c"], Hedging(), retries=0, clock=lambda: 0.0, changed=lambda breaker: None)
    assert regions.ask_at == -math.inf
    assert regions.to_ask(10.0) == [1, 2]
    assert regions.to_ask(10.1) == []
    regions.heard(10.2, 1, {}, ready=False)
    regions.heard(10.2, 2, {LOAD: write_load(0.1)}, ready=True)
    assert [target.is_ready for target in regions.targets] == [True, False, True]
    assert regions.targets[2].has_room(10.3) is True
    assert regions.ask_at == pytest.approx(10.2 + ASK_UNREADY)
    assert regions.to_ask(10.5) == [1]
    regions.heard(10.5, 1, {}, ready=None)
    assert regions.targets[1].is_ready, "it did not understand the question, but is there"
    assert regions.to_ask(10.2 + ASK_READY) == [2]


def test_a_backup_that_could_not_be_reached_is_asked_soon():
    regions = Regions(["a", "b"], Hedging(), retries=0, clock=lambda: 0.0, changed=lambda breaker: None)
    regions.to_ask(10.0)
    regions.failed(1, "m", None, 10.1, 0.1, CODES.UNAVAILABLE, {})
    assert regions.to_ask(10.1) == []
    assert regions.to_ask(10.0 + ASK_UNREADY) == [1]


# Ends.


def test_a_caller_that_goes_away_ends_all_attempts():
    simulation = Simulation(hangs, hangs)
    request = simulation.ask()
    simulation.run(simulation.now + 0.05)
    simulation.give_up(request)
    assert request.cancelled == request.made
    assert len(request.made) == 2
    simulation.run()
    assert request.outcomes == ["given up"]


def test_the_token_of_an_attempt_that_was_not_sent_comes_back():
    simulation = Simulation(hangs, hangs)
    request = simulation.ask()
    simulation.run(simulation.now + 0.04)
    hedge = request.made[1]
    assert simulation.regions.budget.tokens == pytest.approx(9)
    request.attempts.unsent(hedge, hedgerow.Cancelled("closing"))
    request.attempts.unsent(hedge)
    assert simulation.regions.budget.tokens == pytest.approx(10)
    assert isinstance(request.error, hedgerow.Cancelled)


# Anything.


class Counted(Budget):
    """A budget that counts what is taken from it."""

    paid = charged = 0

    def withdraw(self):
        allowed = super().withdraw()
        self.paid += allowed
        return allowed

    def charge(self):
        super().charge()
        self.charged += 1


def anything(chance):
    """A target that does anything, and pushes back now and then."""

    def behave(now):
        code = chance.choices(
            [
                OK,
                CODES.UNAVAILABLE,
                CODES.RESOURCE_EXHAUSTED,
                CODES.INTERNAL,
                CODES.NOT_FOUND,
                CODES.INVALID_ARGUMENT,
            ],
            [60, 10, 5, 5, 2, 2],
        )[0]
        said = {}
        if chance.random() < 0.1:
            said[PUSHBACK] = chance.choice(["-1", "0", "50", "500"])
        if chance.random() < 0.3:
            said[LOAD] = write_load(chance.random())
        if chance.random() < 0.05:
            return HANGS
        return Fate(chance.choice([0.0, 0.0005, 0.03, chance.expovariate(20)]), code, said)

    return behave


@pytest.mark.parametrize("seed", range(20))
def test_random_schedules_have_one_outcome_each(seed):
    """2,000 requests over 20 seeds with backups that do anything: one outcome, tokens right, nothing left."""
    chance = random.Random(seed)
    targets = chance.randint(1, 4)
    hedge = chance.choice([Hedging(), None, Hedging(0.005, adaptive=True, budget=0.05), Hedging(0.2)])
    retries = chance.randint(0, 4)
    simulation = Simulation(
        *(anything(random.Random(f"{seed} {index}")) for index in range(targets)),
        hedge=hedge,
        retries=retries,
        seed=seed,
    )
    budget = simulation.regions.budget = Counted(simulation.regions.budget.share)
    simulation.load(20, 5, timeout=chance.choice([0.05, 0.5, 2.0]))
    for _ in range(20):
        simulation.at(simulation.now + chance.uniform(0, 5), lambda: give_up_one(simulation, chance))
    simulation.run()
    assert len(simulation.requests) > 50
    for request in simulation.requests:
        assert len(request.outcomes) == 1
        assert request.attempts.over
        assert not request.attempts.under_way
        assert not set(request.cancelled) & {request.attempts.winner}
        assert len(request.cancelled) == len(set(request.cancelled))
        assert len(request.made) <= targets + retries
        assert request.ended <= request.deadline
        for attempt in request.made:
            previous = dict(attempt.headers).get("grpc-previous-rpc-attempts", "0")
            assert int(previous) == request.made.index(attempt)
            assert attempt.token is None or attempt.token.ended or attempt.is_probe
    made = [attempt for request in simulation.requests for attempt in request.made]
    assert budget.paid + budget.charged == sum(attempt.is_paid for attempt in made)
    assert all(attempt.is_paid for attempt in made if attempt.kind == "hedge")
    allowed = budget.share * len(simulation.requests) + budget.burst
    assert budget.paid <= allowed
    assert budget.paid + budget.charged <= allowed + max(0.0, -budget.tokens)
    assert not simulation.under_way


def give_up_one(simulation, chance):
    if simulation.under_way:
        simulation.give_up(chance.choice(sorted(simulation.under_way, key=lambda request: request.began)))


def test_a_client_remembers_a_bounded_number_of_models():
    simulation = Simulation(takes(0.001), fails(CODES.NOT_FOUND))
    for number in range(3000):
        simulation.answer(model=f"m{number}")
    assert len(simulation.regions._models) <= 1024
    for number in range(3000):
        simulation.regions.targets[1].miss(simulation.now, f"m{number}")
    assert len(simulation.regions.targets[1]._missing) <= 1024


# Settings.


@pytest.mark.parametrize(
    "kwargs",
    [
        {"after": 0},
        {"after": -1},
        {"after": math.nan},
        {"budget": 0},
        {"budget": 0.06},
        {"budget": -0.1},
        {"budget": math.nan},
    ],
)
def test_hedging_that_cannot_work_is_refused(kwargs):
    with pytest.raises(hedgerow.InvalidRequest, match=next(iter(kwargs))):
        Hedging(**kwargs)


@pytest.mark.parametrize("kind", [hedgerow.Client, hedgerow.AsyncClient])
@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"backups": ["b:1"], "hedge": Hedging(after=1.0), "timeout": 1.0}, "is not below timeout=1.0"),
        ({"backups": ["b:1"], "timeout": 0.02}, "is not below timeout"),
        ({"hedge": Hedging()}, "nobody to hedge with"),
        ({"backups": "b:1"}, "give a sequence"),
        ({"backups": [""]}, "each once"),
        ({"backups": ["b:1", "b:1"]}, "each once"),
        ({"backups": ["a:1"]}, "each once"),
    ],
)
def test_a_client_that_cannot_hedge_is_refused(kind, kwargs, said):
    with pytest.raises(hedgerow.InvalidRequest, match=said):
        kind("a:1", **kwargs)


def test_no_hedging_goes_with_any_timeout():
    hedgerow.Client("a:1", backups=["b:1"], hedge=None, timeout=0.001).close()
    hedgerow.Client("a:1", hedge=None).close()


def test_deadline_exceeded_is_what_the_simulation_ends_with():
    assert Simulation(hangs).answer().outcome == DEADLINE_EXCEEDED.name
