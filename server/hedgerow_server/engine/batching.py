"""Which waiting requests run together: a plain queue without clock or I/O.

Natural batching: nothing waits for company, unless a model asks for it
(`Wait`). When a runner is free it takes what is there, up to the model's largest
batch, and no more than still meets the deadline of every request in it. Requests
that ended meanwhile (cancelled, or past their deadline) are dropped before the
batch forms, so a batch never depends on a request that nobody waits for.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from hedgerow_protos.hedgerow_control_pb2 import ServingSpec

from hedgerow_server.engine.refusal import LoadRefused


class Waiting(Protocol):
    """What the queue reads of a request."""

    @property
    def rows(self) -> int:
        """Rows it brings."""

    @property
    def kind(self) -> Hashable | None:
        """Requests run together only if these are equal; None: this one runs alone.

        It holds the dimensions behind the batch, and the outputs asked for.
        """

    @property
    def priority(self) -> int:
        """1 is the highest, and runs first, where the queue has priorities."""

    @property
    def deadline(self) -> float:
        """Seconds on the clock of `take`."""

    @property
    def ended(self) -> bool:
        """Nobody waits for the answer any more."""

    @property
    def queued_ns(self) -> int:
        """Nanoseconds on the clock of `take`, at which it joined."""


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Wait:
    """How long requests may wait for company, as in Triton's dynamic batcher.

    Attributes:
        seconds: The first request of a batch waits so long at most; 0 is not at all.
        preferred: Rows that a batch should have, ascending; a batch takes the largest of
            them that it can fill, and what is over goes into the next. Empty, or where none may wait: as
            many as fit.
    """

    seconds: float = 0.0
    preferred: tuple[int, ...] = ()


_NOT_DUE = object()
#: The line of requests that run alone, where they cannot each have one: they must stand in order.
_ALONE = object()
_priority = attrgetter("priority")

#: The longest wait for company, in seconds; a longer one is a slip of a unit.
LONGEST_WAIT = 10.0


def wait_of(serving: ServingSpec, max_rows: int) -> Wait:
    """The wait that a serving spec asks for.

    Args:
        serving: of the model.
        max_rows: rows in one run at most.

    Raises:
        LoadRefused: it cannot be kept.
    """
    batching = serving.batching
    seconds = batching.max_queue_delay_microseconds * 1e-6
    if seconds > LONGEST_WAIT:
        raise LoadRefused(
            f"batching.maxQueueDelayMicroseconds is {batching.max_queue_delay_microseconds}; "
            f"at most {LONGEST_WAIT:g} s make sense"
        )
    preferred = tuple(sorted(set(batching.preferred_batch_size)))
    if preferred and not 0 < preferred[0] <= preferred[-1] <= max_rows:
        raise LoadRefused(
            f"batching.preferredBatchSize is {list(batching.preferred_batch_size)}; "
            f"each must be a number of rows from 1 to {max_rows}, the most in one run"
        )
    return Wait(seconds, preferred)


def _nothing(rows: int) -> float:
    del rows
    return 0.0


class BatchQueue(Generic[W]):
    """Requests that wait for a run of one model version.

    Requests of one kind stand in one line, in order of arrival; the lines take
    turns, so a rare shape is not starved by a common one.

    With priorities a line is in order of priority, then of arrival, and the line whose first
    request has the highest comes next. As in Triton, a lower one waits as long as higher ones keep
    coming, but where a batch has room left it goes along. It is not made to wait for nothing:
    where higher ones alone are too many, `gate.admission` takes no lower ones in.

    Args:
        max_rows: rows in one run at most.
        wait: for company.
        prioritized: whether requests have priorities.
    """

    __slots__ = ("_is_plain", "_lines", "_max_rows", "_prioritized", "_rows", "_wait", "length", "waits")

    def __init__(self, max_rows: int, wait: Wait = Wait(), *, prioritized: bool = False) -> None:
        self._max_rows = max(1, max_rows)
        self._wait = wait
        self._prioritized = prioritized
        #: Whether requests may wait for company; if not, `due` is always now.
        self.waits = wait.seconds > 0
        self._is_plain = not (self.waits or prioritized)
        # The first line is the next to be served.
        self._lines: dict[Hashable, list[W]] = {}
        #: Requests that wait; the same as `len`, which costs a call.
        self.length = 0
        self._rows = 0

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        waiting = f"{self.length} requests in {len(self._lines)} lines"
        return f"<BatchQueue {waiting}, at most {self._max_rows} rows a batch>"

    def add(self, request: W) -> None:
        """Puts a request at the end of its line, or in front of those of lower priority."""
        kind = request.kind
        if kind is None:
            # One that runs alone is its own kind.
            kind = _ALONE if self._prioritized else id(request)
        line = self._lines.get(kind)
        if line is None:
            self._lines[kind] = [request]
        elif self._prioritized:
            insort(line, request, key=_priority)
        else:
            line.append(request)
        self.length += 1
        self._rows += request.rows

    def runs_ahead(self, priority: int = 0) -> int:
        """About how many runs come before the one that a request joining now would be in."""
        length, rows, lines = self.length, self._rows, len(self._lines)
        if self._prioritized and length:
            ahead = sum([bisect_right(line, priority, key=_priority) for line in self._lines.values()])
            rows, lines, length = rows * ahead // length, min(lines, ahead), ahead
        # A request is never in more than one.
        return length if self._max_rows == 1 else min(length, max(rows // self._max_rows, lines - 1))

    def typical_rows(self) -> int:
        """About how many rows the runs have while so many requests wait as now."""
        each = self._rows // self.length if self.length else 1
        return max(1, each, min(self._rows + 1, self._max_rows))

    def next_rows(self, now: float = 0.0) -> int:
        """Rows of the next batch, or some more: requests in it may have ended, or be of several kinds."""
        if self.length <= 1:
            return self._rows
        largest = 0
        for line in self._lines.values():
            # Only the first of a batch may have more rows than fit.
            for request in line:
                if not request.ended and request.deadline > now:
                    largest = max(largest, request.rows)
                    break
            if largest and not (self.waits or self._prioritized):
                break
        return max(largest, min(self._rows, self._max_rows))

    def due(self, now: float, expected: float) -> float:
        """When the next batch should run.

        Args:
            now: seconds, on the clock of the deadlines.
            expected: seconds that the run will take.

        Returns:
            `now`, or until when the requests of every line still wait for company: none longer
            than it may, nor so long that the run would be too late for it.
        """
        if not self.waits:
            return now
        dues = [self._due(line, expected) for line in self._lines.values()]
        return max(now, min(dues, default=now))

    def _due(self, line: list[W], expected: float) -> float:
        wait = self._wait
        full = wait.preferred[-1] if wait.preferred else self._max_rows
        due = float("inf")
        rows = 0
        for request in line:
            if request.ended:
                continue
            rows += request.rows
            if rows >= full or request.kind is None:
                return 0.0
            # Twice the run: what is expected is an average.
            due = min(due, request.queued_ns * 1e-9 + wait.seconds, request.deadline - 2 * expected)
        return due if rows else 0.0

    def take_whole(self, ample: float) -> list[W] | None:
        """Takes all that waits as one batch where that is plain to see, as it nearly always is.

        Nothing is asked for but as many as fit, they fit, nobody has left, and all have time.

        Args:
            ample: seconds; a deadline after it leaves time for the run.

        Returns:
            The batch that `take` would give, or None: ask that.
        """
        lines = self._lines
        if len(lines) != 1 or self._rows > self._max_rows or not self._is_plain:
            return None
        (line,) = lines.values()
        for request in line:
            if request.ended or request.deadline <= ample:
                return None
        lines.clear()
        self.length = self._rows = 0
        return line

    def take(
        self,
        now: float,
        expected: float = 0.0,
        expect: Callable[[int], float] | None = None,
        known: Callable[[int], float] = _nothing,
    ) -> tuple[list[W], list[W]]:
        """Takes the next batch: as much of the next line that is due as fits in one run.

        A request larger than the largest batch runs alone, whole: splitting it
        is the caller's choice.

        Args:
            now: seconds, on the clock of the deadlines.
            expected: seconds that a run of `next_rows` takes.
            expect: seconds that a run of so many rows takes; a batch grows no further where it would miss
                a deadline in it.
            known: seconds that it takes at the least. A request that would miss its deadline even so
                has run out of time, if there is another to run. If not, it is run, since what is known
                may be out of date.

        Returns:
            The batch, empty if nothing is due; and the requests that ran out of
            time while waiting, which somebody must tell so.
        """
        # Whose deadline is later than this has time for any batch.
        ample = now + expected
        lines = self._lines
        batch: list[W] = []
        expired: list[W] = []
        # Whether `expected` was meant for a request that has run out of time.
        is_outdated = False
        while lines and not batch:
            kind = self._next_kind(now, expected)
            if kind is _NOT_DUE:
                break
            line = lines.pop(kind)
            room = self._room(line)
            taken = passed = 0
            earliest = float("inf")
            lost: list[W] = []
            for request in line:
                rows = request.rows
                deadline = request.deadline
                if request.ended:
                    pass
                elif deadline <= now:
                    expired.append(request)
                elif (lost or is_outdated) and not batch and rows > self._max_rows:
                    # Larger than `expected` was meant for: that has to be asked again.
                    break
                elif deadline < ample and now + known(rows) > deadline:
                    lost.append(request)
                elif not batch or (taken + rows <= room and request.kind is not None):
                    earliest = min(earliest, deadline)
                    if earliest < ample and batch and expect and now + expect(taken + rows) > earliest:
                        break
                    batch.append(request)
                    taken += rows
                else:
                    break
                passed += 1
                self._rows -= rows
            self.length -= passed
            del line[:passed]
            if lost and (batch or line or lines):
                expired += lost
                is_outdated = True
            elif lost:
                # Nobody else is there to find out how long a run takes now.
                batch = [lost[0]]
                line = lost[1:]
                self.length += len(line)
                self._rows += sum([request.rows for request in line])
            if line and not batch:
                # Its turn is not over.
                self._lines = {kind: line, **lines}
                break
            if line:
                lines[kind] = line
        return batch, expired

    def _next_kind(self, now: float, expected: float) -> Hashable:
        lines = self._lines
        if not self.waits and not self._prioritized:
            return next(iter(lines))
        kinds: Iterable[Hashable] = lines
        if self._prioritized:
            # Sorting keeps the order of equals: lines of one priority take turns.
            kinds = sorted(lines, key=lambda kind: _highest(lines[kind], now))
        for kind in kinds:
            if not self.waits or self._due(lines[kind], expected) <= now:
                return kind
        return _NOT_DUE

    def _room(self, line: list[W]) -> int:
        if not (self.waits and self._wait.preferred):
            return self._max_rows
        waiting = sum([request.rows for request in line if not request.ended])
        return max((rows for rows in self._wait.preferred if rows <= waiting), default=self._max_rows)

    def oldest(self) -> W | None:
        """Who has waited longest, in a queue with priorities; None: nobody waits."""
        found: W | None = None
        for line in self._lines.values():
            at = 0
            while at < len(line):
                request = line[at]
                if request.ended:
                    at += 1
                    continue
                if found is None or request.queued_ns < found.queued_ns:
                    found = request
                # Within a priority the first has waited longest.
                at = bisect_right(line, request.priority, lo=at, key=_priority)
        return found

    def displace(self, priority: int) -> W | None:
        """Takes out a request of lower priority than this: of the lowest, the one that came last.

        None: nobody waits who is lower.
        """
        lines = self._lines
        while self._prioritized and lines:
            kind = max(lines, key=lambda kind: lines[kind][-1].priority)
            line = lines[kind]
            if line[-1].priority <= priority:
                break
            request = line.pop()
            self.length -= 1
            self._rows -= request.rows
            if not line:
                del lines[kind]
            if not request.ended:
                return request
        return None

    def expire(self, now: float) -> list[W]:
        """Takes out the requests that ran out of time, and forgets those that ended."""
        expired: list[W] = []
        for kind, line in list(self._lines.items()):
            kept: list[W] = []
            for request in line:
                if not request.ended and request.deadline > now:
                    kept.append(request)
                    continue
                self.length -= 1
                self._rows -= request.rows
                if not request.ended:
                    expired.append(request)
            if kept:
                self._lines[kind] = kept
            else:
                del self._lines[kind]
        return expired

    def drain(self) -> list[W]:
        """Takes everything that waits."""
        rest = [request for line in self._lines.values() for request in line]
        self._lines.clear()
        self.length = self._rows = 0
        return rest


def _highest(line: list[W], now: float) -> float:
    """The priority of the first request of a line that can still run."""
    for request in line:
        if not request.ended and request.deadline > now:
            return request.priority
    return float("inf")
