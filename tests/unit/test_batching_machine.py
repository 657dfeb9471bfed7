"""The queue in front of a model, against a plain list that obeys the same rules."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from hedgerow_server.engine.batching import BatchQueue, Wait
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from queued_requests import NEVER, Request


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
            if self.company.seconds:
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
