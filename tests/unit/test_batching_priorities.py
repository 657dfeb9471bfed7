"""Requests of different priorities in the queue in front of a model, and which priority one has."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_server.engine.batching import BatchQueue
from hedgerow_server.engine.priorities import Priorities, priorities_of
from hedgerow_server.engine.refusal import LoadRefused
from queued_requests import Request


def test_the_highest_priority_runs_first_and_lower_ones_fill_its_batch() -> None:
    queue: BatchQueue[Request] = BatchQueue(4, prioritized=True)
    for priority in (3, 2, 3, 1, 2, 1):
        queue.add(Request(priority=priority))
    assert [[r.priority for r in queue.take(0.0)[0]] for _ in range(2)] == [[1, 1, 2, 2], [3, 3]]


def test_requests_that_run_alone_are_in_order_of_priority_too() -> None:
    queue: BatchQueue[Request] = BatchQueue(1, prioritized=True)
    for priority, rows in ((2, 1), (1, 0), (2, 5), (1, 1)):
        queue.add(Request(rows, None, priority))
    taken = [[(r.priority, r.rows) for r in queue.take(0.0)[0]] for _ in range(4)]
    assert taken == [[(1, 0)], [(1, 1)], [(2, 1)], [(2, 5)]]


def test_kinds_of_one_priority_take_turns_before_any_of_a_lower() -> None:
    queue: BatchQueue[Request] = BatchQueue(1, prioritized=True)
    for kind, priority in (("a", 2), ("b", 1), ("c", 1), ("b", 1)):
        queue.add(Request(kind=kind, priority=priority))
    assert [queue.take(0.0)[0][0].kind for _ in range(4)] == ["b", "c", "b", "a"]


def test_those_of_higher_priority_that_have_left_hold_up_nobody() -> None:
    queue: BatchQueue[Request] = BatchQueue(2, prioritized=True)
    queue.add(Request(kind="a", priority=1, ended=True))
    queue.add(Request(kind="a", priority=3))
    queue.add(Request(kind="b", priority=2))
    assert [queue.take(0.0)[0][0].kind for _ in range(2)] == ["b", "a"]


@pytest.mark.parametrize(
    ("batching", "problem"),
    [
        ({"priority_levels": 3}, "defaultPriorityLevel is 0; with priorityLevels 3 it must be from 1 to 3"),
        ({"priority_levels": 3, "default_priority_level": 4}, "defaultPriorityLevel is 4"),
        ({"default_priority_level": 1}, "there are no priorityLevels"),
    ],
)
def test_a_default_that_is_no_level_is_refused(batching: dict[str, int], problem: str) -> None:
    with pytest.raises(LoadRefused, match=problem):
        priorities_of(json_format.ParseDict({"batching": batching}, ServingSpec()))


@pytest.mark.parametrize(
    ("asked", "levels", "default", "wanted"),
    [
        (0, 3, 2, 2),
        (1, 3, 2, 1),
        (3, 3, 2, 3),
        (4, 3, 2, 2),
        (2**64 - 1, 3, 2, 2),
        (-1, 3, 2, 2),
        (5, 0, 0, 0),
    ],
)
def test_a_priority_that_the_model_does_not_have_is_its_default(
    asked: int, levels: int, default: int, wanted: int
) -> None:
    """As in Triton, whose clients meet the same models."""
    assert Priorities(levels, default).of(asked) == wanted
