"""Which target a client with backups asks, and what its caller gets, in made-up time."""

from __future__ import annotations

import math

import hedgerow
import pytest
from hedgerow.hedging import Hedging
from hedgerow.hedging.regions import ASK_READY, ASK_UNREADY, Regions
from hedgerow_protos.hedging import write_load, write_previous_attempts
from hedging_simulation import (
    CODES,
    DEADLINE_EXCEEDED,
    LOAD,
    OK,
    PUSHBACK,
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


def test_a_client_remembers_a_bounded_number_of_models():
    simulation = Simulation(takes(0.001), fails(CODES.NOT_FOUND))
    for number in range(3000):
        simulation.answer(model=f"m{number}")
    assert len(simulation.regions._models) <= 1024
    for number in range(3000):
        simulation.regions.targets[1].miss(simulation.now, f"m{number}")
    assert len(simulation.regions.targets[1]._missing) <= 1024


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


def test_deadline_exceeded_is_what_the_simulation_ends_with():
    assert Simulation(hangs).answer().outcome == DEADLINE_EXCEEDED.name


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
