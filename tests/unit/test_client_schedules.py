"""A client whose targets do anything, in made-up time: each request has one outcome."""

from __future__ import annotations

import random

import pytest
from hedgerow.hedging import Hedging
from hedgerow_protos.hedging import Budget, write_load
from hedging_simulation import CODES, HANGS, LOAD, OK, PUSHBACK, Fate, Simulation


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
