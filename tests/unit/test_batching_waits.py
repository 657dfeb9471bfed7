"""How long the queue in front of a model has requests wait for company, and for how much of it."""

from __future__ import annotations

from hedgerow_server.engine.batching import BatchQueue, Wait
from queued_requests import Request


def due(queue: BatchQueue[Request], now: float, expected: float = 0.0) -> float:
    """Seconds from now until the next batch."""
    return round(queue.due(now, expected) - now, 6)


def test_nothing_waits_without_a_delay() -> None:
    """Preferred sizes shape batches only where requests may wait; natural batching is the rule."""
    queue: BatchQueue[Request] = BatchQueue(8, Wait(preferred=(2,)))
    assert due(queue, 5.0) == 0
    requests = [Request(queued_ns=5_000_000_000) for _ in range(5)]
    for take in (lambda: queue.take(5.0)[0], lambda: queue.take_whole(5.0)):
        for request in requests:
            queue.add(request)
        assert due(queue, 5.0) == 0
        assert take() == requests


def test_a_batch_waits_until_it_is_full_or_its_time_is_over() -> None:
    queue: BatchQueue[Request] = BatchQueue(4, Wait(0.010))
    queue.add(Request(rows=1, queued_ns=1_000_000_000))
    assert due(queue, 1.0) == 0.010
    queue.add(Request(rows=2, queued_ns=1_004_000_000))
    assert due(queue, 1.004) == 0.006, "counted from the first"
    assert due(queue, 1.011) == 0
    queue.add(Request(rows=1, queued_ns=1_005_000_000))
    assert due(queue, 1.005) == 0, "full"
    assert [r.rows for r in queue.take(1.005)[0]] == [1, 2, 1]


def test_a_batch_of_a_preferred_size_leaves_the_rest_to_the_next() -> None:
    queue: BatchQueue[Request] = BatchQueue(8, Wait(0.010, (2, 4)))
    for _ in range(3):
        queue.add(Request())
    assert due(queue, 0.0) == 0.010, "the largest preferred size is not reached"
    assert [len(queue.take(0.010)[0]) for _ in range(2)] == [2, 1]
    for _ in range(4):
        queue.add(Request())
    queue.add(Request(kind="other"))
    for _ in range(2):
        queue.add(Request())
    assert due(queue, 0.0) == 0
    taken = queue.take(0.0)[0]
    assert ([r.kind for r in taken], due(queue, 0.0)) == (["k"] * 4, 0.010), "other kinds fill no batch"


def test_a_request_whose_deadline_is_near_does_not_wait() -> None:
    """It is run early enough for twice the expected time; also from behind another kind's wait."""
    queue: BatchQueue[Request] = BatchQueue(8, Wait(1.0))
    queue.add(Request())
    queue.add(Request(kind="other", deadline=0.3))
    assert due(queue, 0.0, expected=0.05) == 0.2
    assert queue.take(0.1, 0.05) == ([], [])
    assert [r.kind for r in queue.take(0.2, 0.05)[0]] == ["other"]
    assert due(queue, 0.2, expected=0.05) == 0.8


def test_a_full_line_does_not_wait_behind_one_that_wants_company() -> None:
    queue: BatchQueue[Request] = BatchQueue(2, Wait(1.0))
    for kind in ("slow", "full", "full", None):
        queue.add(Request(kind=kind))
    assert due(queue, 0.0) == 0
    assert [[r.kind for r in queue.take(0.0)[0]] for _ in range(2)] == [["full", "full"], [None]]
    assert due(queue, 0.0) == 1.0


def test_those_that_were_cancelled_fill_no_batch_and_hurry_nobody() -> None:
    queue: BatchQueue[Request] = BatchQueue(2, Wait(1.0))
    queue.add(Request(ended=True, deadline=0.1))
    queue.add(Request(queued_ns=500_000_000))
    assert due(queue, 0.5, expected=0.05) == 1.0
    assert queue.take(0.5, 0.05) == ([], [])
    queue.add(Request(queued_ns=600_000_000))
    assert due(queue, 0.6) == 0
    assert [r.queued_ns for r in queue.take(0.6)[0]] == [500_000_000, 600_000_000]
