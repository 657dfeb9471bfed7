"""When a client asks again, and what keeps it from that, in made-up time."""

from __future__ import annotations

import hedgerow
import pytest
from hedgerow.hedging.target import LOAD_SECONDS
from hedgerow_protos.hedging import write_load, write_previous_attempts
from hedging_simulation import CODES, LOAD, OK, Fate, Simulation, fails, spend, takes

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
