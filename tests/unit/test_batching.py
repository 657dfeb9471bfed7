"""The queue in front of a model: which requests run together, whose turn it is, and who is too late."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hedgerow_server.engine.batching import BatchQueue, Wait
from queued_requests import Request


def test_what_is_plain_to_see_is_taken_as_it_stands() -> None:
    queue: BatchQueue[Request] = BatchQueue(4)
    assert queue.take_whole(1.0) is None, "nothing is no batch"
    requests = [Request(deadline=2.0), Request(rows=3, deadline=3.0)]
    for request in requests:
        queue.add(request)
    assert queue.take_whole(2.0) is None, "one has too little time"
    assert queue.take_whole(1.0) == requests
    assert (len(queue), queue.next_rows(), queue.runs_ahead()) == (0, 0, 0)
    assert queue.take_whole(1.0) is None


@pytest.mark.parametrize(
    ("wait", "levels", "requests"),
    [
        (0, 0, [{"rows": 2}, {"rows": 3}]),
        (0, 0, [{"kind": "k"}, {"kind": "other"}]),
        (0, 0, [{}, {"ended": True}]),
        (1, 0, [{}, {}]),
        (0, 2, [{"priority": 1}, {"priority": 2}]),
    ],
    ids=["too many", "kinds", "ended", "waits", "prioritized"],
)
def test_what_is_not_plain_to_see_is_left_to_take(
    wait: float, levels: int, requests: list[dict[str, Any]]
) -> None:
    queue: BatchQueue[Request] = BatchQueue(4, Wait(wait), prioritized=levels > 0)
    for request in requests:
        queue.add(Request(**request))
    assert queue.take_whole(0.0) is None
    assert len(queue) == len(requests)


@pytest.mark.parametrize("kind", ["k", "other"])
def test_a_larger_request_is_not_judged_by_the_run_of_one_that_ran_out_of_time(kind: str) -> None:
    """Nor does its line lose its turn: how long its own run takes has to be asked."""
    queue: BatchQueue[Request] = BatchQueue(4)
    lost, large, third = Request(deadline=0.5), Request(rows=10, kind=kind), Request(kind="third")
    for request in (lost, large, third):
        queue.add(request)
    assert queue.take(0.0, float(queue.next_rows()), float, float) == ([], [lost])
    assert queue.next_rows() == 10
    assert queue.take(0.0, 10.0, float, float) == ([large], [])
    assert queue.take(0.0, 1.0, float, float) == ([third], [])


def test_lines_take_turns_so_a_rare_shape_is_not_starved() -> None:
    queue: BatchQueue[Request] = BatchQueue(2)
    for _ in range(10):
        queue.add(Request(kind="common"))
    queue.add(Request(kind="rare"))
    kinds = [queue.take(0.0)[0][0].kind for _ in range(3)]
    assert kinds == ["common", "rare", "common"]


def test_a_request_larger_than_the_largest_batch_runs_alone_and_whole() -> None:
    queue: BatchQueue[Request] = BatchQueue(4)
    sizes = [1, 9, 1, 3, 1]
    for rows in sizes:
        queue.add(Request(rows))
    taken = []
    while len(queue):
        taken.append([r.rows for r in queue.take(0.0)[0]])
    assert taken == [[1], [9], [1, 3], [1]]


def test_requests_that_run_alone_keep_their_turn_among_the_others() -> None:
    queue: BatchQueue[Request] = BatchQueue(8)
    for kind in (None, "k", None, "k"):
        queue.add(Request(kind=kind))
    taken = [[r.kind for r in queue.take(0.0)[0]] for _ in range(3)]
    assert taken == [[None], ["k", "k"], [None]]


def test_the_rows_of_the_next_batch_are_known_beforehand() -> None:
    """A run is judged by its rows: a request of a thousand rows is not one that is quick for one row."""
    queue: BatchQueue[Request] = BatchQueue(8)
    assert queue.next_rows() == 0
    queue.add(Request(rows=3))
    assert queue.next_rows() == 3
    queue.add(Request(rows=1000, kind="other"))
    assert queue.next_rows() == 8, "an upper bound: never too few"
    queue.add(Request(rows=7))
    assert queue.next_rows() == 8
    queue.take(0.0)
    assert queue.next_rows() == 1000


def test_an_empty_queue_gives_nothing_and_shows_its_state() -> None:
    queue: BatchQueue[Request] = BatchQueue(0)
    assert queue.take(0.0) == ([], [])
    assert queue.expire(0.0) == queue.drain() == []
    for kind in itertools.islice(itertools.cycle("ab"), 4):
        queue.add(Request(kind=kind))
    assert repr(queue) == "<BatchQueue 4 requests in 2 lines, at most 1 rows a batch>"


def test_a_tight_deadline_keeps_its_batch_small() -> None:
    """Ten milliseconds a row: whoever has 25 gets one companion, and the rest go together after it."""
    queue: BatchQueue[Request] = BatchQueue(8)
    queue.add(Request(deadline=0.025))
    for _ in range(7):
        queue.add(Request(deadline=1.0))
    expect = (0.010).__mul__
    assert [len(queue.take(0.0, expect(queue.next_rows()), expect)[0]) for _ in range(2)] == [2, 6]


def test_who_would_be_late_is_not_run_while_others_are_in_time() -> None:
    """A run takes 10 ms whatever its rows: those who have 5 ms are told now, and take nobody's place."""
    queue: BatchQueue[Request] = BatchQueue(4)
    for i in range(8):
        queue.add(Request(deadline=0.005 if i % 2 else 0.015))
    batch, expired = queue.take(0.0, 0.010, lambda _: 0.010, lambda _: 0.010)
    assert [r.deadline for r in batch] == [0.015] * 4
    assert [r.deadline for r in expired] == [0.005] * 4


def test_where_all_would_be_late_one_is_run_to_find_out() -> None:
    """What a run takes may have been learned while the machine was slow."""
    queue: BatchQueue[Request] = BatchQueue(4)
    for kind in "aabb":
        queue.add(Request(kind=kind, deadline=0.005))
    batch, expired = queue.take(0.0, 0.010, lambda _: 0.010, lambda _: 0.010)
    assert ([r.kind for r in batch], [r.kind for r in expired], len(queue)) == (["b"], ["a", "a"], 1)


def test_a_large_request_behind_one_that_ended_is_judged_by_its_own_rows() -> None:
    queue: BatchQueue[Request] = BatchQueue(8)
    queue.add(Request(ended=True))
    queue.add(Request(deadline=1.0))
    queue.add(Request(rows=1000))
    assert queue.next_rows(2.0) == 1000
    assert queue.next_rows(0.0) == 8


def test_how_many_runs_come_before() -> None:
    """Rows in full runs, and a turn for each other kind; of those that one has to wait for."""
    queue: BatchQueue[Request] = BatchQueue(4)
    assert (queue.runs_ahead(), queue.typical_rows()) == (0, 1)
    for _ in range(9):
        queue.add(Request())
    assert (queue.runs_ahead(), queue.typical_rows()) == (2, 4)
    for kind in "abc":
        queue.add(Request(kind=kind))
    assert queue.runs_ahead() == 3
    alone: BatchQueue[Request] = BatchQueue(1)
    for _ in range(3):
        alone.add(Request(rows=5, kind=None))
    assert (alone.runs_ahead(), alone.typical_rows()) == (3, 5)
    levels: BatchQueue[Request] = BatchQueue(4, prioritized=True)
    for i in range(20):
        levels.add(Request(rows=2, priority=1 + i // 10))
    assert [levels.runs_ahead(priority) for priority in (1, 2)] == [5, 10]
