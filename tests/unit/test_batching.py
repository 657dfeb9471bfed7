"""The queue in front of a model, against a plain list that obeys the same rules."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass

from hedgerow_server.engine.batching import BatchQueue
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

NEVER = float("inf")


@dataclass(eq=False)
class Request:
    """What the queue reads of a request."""

    rows: int = 1
    kind: Hashable | None = "k"
    deadline: float = NEVER
    ended: bool = False
    queued_ns: int = 0


class Queueing(RuleBasedStateMachine):
    """Adds, ends, lets time pass and takes; keeps its own list of who waits, in order of arrival."""

    @initialize(max_rows=st.integers(1, 8))
    def begin(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.queue: BatchQueue[Request] = BatchQueue(max_rows)
        self.waiting: list[Request] = []
        self.given: list[Request] = []
        self.now = 0.0

    @rule(
        rows=st.integers(1, 10),
        kind=st.sampled_from(["a", "b", "c", None]),
        patience=st.one_of(st.just(NEVER), st.integers(1, 5)),
    )
    def add(self, rows: int, kind: Hashable | None, patience: float) -> None:
        request = Request(rows, kind, self.now + patience)
        self.queue.add(request)
        self.waiting.append(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).ended = True

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        before = list(self.waiting)
        batch, expired = self.queue.take(self.now)
        self._give(batch, expired)
        alive = [r for r in before if not r.ended and r.deadline > self.now]
        assert bool(batch) == bool(alive), "a batch is formed exactly if somebody waits"
        if not batch:
            return
        (kind,) = {r.kind for r in batch}
        if kind is None:
            assert len(batch) == 1
        else:
            line = [r for r in alive if r.kind == kind]
            assert batch == line[: len(batch)], "in order of arrival, nobody left out"
            after = line[len(batch) :]
            rows = sum(r.rows for r in batch)
            assert not after or rows + after[0].rows > self.max_rows, "as many as fit"
        assert sum(r.rows for r in batch) <= self.max_rows or len(batch) == 1

    @rule()
    def expire(self) -> None:
        expired = self.queue.expire(self.now)
        late = [r for r in self.waiting if not r.ended and r.deadline <= self.now]
        assert sorted(map(id, expired)) == sorted(map(id, late))
        self._give([], expired)
        self.waiting = [r for r in self.waiting if not r.ended]
        assert len(self.queue) == len(self.waiting)

    @rule()
    def drain(self) -> None:
        rest = self.queue.drain()
        assert {id(r) for r in rest if not r.ended} == {id(r) for r in self.waiting if not r.ended}
        self.given += [r for r in rest if not r.ended]
        self.waiting.clear()
        assert len(self.queue) == 0

    def _give(self, batch: list[Request], expired: list[Request]) -> None:
        for request in (*batch, *expired):
            assert not request.ended
            assert request in self.waiting, "given twice, or never added"
            self.waiting.remove(request)
            self.given.append(request)
        assert all(r.deadline > self.now for r in batch)
        assert all(r.deadline <= self.now for r in expired)

    @invariant()
    def its_length_counts_at_least_who_waits(self) -> None:
        if hasattr(self, "queue"):
            alive = sum(not r.ended for r in self.waiting)
            assert alive <= len(self.queue) <= len(self.waiting)

    @invariant()
    def what_it_expects_of_the_next_batch_is_no_less_than_what_comes(self) -> None:
        if hasattr(self, "queue") and len(self.queue):
            assert self.queue.next_rows() <= max(self.max_rows, *(r.rows for r in self.waiting))

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        while len(self.queue):
            self.take()
        assert all(r.ended for r in self.waiting), "somebody was lost"


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


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
