"""How busy this process keeps its processors; measured when somebody asks, not on the request path."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


class Busy:
    """Holds: the processor time used when it was last looked at.

    To be asked on the event loop's thread.

    Args:
        processors: that this process may use.
        loop_time: seconds of processor time of the calling thread.
        process_time: of the whole process.
    """

    __slots__ = ("_at", "_loop", "_loop_time", "_process", "_process_time", "_processors", "_share")

    #: Seconds between two looks, at least.
    INTERVAL = 0.2

    def __init__(
        self,
        processors: float,
        *,
        loop_time: Callable[[], float] = time.thread_time,
        process_time: Callable[[], float] = time.process_time,
    ) -> None:
        self._processors = max(1.0, processors)
        self._loop_time = loop_time
        self._process_time = process_time
        self._at: float | None = None
        self._loop = self._process = self._share = 0.0

    def share(self, now: float) -> float:
        """The part of the time since the last look, 0 to 1, that the event loop had something to do.

        Or the part of its processors' time that the process used, if that is more. At 1 further
        requests only make all of them wait longer.
        """
        if self._at is not None and now - self._at < self.INTERVAL:
            return self._share
        loop, process = self._loop_time(), self._process_time()
        if self._at is not None:
            seconds = now - self._at
            self._share = max(
                (loop - self._loop) / seconds, (process - self._process) / (seconds * self._processors)
            )
        self._at, self._loop, self._process = now, loop, process
        return self._share


def processors_of_each(workers: int) -> float:
    """Processors that one of so many workers has for itself, when all have work."""
    return len(os.sched_getaffinity(0)) / workers
