"""What a client with backups does, in made-up time: the simulation runs what both clients run."""

from __future__ import annotations

import math
import random
from collections import Counter

import grpc
import hedgerow
import pytest
from hedgerow.hedging import Hedging
from hedgerow.hedging.latencies import Latencies, ModelRecord
from hedgerow.hedging.regions import ASK_READY, ASK_UNREADY, Regions
from hedgerow.hedging.target import LOAD_SECONDS
from hedgerow_protos.breaker import State
from hedgerow_protos.hedging import Budget, write_load, write_previous_attempts
from hedging_simulation import DEADLINE_EXCEEDED, HANGS, OK, Fate, Simulation

CODES = grpc.StatusCode
PUSHBACK, LOAD = "grpc-retry-pushback-ms", "endpoint-load-metrics"


def takes(seconds, **said):
    return lambda now: Fate(seconds, OK, said)


def fails(code, seconds=0.001, **said):
    return lambda now: Fate(seconds, code, {key.replace("_", "-"): value for key, value in said.items()})


def hangs(now):
    return HANGS


def spend(simulation):
    while simulation.regions.budget.withdraw():
        pass


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


# The breaker of the primary.


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
