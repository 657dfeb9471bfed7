"""When a client with backups leaves its primary alone, and when it comes back to it, in made-up time."""

from __future__ import annotations

from collections import Counter

import pytest
from hedgerow.hedging.latencies import Latencies, ModelRecord
from hedgerow_protos.hedging import write_previous_attempts
from hedging_simulation import (
    CODES,
    PUSHBACK,
    Fate,
    Simulation,
    fails,
    hangs,
    spend,
    takes,
)


def outage(simulation, rate=200, seconds=10, behaviour=hangs, timeout=1.0):
    """Good for five seconds, then not for some, then good again; the requests during the outage."""
    good = simulation.behaviours[0]
    simulation.load(rate, 5, timeout)
    simulation.run(simulation.now + 5)
    began = simulation.now
    simulation.behaviours[0] = behaviour
    simulation.load(rate, seconds, timeout)
    simulation.run(simulation.now + seconds)
    ended = simulation.now
    simulation.behaviours[0] = good
    simulation.load(rate, 5 + 10 / rate, timeout)
    simulation.run()
    return [request for request in simulation.requests if began <= request.began < ended], began, ended


@pytest.mark.parametrize("rate", [1, 5, 50, 1000])
@pytest.mark.parametrize("timeout", [0.1, 1.0, 10.0])
def test_a_black_hole_costs_no_request_its_answer(rate, timeout):
    """The deadline is kept by all: by tokens while there are some, by the breaker thereafter."""
    simulation = Simulation(takes(0.002), takes(0.003))
    _during, began, ended = outage(simulation, rate, 10, hangs, timeout)
    assert {request.outcome for request in simulation.requests} <= {"primary", "hedge", "failover"}
    opened = [at for at, name, state in simulation.changes if state == "OPEN"]
    assert opened[0] - began < max(0.55, 7 / rate), "two times 250 ms, if tokens ran out in between"
    assert simulation.changes[-1][2] == "CLOSED", "three probes later"
    well = ended + 1.1 + 9 / rate
    after = [request for request in simulation.requests if request.began > well]
    assert all(request.outcome == "primary" for request in after), "it is asked again when it is well"
    outside = [at for at, _ in simulation.seen[1] if not began <= at <= well]
    assert not outside


def test_a_slow_primary_is_left_for_its_backup():
    simulation = Simulation(takes(0.002), takes(0.003))
    during, began, _ = outage(simulation, 300, 10, takes(0.6))
    late = [request for request in during if request.began > began + 1]
    assert all(request.ended - request.began < 0.1 for request in late)
    assert {request.outcome for request in simulation.requests} <= {"primary", "hedge", "failover"}


def test_a_primary_that_stays_slow_is_left_for_as_long_as_it_is():
    """What it has become does not turn into what it is measured by, however long it lasts."""
    simulation = Simulation(takes(0.002), takes(0.003))
    during, began, ended = outage(simulation, 100, 60, takes(0.6))
    late = [request for request in during if request.began > began + 1]
    assert all(request.ended - request.began < 0.1 for request in late)
    assert simulation.changes[-1][2] == "CLOSED"
    assert simulation.changes[-1][0] > ended


def test_a_model_that_has_become_slow_everywhere_comes_back_to_the_primary():
    simulation = Simulation(takes(0.002), takes(0.003))
    simulation.load(100, 5, 5.0)
    simulation.run()
    simulation.behaviours = [takes(0.6), takes(0.7)]
    simulation.load(100, 40, 5.0)
    simulation.run()
    assert {state for _, name, state in simulation.changes if name == "primary"} >= {"OPEN"}
    last = simulation.requests[-500:]
    assert Counter(request.outcome for request in last)["primary"] > 450


def test_a_primary_that_refuses_connections_costs_its_round_trip_only():
    simulation = Simulation(takes(0.002), takes(0.003))
    during, began, ended = outage(simulation, 300, 10, fails(CODES.UNAVAILABLE, 0.0005))
    assert all(request.ended - request.began < 0.01 for request in during)
    asked = [at for at, _ in simulation.seen[0] if began + 1 < at < ended]
    assert len(asked) <= 12, "once a second whether it is back"


def test_calls_that_wait_when_the_breaker_opens_go_elsewhere_for_a_token_or_when_they_are_slow_on_credit():
    """The primary may only be pausing: then what goes elsewhere comes on top, and hedges have to give way."""
    simulation = Simulation(hangs, takes(0.003), hedge=None)
    for _ in range(Latencies.ENOUGH):
        simulation.regions.model("m").at[0].add(simulation.now, 0.002)
        simulation.now += 1
    waiting = [simulation.ask() for _ in range(30)]
    simulation.run(simulation.now + 0.1)
    simulation.regions.targets[0].breaker._open(simulation.now, "told so")
    for request in waiting:
        simulation._look(request)
    assert [len(request.made) for request in waiting] == [2] * 10 + [1] * 20
    simulation.run(simulation.now + 0.2)
    assert all(request.outcome == "failover" for request in waiting)
    assert max(request.ended - request.began for request in waiting) == pytest.approx(0.253)
    assert simulation.regions.budget.tokens == pytest.approx(-20, abs=1)


def test_hedges_wait_until_what_was_made_on_credit_is_paid_for():
    simulation = Simulation(takes(0.2), takes(0.003))
    for _ in range(15):
        simulation.regions.budget.charge()
    simulation.load(10, 29, timeout=5.0)
    simulation.run()
    assert not simulation.seen[1]
    simulation.load(10, 60, timeout=5.0)
    simulation.run()
    assert simulation.seen[1]


def test_calls_whose_primary_goes_away_are_replaced_without_a_token():
    """As when its process is killed: connections are reset, and new ones refused."""
    simulation = Simulation(fails(CODES.UNAVAILABLE, 0.02), takes(0.003))
    spend(simulation)
    waiting = [simulation.ask() for _ in range(30)]
    simulation.run()
    assert all(request.outcome == "failover" for request in waiting)
    assert all(request.ended - request.began == pytest.approx(0.023) for request in waiting)
    assert not any(attempt.is_paid for request in waiting for attempt in request.made)


@pytest.mark.parametrize("pause", [0.3, 0.35])
def test_a_primary_that_pauses_now_and_then_costs_no_more_attempts_than_the_budget(pause):
    """Long enough for its breaker to open; it answers all the same what it was asked before."""

    def pauses(now):
        into = (now - 1000.0) % 5.0
        return Fate((pause - into if into < pause else 0.0) + 0.002)

    simulation = Simulation(pauses, takes(0.003))
    simulation.now += 1.0
    simulation.load(300, 59)
    simulation.run()
    alarms = sum(state == "OPEN" for _, _, state in simulation.changes)
    assert alarms > 5
    attempts = sum(len(request.made) for request in simulation.requests)
    requests = len(simulation.requests)
    debt = max(0.0, -simulation.regions.budget.tokens)
    assert attempts - requests <= 0.02 * requests + 10 + debt + 3 * alarms, "and three probes for each"
    assert debt < 60
    assert all(request.ended - request.began < 0.3 for request in simulation.requests)


def test_a_probe_keeps_its_caller_from_nothing():
    """It goes to the backup as well, at the same time."""
    simulation = Simulation(hangs, takes(0.003))
    during, _began, _ended = outage(simulation, 50, 10)
    probing = [request for request in during if any(attempt.is_probe for attempt in request.made)]
    assert 5 <= len(probing) <= 12
    for request in probing:
        assert request.ended - request.began == pytest.approx(0.003)
        first, probe = request.made
        assert (first.kind, first.target, first.headers) == ("failover", 1, ())
        assert probe.headers == (*write_previous_attempts(1), ("hedgerow-attempt", "hedge"))


def test_a_backup_that_fails_beside_a_probe_is_replaced_at_once():
    simulation = Simulation(hangs, takes(0.003), takes(0.004), hedge=None)
    simulation.regions.targets[0].breaker._open(simulation.now, "told so")
    simulation.run(simulation.now + 2)
    simulation.behaviours[1] = fails(CODES.INTERNAL)
    request = simulation.answer()
    assert [attempt.target for attempt in request.made] == [1, 0, 2]
    assert request.outcome == "failover"
    assert request.ended - request.began == pytest.approx(0.005)


def test_a_probe_that_is_refused_says_nothing():
    """A primary that sheds everything is not yet well, though it lives."""
    simulation = Simulation(fails(CODES.RESOURCE_EXHAUSTED), takes(0.003))
    simulation.regions.targets[0].breaker._open(simulation.now, "told so")
    simulation.load(50, 5)
    simulation.run()
    assert simulation.changes[-1][2] == "HALF_OPEN"
    simulation.behaviours[0] = takes(0.002)
    simulation.load(50, 1)
    simulation.run()
    assert simulation.changes[-1][2] == "CLOSED"


def test_calls_out_of_time_are_no_good_calls():
    """With less time than two medians they are not slow either; they say nothing."""
    simulation = Simulation(takes(0.09), takes(0.003), hedge=None)
    simulation.load(50, 2)
    simulation.run()
    row = simulation.regions.targets[0].breaker
    for _ in range(4):
        row.acquire(10.0).failure("x")
    assert simulation.answer(timeout=0.05).outcome == "DEADLINE_EXCEEDED"
    assert row._row == 4


def test_few_answers_make_no_median():
    latencies = Latencies()
    for number in range(Latencies.ENOUGH - 1):
        latencies.add(float(number), 0.1)
        assert latencies.median is None
    latencies.add(float(Latencies.ENOUGH), 0.1)
    assert latencies.median == pytest.approx(0.1, rel=0.3)


def test_a_primary_that_is_slower_than_the_backup_is_returned_to_all_the_same():
    """The probe loses its race each time; it is not cancelled, and tells what it has to tell."""
    simulation = Simulation(takes(0.1), takes(0.003), hedge=None)
    outage(simulation, 50)
    assert simulation.changes[-1][2] == "CLOSED"
    assert simulation.answer().outcome == "primary"


def test_a_model_slow_by_nature_opens_nothing():
    simulation = Simulation(takes(2.0), takes(2.0))
    simulation.load(20, 60, timeout=5.0)
    simulation.run()
    assert not simulation.changes
    assert {request.outcome for request in simulation.requests} == {"primary"}


def test_a_slow_model_beside_a_fast_one_opens_nothing():
    simulation = Simulation(takes(0.002), takes(0.002))
    simulation.load(100, 30)
    for second in range(30):
        simulation.at(simulation.now + second, lambda: slow_one(simulation))
    simulation.run()
    assert not simulation.changes


def slow_one(simulation):
    fast, simulation.behaviours[0] = simulation.behaviours[0], takes(3.0)
    simulation.ask(timeout=10.0, model="slow")
    simulation.behaviours[0] = fast


def test_short_stalls_of_everything_move_no_traffic():
    """A pause of 200 ms in the primary, such as a garbage collection, is what hedges are for."""
    start = 1000.0

    def pauses(now):
        into = (now - start) % 2.0
        return Fate(0.2 - into + 0.002 if into < 0.2 else 0.002)

    simulation = Simulation(pauses, takes(0.003))
    simulation.load(300, 20)
    simulation.run()
    assert not simulation.changes


def test_with_everybody_down_the_first_attempt_is_still_made():
    """A breaker says who else to ask; with nobody else, asking is better than not."""
    simulation = Simulation(fails(CODES.UNAVAILABLE), fails(CODES.UNAVAILABLE), retries=0)
    simulation.load(100, 5)
    simulation.run()
    assert {name for _, name, state in simulation.changes if state == "OPEN"} == {"primary", "backup1"}
    assert all(request.made for request in simulation.requests)
    assert len(simulation.seen[0]) + len(simulation.seen[1]) <= 2 * len(simulation.requests)
    simulation.behaviours = [takes(0.01), takes(0.01)]
    simulation.run(simulation.now + 2)
    assert simulation.answer().outcome in ("primary", "failover")


def test_a_backup_that_is_slow_is_asked_rather_than_a_primary_that_is_gone():
    """Both breakers are open; one of the two still answers."""
    simulation = Simulation(takes(0.002), takes(0.003))
    simulation.load(100, 3)
    simulation.run()
    simulation.behaviours = [fails(CODES.UNAVAILABLE), takes(0.6)]
    simulation.load(100, 10)
    simulation.run()
    assert {name for _, name, state in simulation.changes if state == "OPEN"} == {"primary", "backup1"}
    assert all(request.outcome in ("primary", "hedge", "failover") for request in simulation.requests)
    pushed_back = simulation.regions.targets[1]
    pushed_back.hear(simulation.now, {PUSHBACK: "60000"})
    assert simulation.answer().outcome == "failover"


def test_a_request_that_failed_is_not_lost_for_a_backup_that_is_merely_slow():
    simulation = Simulation(takes(0.002), takes(0.003), retries=0)
    simulation.load(100, 3)
    simulation.run()
    simulation.behaviours = [fails(CODES.UNAVAILABLE), takes(0.6)]
    simulation.regions.heard(simulation.now, 1, {}, ready=True)
    simulation.regions.targets[1].breaker._open(simulation.now, "told so")
    request = simulation.answer()
    assert request.outcome == "failover"
    assert not request.made[1].is_paid
    simulation.regions.targets[1].is_ready = False
    assert simulation.answer().outcome == "UNAVAILABLE", "who drains is left alone"


@pytest.mark.parametrize(
    ("median", "timeout", "limit"),
    [
        (None, 10.0, 5.0),
        (0.001, 10.0, 0.25),
        (0.1, 10.0, 1.0),
        (2.0, 10.0, 5.0),
        (0.001, 0.1, 0.05),
        (0.04, 0.1, 0.08),
        (9.0, 10.0, 18.0),
    ],
)
def test_when_an_attempt_is_slow(median, timeout, limit):
    """Ten medians, 250 ms at least, half of the caller's time at most; but two medians in any case."""
    record = ModelRecord(1, 0.03)
    record.at[0].median = median
    assert record.slow_after(0, timeout) == pytest.approx(limit)
