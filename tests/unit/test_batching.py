"""The queue in front of a model, against a plain list that obeys the same rules."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import pytest
from google.protobuf import json_format
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_server.engine.batching import BatchQueue, Wait
from hedgerow_server.engine.priorities import Priorities, priorities_of
from hedgerow_server.engine.refusal import LoadRefused
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

NEVER = float("inf")


@dataclass(eq=False)
class Request:
    """What the queue reads of a request."""

    rows: int = 1
    kind: Hashable | None = "k"
    priority: int = 0
    deadline: float = NEVER
    ended: bool = False
    queued_ns: int = 0


class Queueing(RuleBasedStateMachine):
    """Adds, ends, lets time pass and takes; keeps its own list of who waits, in order of arrival."""

    @initialize(
        max_rows=st.integers(1, 8),
        seconds=st.sampled_from([0, 0, 2, 10]),
        levels=st.sampled_from([0, 0, 3]),
        data=st.data(),
    )
    def begin(self, max_rows: int, seconds: int, levels: int, data: st.DataObject) -> None:
        self.max_rows = max_rows
        self.levels = levels
        preferred = data.draw(st.one_of(st.just(set()), st.sets(st.integers(1, max_rows), max_size=2)))
        self.company = Wait(seconds, tuple(sorted(preferred)))
        self.queue: BatchQueue[Request] = BatchQueue(max_rows, self.company, prioritized=levels > 0)
        self.waiting: list[Request] = []
        self.given: list[Request] = []
        self.now = 0.0

    @rule(
        rows=st.integers(1, 10),
        kind=st.sampled_from(["a", "a", "a", "b", "c", None]),
        patience=st.one_of(st.just(NEVER), st.integers(1, 5)),
        level=st.integers(1, 3),
    )
    def add(self, rows: int, kind: Hashable | None, patience: float, level: int) -> None:
        priority = min(level, self.levels)
        request = Request(rows, kind, priority, self.now + patience, queued_ns=round(self.now * 1e9))
        alive = [r for r in self.waiting if not r.ended]
        if len(alive) == len(self.queue):
            before = sum(r.priority <= priority for r in alive)
            assert self.queue.runs_ahead(priority) <= before, "whoever is behind is not waited for"
        self.queue.add(request)
        self.waiting.append(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).ended = True

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    def _due(self, expected: float) -> float:
        """When a batch should run, by looking at each line on its own."""
        if not self.company.seconds:
            return self.now
        full = self.company.preferred[-1] if self.company.preferred else self.max_rows
        due = NEVER
        for kind in {r.kind for r in self.waiting}:
            alive = [r for r in self.waiting if r.kind == kind and not r.ended]
            if not alive:
                continue
            if kind is None or sum(r.rows for r in alive) >= full:
                return self.now
            due = min(due, *(r.queued_ns * 1e-9 + self.company.seconds for r in alive))
            due = min(due, *(r.deadline - 2 * expected for r in alive))
        return max(self.now, due)

    @precondition(lambda self: self.waiting)
    @rule(
        base=st.sampled_from([0.0, 0.0, 0.5]),
        slope=st.sampled_from([0.0, 0.25, 1.0]),
        looks_first=st.booleans(),
    )
    def take(self, base: float = 0.0, slope: float = 0.0, *, looks_first: bool = False) -> None:
        def expect(rows: int) -> float:
            return base + slope * rows

        before = list(self.waiting)
        expected = expect(self.queue.next_rows(self.now))
        alive = [r for r in before if not r.ended and r.deadline > self.now]
        due = self.queue.due(self.now, expected)
        if any(not r.ended for r in before):
            # Lines of none but ended requests are cleared away at any time.
            cleared = len({r.kind for r in before if r.ended} - {r.kind for r in before if not r.ended})
            assert due == self._due(expected) or (cleared and due == self.now)
        whole = self.queue.take_whole(self.now + expected) if looks_first else None
        if whole is None:
            batch, expired = self.queue.take(self.now, expected, expect, expect)
        else:
            assert whole, "nothing is no batch"
            batch, expired = whole, []
        rows = sum(r.rows for r in batch)
        if batch:
            assert expect(rows) <= expected, "judged by no fewer rows than ran"
        lost = [r for r in alive if r.deadline < self.now + min(expected, expect(r.rows))]
        self._give(batch, expired, lost)
        if due > self.now and len(before) > 1:
            assert not batch, "still waits for company"
        elif not self.company.seconds:
            assert bool(batch or expired) >= bool(alive), "somebody is run, or out of the way"
            assert bool(batch) == bool(alive) or lost, "a batch is formed exactly if somebody waits"
        if not batch:
            return
        (kind,) = {r.kind for r in batch}
        if batch[0] in lost:
            assert len(batch) == 1, "one is enough to find out how long a run takes now"
            if not self.company.seconds:
                assert all(r in lost for r in alive), "nobody is run too late where others have time"
            return
        if self.levels and not self.company.seconds and not lost:
            assert batch[0].priority == min(r.priority for r in alive), "the highest comes first"
        if kind is None:
            assert len(batch) == 1
        else:
            line = [r for r in alive if r.kind == kind and r not in lost]
            line.sort(key=lambda r: r.priority)
            assert batch == line[: len(batch)], "in order of arrival, nobody left out"
            after = line[len(batch) :]
            room = self.max_rows
            total = sum(r.rows for r in before if r.kind == kind and not r.ended)
            room = max((size for size in self.company.preferred if size <= total), default=room)
            if after and rows + after[0].rows <= room:
                longer = self.now + expect(rows + after[0].rows)
                assert longer > min(r.deadline for r in (*batch, after[0])), "as many as fit, and have time"
            elif len(batch) > 1:
                assert rows <= room
        for number in range(1, len(batch)):
            taken = self.now + expect(sum(r.rows for r in batch[: number + 1]))
            assert taken <= min(r.deadline for r in batch[: number + 1]), "nobody is late for company's sake"
        assert rows <= self.max_rows or len(batch) == 1

    @rule()
    def look(self) -> None:
        oldest = self.queue.oldest()
        alive = [r for r in self.waiting if not r.ended]
        assert (oldest is None) == (not alive)
        if oldest is not None and self.levels:
            assert oldest.queued_ns == min(r.queued_ns for r in alive)

    @rule(level=st.integers(1, 3))
    def displace(self, level: int) -> None:
        given = self.queue.displace(level)
        lower = [r for r in self.waiting if not r.ended and r.priority > level]
        if given is None:
            assert not lower
            return
        assert given.priority == max(r.priority for r in lower)
        same = [r for r in lower if r.priority == given.priority and r.kind == given.kind]
        assert given is same[-1], "the one of its line that came last"
        self.waiting.remove(given)
        self.given.append(given)

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

    def _give(self, batch: list[Request], expired: list[Request], lost: Sequence[Request] = ()) -> None:
        for request in (*batch, *expired):
            assert not request.ended
            assert request in self.waiting, "given twice, or never added"
            self.waiting.remove(request)
            self.given.append(request)
        assert all(r.deadline > self.now for r in batch)
        assert all(r.deadline <= self.now or r in lost for r in expired)

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
            self.now += 1
        assert all(r.ended for r in self.waiting), "somebody was lost"


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)


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
    ("queue", "requests"),
    [
        (BatchQueue(4), [Request(rows=2), Request(rows=3)]),
        (BatchQueue(4), [Request(kind="k"), Request(kind="other")]),
        (BatchQueue(4), [Request(), Request(ended=True)]),
        (BatchQueue(4, Wait(1.0)), [Request(), Request()]),
        (BatchQueue(4, Wait(preferred=(2,))), [Request(), Request(), Request()]),
        (BatchQueue(4, prioritized=True), [Request(priority=1), Request(priority=2)]),
    ],
    ids=["too many", "kinds", "ended", "waits", "preferred", "prioritized"],
)
def test_what_is_not_plain_to_see_is_left_to_take(
    queue: BatchQueue[Request], requests: list[Request]
) -> None:
    for request in requests:
        queue.add(request)
    assert queue.take_whole(0.0) is None
    assert len(queue) == len(requests)


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


def due(queue: BatchQueue[Request], now: float, expected: float = 0.0) -> float:
    """Seconds from now until the next batch."""
    return round(queue.due(now, expected) - now, 6)


def test_nothing_waits_without_a_delay() -> None:
    """Preferred sizes shape batches only where requests may wait; natural batching is the rule."""
    queue: BatchQueue[Request] = BatchQueue(8)
    assert due(queue, 5.0) == 0
    queue.add(Request(queued_ns=5_000_000_000))
    assert due(queue, 5.0) == 0
    assert len(queue.take(5.0)[0]) == 1


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
