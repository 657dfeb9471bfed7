"""When a client seeks a slow answer at a backup too, in made-up time."""

from __future__ import annotations

import random

import pytest
from hedgerow.hedging import Hedging
from hedgerow_protos.breaker import State
from hedgerow_protos.hedging import write_load, write_previous_attempts
from hedging_simulation import CODES, LOAD, Fate, Simulation, fails, hangs, spend, takes


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
