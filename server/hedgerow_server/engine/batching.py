"""Which waiting requests run together: a plain queue without clock or I/O.

Natural batching: nothing waits for company. When a runner is free it takes
what is there, up to the model's largest batch. Requests that ended meanwhile
(cancelled, or past their deadline) are dropped before the batch forms, so a
batch never depends on a request that nobody waits for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


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
    def deadline(self) -> float:
        """Seconds on the clock of `take`."""

    @property
    def ended(self) -> bool:
        """Nobody waits for the answer any more."""


W = TypeVar("W", bound=Waiting)


class BatchQueue(Generic[W]):
    """Requests that wait for a run of one model version.

    Requests of one kind stand in one line, in order of arrival; the lines take
    turns, so a rare shape is not starved by a common one.
    """

    __slots__ = ("_length", "_lines", "_max_rows")

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max(1, max_rows)
        # The first line is the next to be served.
        self._lines: dict[Hashable, deque[W]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        waiting = f"{self._length} requests in {len(self._lines)} lines"
        return f"<BatchQueue {waiting}, at most {self._max_rows} rows a batch>"

    def add(self, request: W) -> None:
        """Puts a request at the end of its line."""
        # One that runs alone is its own kind.
        kind: Hashable = id(request) if request.kind is None else request.kind
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = deque()
        line.append(request)
        self._length += 1

    def next_rows(self) -> int:
        """Rows of the next batch, or some more if requests in it have ended."""
        rows = 0
        for request in next(iter(self._lines.values()), ()):
            if rows and rows + request.rows > self._max_rows:
                return self._max_rows
            rows += request.rows
        return rows

    def take(self, now: float) -> tuple[list[W], list[W]]:
        """Takes the next batch: as much of the next line as fits in one run.

        A request larger than the largest batch runs alone, whole: splitting it
        is the caller's choice.

        Args:
            now: seconds, on the clock of the deadlines.

        Returns:
            The batch, empty if nothing waits; and the requests that ran out of
            time while waiting, which somebody must tell so.
        """
        batch: list[W] = []
        expired: list[W] = []
        room = self._max_rows
        lines = self._lines
        while lines and not batch:
            kind = next(iter(lines))
            line = lines.pop(kind)
            while line:
                request = line[0]
                if request.ended:
                    line.popleft()
                elif request.deadline <= now:
                    expired.append(line.popleft())
                elif not batch or request.rows <= room:
                    batch.append(line.popleft())
                    room -= request.rows
                else:
                    break
                self._length -= 1
            if line:
                lines[kind] = line
        return batch, expired

    def expire(self, now: float) -> list[W]:
        """Takes out the requests that ran out of time, and forgets those that ended."""
        expired: list[W] = []
        for kind, line in list(self._lines.items()):
            kept: deque[W] = deque()
            for request in line:
                if request.ended:
                    continue
                (expired if request.deadline <= now else kept).append(request)
            self._length -= len(line) - len(kept)
            if kept:
                self._lines[kind] = kept
            else:
                del self._lines[kind]
        return expired

    def drain(self) -> list[W]:
        """Takes everything that waits."""
        rest = [request for line in self._lines.values() for request in line]
        self._lines.clear()
        self._length = 0
        return rest
