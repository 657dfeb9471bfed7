"""Who is refused at the door: decisions on made-up numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hedgerow_server.gate.admission import (
    DEADLINE,
    HEDGES,
    LONGEST_RETRY,
    ORDINARY,
    REASONS,
    SHADOWS,
    SHORTEST_RETRY,
    WAIT_MARGIN,
    Admission,
    Backlog,
    Class,
    backlog,
    class_of_priority,
)
from hedgerow_server.gate.busy import Busy
from hedgerow_server.gate.concurrency import OPEN_TO_ALL, Bounds, ConcurrencyLimit
from hypothesis import given
from hypothesis import strategies as st


@dataclass(eq=False)
class Version:
    """What admission reads of a model version."""

    in_flight: int = 0
    name: str = "m"
    limit: ConcurrencyLimit = field(default_factory=ConcurrencyLimit)


def admission(bounds: Bounds, *versions: Version, spread: float = 0.0):
    idle = Busy(1.0, loop_time=lambda: 0.0, process_time=lambda: 0.0)
    made = Admission(bounds, idle, spread=lambda: spread)
    made.follow(versions)
    for version in versions:
        version.limit.move(threaded=True)
    return made


def taken(of: Class) -> int:
    """How many requests of a class find room in a model with a limit of 100."""
    version = Version()
    door = admission(Bounds(1, 100, adaptive=False), version)
    for version.in_flight in range(200):
        if door.full(version, of) is not None:
            return version.in_flight
    raise AssertionError


def test_lower_classes_are_shed_first() -> None:
    """Hedges from other regions, mirrored requests, low priorities, and the rest at the very limit."""
    order = [HEDGES, SHADOWS, *(class_of_priority(priority, 4) for priority in (4, 3, 2, 1))]
    room = [taken(of) for of in order]
    assert room == sorted(set(room)), "each has less room than the next"
    assert room[-1] == 100
    assert room[0] >= 100 * OPEN_TO_ALL, "what is ample for one is ample for all"


def test_the_lowest_of_few_priorities_is_the_lowest_of_many() -> None:
    assert taken(class_of_priority(2, 2)) == taken(class_of_priority(1000, 1000)) == 60
    assert class_of_priority(1, 1) is class_of_priority(1, 9) is class_of_priority(0, 0) is ORDINARY


def test_who_would_be_late_is_refused_and_told_when_the_queue_has_drained() -> None:
    version = Version(in_flight=5)
    door = admission(Bounds(), version)
    found = Backlog(wait=0.2, run=0.1)
    assert door.late(version, ORDINARY, found, 0.2 * WAIT_MARGIN + 0.11) is None
    refusal = door.late(version, ORDINARY, found, 0.2 * WAIT_MARGIN + 0.09)
    assert refusal is not None
    assert (refusal.reason, refusal.retry_after) == (DEADLINE, 0.2)
    assert "340 ms left" in refusal.message
    assert "about 300 ms" in refusal.message


def test_an_idle_model_takes_any_request() -> None:
    """What is expected of its runs may be out of date; nobody would ever find out."""
    version = Version(in_flight=0)
    door = admission(Bounds(1, 1), version)
    assert door.full(version, HEDGES) is None
    assert door.late(version, HEDGES, Backlog(0.0, 5.0), 0.001) is None


def test_callers_are_not_told_to_come_back_at_once_nor_all_at_the_same_time() -> None:
    version = Version(in_flight=100)
    for spread in (0.0, 0.5, 1.0):
        refusal = admission(Bounds(1, 100), version, spread=spread).full(version, ORDINARY)
        assert refusal is not None
        assert refusal.retry_after == SHORTEST_RETRY * (1 + spread)


def test_a_full_model_tells_in_what_time_it_answers_what_it_has() -> None:
    """At 50 a second the hundred under way take two."""
    version = Version()
    door = admission(Bounds(1, 100), version)
    for i in range(100):
        version.limit.sample(i * 0.02, 0.0, 0.01, 1.0, 1, 10)
    version.in_flight = 100
    refusal = door.full(version, ORDINARY)
    assert refusal is not None
    assert refusal.retry_after == pytest.approx(2.0, rel=0.01)
    version.in_flight = 100_000
    refusal = door.full(version, ORDINARY)
    assert refusal is not None
    assert refusal.retry_after == LONGEST_RETRY


def test_a_hedge_is_told_not_to_come_back() -> None:
    version = Version(in_flight=99)
    door = admission(Bounds(1, 100), version)
    for refusal in (door.full(version, HEDGES), door.late(version, HEDGES, Backlog(5.0, 5.0), 1.0)):
        assert refusal is not None
        assert refusal.retry_after is None
        assert "do not retry" in refusal.message


def test_a_version_keeps_its_limit_while_tables_change() -> None:
    """It is bound once, when it comes; one that is loaded anew begins anew."""
    version, other = Version(), Version()
    door = admission(Bounds(1, 100), version)
    for i in range(100):
        version.limit.sample(i * 0.01, 0.9, 0.01, 1.0, 1, 90)
    learned = version.limit.value
    assert learned < 100
    door.follow([other, version])
    assert (version.limit.value, other.limit.value) == (learned, 100)


@given(ahead=st.integers(0, 1000), free=st.floats(-5, 10), slots=st.floats(1, 10), run=st.floats(1e-6, 10))
def test_what_is_found_grows_with_what_is_ahead(ahead: int, free: float, slots: float, run: float) -> None:
    found = backlog(ahead, free, slots, run)
    assert backlog(ahead + 1, free, slots, run).wait >= found.wait
    assert backlog(ahead, free - 1, slots, run).wait >= found.wait
    if ahead + 1 <= free:
        assert found.wait == 0.0, "a free runner takes it at once"
    assert found.wait <= (ahead + 1) * run / int(slots) + 2 * run


def test_runs_that_end_together_are_reckoned_with() -> None:
    """Two slots, both busy: the first two wait for one run, the next two for another."""
    assert [backlog(ahead, 0, 2, 0.1).wait for ahead in range(4)] == [0.1, 0.1, 0.2, 0.2]


def test_utilization_is_that_of_the_busiest() -> None:
    """The loop, the processors, or the model with the longest wait."""
    version, other = Version(in_flight=30), Version(in_flight=80)
    times = {"loop": 0.0, "process": 0.0}
    busy = Busy(4.0, loop_time=lambda: times["loop"], process_time=lambda: times["process"])
    door = Admission(Bounds(1, 100), busy)
    assert door.utilization(0.0) == 0.0
    door.follow([version, other])
    for each in (version, other):
        each.limit.move(threaded=True)
    assert door.utilization(1.0) == 0.8
    times.update(loop=0.9, process=1.0)
    assert door.utilization(2.0) == pytest.approx(0.9)
    times.update(loop=0.9, process=5.0)
    assert door.utilization(3.0) == pytest.approx(1.0)
    times.update(loop=1.9)
    assert door.utilization(3.1) == pytest.approx(1.0), "not looked at again yet"
    assert door.utilization(4.0) == pytest.approx(1.0)
    assert door.utilization(5.0) == 0.8


def test_reasons_are_a_closed_set() -> None:
    classes = (HEDGES, SHADOWS, ORDINARY, class_of_priority(2, 2))
    assert {of.reason for of in classes} < set(REASONS)
