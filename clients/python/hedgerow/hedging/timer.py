"""A thread that looks at requests when it is time."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)


class Timed(Protocol):
    """What a timer looks at."""

    #: When it is to be looked at; set by the timer.
    look_at: float

    @property
    def over(self) -> bool:
        """Nobody needs to look at it any more."""


TimedT = TypeVar("TimedT", bound=Timed)


class Timer(Generic[TimedT]):
    """Owns: the thread, which is there while there is something to look at and ends soon after.

    A request that is answered before its time costs no thread a turn: it stays in the list until then,
    and is passed over.

    Args:
        lock: Held by whoever calls `add` and `look_at_all`, not while `look` is called.
        look: Looks at those whose time has come.
        clock: Seconds, monotonic.
    """

    #: Seconds without anything to do after which the thread ends.
    IDLE = 5.0

    def __init__(
        self,
        lock: threading.Lock,
        look: Callable[[Sequence[TimedT]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = threading.Condition(lock)
        self._look = look
        self._clock = clock
        self._due: list[tuple[float, int, TimedT]] = []
        self._turn = itertools.count()
        self._thread: threading.Thread | None = None
        #: When the thread wakes by itself; minus infinity while it is awake.
        self._wakes_at = math.inf
        self._is_asked = False
        self._is_stopped = False

    def add(self, one: TimedT, at: float) -> None:
        """Looks at one at a time, instead of when it was to be looked at before."""
        one.look_at = at
        if at == math.inf:
            return
        heapq.heappush(self._due, (at, next(self._turn), one))
        if at < self._wakes_at:
            self._wake()

    def look_now(self) -> None:
        """Calls `look` with nothing in particular, soon."""
        self._is_asked = True
        self._wake()

    def stop(self) -> None:
        """Ends the thread, soon."""
        self._due.clear()
        self._is_stopped = True
        if self._thread is not None:
            self._wake()

    def _wake(self) -> None:
        if self._thread is None or not self._thread.is_alive():  # it does not survive a fork
            self._thread = threading.Thread(target=self._run, name="hedgerow-timer", daemon=True)
            self._wakes_at = -math.inf
            self._thread.start()
        else:
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while True:
                self._wakes_at = -math.inf
                now = self._clock()
                due = self._take(now)
                if due or self._is_asked:
                    self._is_asked = False
                    self._changed.release()
                    try:
                        self._look(due)
                    except Exception:
                        log.exception("requests that wait for a hedge were not looked at")
                    finally:
                        self._changed.acquire()
                    continue
                self._wakes_at = self._due[0][0] if self._due else now + self.IDLE
                is_woken = self._is_stopped or self._changed.wait(self._wakes_at - now)
                if self._is_stopped or not (is_woken or self._due or self._is_asked):
                    self._thread = None
                    self._wakes_at = math.inf
                    return

    def _take(self, now: float) -> list[TimedT]:
        taken = []
        while self._due and (self._due[0][0] <= now or self._due[0][2].over):
            at, _, one = heapq.heappop(self._due)
            if one.look_at == at and not one.over:
                taken.append(one)
        return taken
