"""Overload in virtual time: the server's own queue, latency model, limit and admission around made-up runs.

Capacity is what the slots can answer if every run is full; `patience` is the callers' deadline.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hedgerow_server.gate.admission import HEDGES, SHADOWS, Class, class_of_priority
from hedgerow_server.gate.concurrency import Bounds
from hypothesis import given, settings
from hypothesis import strategies as st
from queueing import Request, Station


def service(
    base: float, a_row: float = 0.0, *, slow: tuple[float, float] = (0, 0), factor: float = 10.0
) -> Callable[[int, float], float]:
    """Runs of `base` and `a_row` seconds for each row, give or take a tenth; slower for some time."""
    noise = random.Random(1)

    def seconds(rows: int, now: float) -> float:
        times = factor if slow[0] <= now < slow[1] else 1.0
        return (base + a_row * rows) * noise.uniform(0.9, 1.1) * times

    return seconds


#: Seconds of a run and of each row in it, slots, rows in a run, patience.
MODELS = {
    "rows alone": (0.005, 0.0, 2, 1, 0.25),
    "batches": (0.005, 0.0001, 5, 16, 0.25),
    "fast batches": (0.002, 0.00002, 2, 8, 0.05),
    "hardly time for three runs": (0.1, 0.001, 4, 8, 0.3),
    "as many rows as time": (0.0, 0.01, 4, 8, 0.3),
}
models = pytest.mark.parametrize("model", MODELS)


def station(model: str, **more: Any) -> tuple[Station, float, float]:
    """A model, what it can answer in a second, and its callers' patience."""
    base, a_row, slots, rows, patience = MODELS[model]
    made = Station(service(base, a_row, **more), slots=slots, max_rows=rows)
    return made, slots * rows / (base + a_row * rows), patience


@models
def test_at_five_times_what_it_can_do_it_goes_on_doing_that(model: str) -> None:
    """No request is answered late, hardly one is taken in vain."""
    at, capacity, patience = station(model)
    at.arrive(5 * capacity, 1e9, patience)
    at.run(2)
    seen = at.run(8)
    assert seen.outcomes["good"] > 0.95 * 6 * capacity, seen.outcomes
    assert seen.outcomes["late"] + seen.outcomes["expired"] < 0.01 * seen.outcomes["good"], seen.outcomes
    assert seen.percentile(0.99) < patience
    # Half of the time is not spent in the queue, where there is that much.
    base, a_row, _, rows, _ = MODELS[model]
    if patience > 10 * (base + a_row * rows):
        assert seen.percentile(0.99) < patience / 2
    assert at.admission.utilization(at.now) > 0.8


@models
def test_at_three_quarters_of_it_hardly_anybody_is_refused(model: str) -> None:
    at, capacity, patience = station(model)
    at.arrive(0.75 * capacity, 1e9, patience)
    at.run(2)
    seen = at.run(22)
    assert seen.outcomes["good"] > 0.99 * seen.outcomes.total(), seen.outcomes


@models
def test_all_is_well_within_five_seconds_of_an_overload(model: str) -> None:
    """No state that keeps itself up: no refusal once the load is gone."""
    at, capacity, patience = station(model)
    at.arrive(0.5 * capacity, 1e9, patience)
    at.arrive(4.5 * capacity, 10, patience)
    at.run(15)
    seen = at.run(25)
    assert seen.outcomes["good"] > 0.995 * seen.outcomes.total(), seen.outcomes


@models
def test_all_is_well_within_five_seconds_of_runs_ten_times_as_slow(model: str) -> None:
    """What was learned meanwhile of run times and limits is unlearned, of every size of batch."""
    at, capacity, patience = station(model, slow=(5, 15))
    at.arrive(0.6 * capacity, 1e9, patience)
    at.run(5)
    slow = at.run(15)
    assert slow.outcomes["good"] < 0.9 * slow.outcomes.total()
    at.run(20)
    seen = at.run(30)
    assert seen.outcomes["good"] > 0.99 * seen.outcomes.total(), seen.outcomes


def test_callers_in_no_hurry_are_not_refused_however_many_they_are() -> None:
    """256 who each wait for their answer keep a queue of 640 ms, and have ten seconds."""
    at = Station(service(0.005), slots=2)
    at.callers(256, 1e9, patience=10.0)
    seen = at.run(20)
    assert set(seen.outcomes) == {"good"}
    assert seen.outcomes["good"] == pytest.approx(20 * 400, rel=0.02)


def test_callers_who_come_back_at_once_do_not_keep_it_from_working() -> None:
    """Closed loop: two hundred and fifty-six callers for a model that can answer sixteen of them in time."""
    at = Station(service(0.005), slots=2)
    at.callers(256, 1e9, patience=0.1)
    at.run(5)
    seen = at.run(15)
    assert seen.outcomes["good"] == pytest.approx(10 * 400, rel=0.03)
    assert seen.percentile(0.99) < 0.1


def test_a_limit_that_nobody_uses_stays() -> None:
    at = Station(service(0.005), slots=2)
    at.arrive(2000, 3.0, 0.25)
    at.run(4)
    learned = at.limit.value
    assert learned < 100
    at.run(1000)
    assert at.limit.value == learned
    at.arrive(40, 1e9, 0.25)
    at.run(1100)
    assert at.limit.value == learned, "a tenth of the load does not use half of it"


@pytest.mark.parametrize("top", [0.3, 0.8])
def test_classes_are_shed_in_order(top: float) -> None:
    """The highest priority is served, whatever comes below it; of the rest each more than the one below."""
    at = Station(service(0.005), slots=2, prioritized=True)
    classes = [class_of_priority(1, 3), class_of_priority(2, 3), class_of_priority(3, 3), SHADOWS, HEDGES]
    for of, load, priority in zip(classes, [top, 0.5, 0.5, 0.5, 0.5], [1, 2, 3, 3, 3], strict=True):
        at.arrive(400 * load, 1e9, 0.25, of=of, priority=priority)
    at.run(3)
    seen = at.run(23)

    def served(of: Class) -> float:
        all_of_it = sum(count for (_, found, _), count in seen.by_class.items() if found == of.share)
        return seen.by_class[of.reason, of.share, "good"] / all_of_it

    shares = [served(of) for of in classes]
    assert shares[0] > 0.995, seen.by_class
    assert all(upper >= lower - 0.01 for upper, lower in pairwise(shares)), seen.by_class
    assert shares[1] > shares[3]
    assert seen.outcomes["expired"] + seen.outcomes["late"] < 0.05 * seen.outcomes["good"], seen.outcomes


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    base=st.sampled_from([0.001, 0.005, 0.02]),
    a_row=st.sampled_from([0.0, 0.0005]),
    slots=st.integers(1, 5),
    rows=st.sampled_from([1, 4, 32]),
    load=st.sampled_from([0.3, 1.0, 3.0]),
    patience=st.sampled_from([0.03, 0.25, 5.0]),
    maximum=st.sampled_from([16, 4096]),
    kinds=st.integers(1, 3),
)
def test_whoever_is_let_in_leaves_once(
    seed: int,
    base: float,
    a_row: float,
    slots: int,
    rows: int,
    load: float,
    patience: float,
    maximum: int,
    kinds: int,
) -> None:
    """Any model, any load: bounds hold, nobody ends twice, and at the end nobody is left inside."""
    at = Station(service(base, a_row), slots=slots, max_rows=rows, bounds=Bounds(4, maximum), seed=seed)
    capacity = slots * rows / (base + a_row * rows)
    for kind in range(kinds):
        at.arrive(load * capacity / kinds, 1.0, patience, kind=kind, rows=1 + kind)

    def look() -> None:
        assert 0 <= at.in_flight <= maximum
        assert 4 <= at.limit.value <= maximum

    for i in range(100):
        at.at(i * 0.01, look)
    at.run(1.0)
    at.run(100.0)
    assert at.in_flight == at.running == at.queue.length == 0


def test_a_refused_request_is_told_a_time_at_which_there_is_room() -> None:
    at = Station(service(0.005), slots=2)
    at.arrive(2000, 2.0, 0.25)
    at.run(2.0)
    refusal = None
    while refusal is None:
        request = Request(at.now, at.now + 0.25)
        refusal = at.refusal(request)
        if refusal is None:
            at.enter(request)
    assert refusal.retry_after is not None
    at.run(2.0 + refusal.retry_after)
    assert at.refusal(Request(at.now, at.now + 0.25)) is None
