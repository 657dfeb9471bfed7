"""How many requests of one model version may be under way, learned from how long they wait for a run.

    wait >  target:  rate * (target + run), if that is less
    wait <= target:  limit * sqrt((target + run) / (wait + run)) + sqrt(limit) * (1 - wait / target),
                     if half of it is in use

The first is Little's law: of requests that are answered at such a rate, so many are under way where they
wait for `target` and not longer. The second goes half of that way, and at most doubles: with more
under way the rate may stay as it is. What it adds is the headroom of Netflix's concurrency-limits and
of Envoy's adaptive concurrency filter, less of it the nearer the wait is to its target: whole, it is 40 % of
a limit of seven, which was too high in one window and cut in half in the next.

What is measured differs from both projects. They compare whole response times with the fastest seen;
here a batch takes longer than a single row and everybody in it counts the same, so only the time in
the queue says anything. And of that only the least in a window counts, as in CoDel (Nichols and
Jacobson, 2012): a burst, or one long run, makes many wait, but a queue that has emptied in between is
no standing one. A batch's latest request is its sample: where a run takes all that waits, that one
has hardly waited.

The target is relative to the model and to its callers: a request may wait for the run under way and
for one more, or for a fifth of the time that the most hurried caller gives, whichever is longer; but
for no more than half of what the run leaves of that. So callers in no hurry may keep a long queue, which
costs them nothing they asked for.

Requests are counted, not rows: what is refused is a request. Where their sizes differ the limit
follows the mix; `admission` reckons in rows whether one of them still has time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an operator sets: requests of one model version under way, at least and at most."""

    minimum: int = 4
    maximum: int = 4096
    #: Whether the limit moves between the two; if not, it is the maximum.
    adaptive: bool = True


DEFAULT_BOUNDS = Bounds()

#: Requests that arrive in one turn of the loop. A model that runs on the loop answers them all
#: in the next moment, so they are no queue, and twice as many are not yet one to be cut.
ONE_TURN = 512
#: The part of the limit that every class of requests may fill.
OPEN_TO_ALL = 0.4


class ConcurrencyLimit:
    """Holds: the limit, and what was seen of the queue in the present window.

    Times are seconds on one clock, which comes in as an argument. A caller is not asked for each
    request, but for each run; where a model runs on the event loop, only when its queue outlasts a turn.

    Args:
        bounds: of the limit.
        company: seconds that requests wait for others on purpose.
    """

    __slots__ = (
        "_begun",
        "_bounds",
        "_changed",
        "_company",
        "_count",
        "_judged",
        "_last",
        "_least",
        "_left",
        "_limit",
        "_peak",
        "_pressure",
        "_rate",
        "_requests",
        "_run",
        "ample",
        "is_open",
        "threaded",
        "value",
    )

    #: A window lasts so long, and for so many runs. Twice CoDel's interval: a model at 90 % of
    #: what it can do has queues that stand for a tenth of a second now and then.
    WINDOW = 0.2
    SAMPLES = 8
    #: A shorter wait is none: the event loop has other things to do as well.
    SHORT = 0.005
    #: Of the time that callers give, this may be spent in the queue.
    PATIENCE = 0.2
    #: Weight of the newest window in the utilization.
    NEWEST = 0.3
    #: Seconds after which what was seen says nothing about now.
    STALE = 1.0

    def __init__(self, bounds: Bounds = DEFAULT_BOUNDS, company: float = 0.0) -> None:
        self._company = company
        #: Whether the model's runs leave the event loop.
        self.threaded = False
        #: Whether a window is open; only then `emptied` has anything to do.
        self.is_open = False
        self._begun = self._last = self._run = 0.0
        self._count = self._peak = self._requests = 0
        self._least = self._left = math.inf
        self._judged = self._changed = -math.inf
        self._pressure = self._rate = 0.0
        self.value = 0
        #: While fewer requests than this are under way, any other may join them without being looked at.
        self.ample = 0
        self.bound(bounds)

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit {self.value} in {self._bounds.minimum} to {self._bounds.maximum}>"

    def bound(self, bounds: Bounds) -> None:
        """Begins anew, at the maximum: what was never seen overloaded is not limited."""
        self._bounds = bounds
        self._set(float(bounds.maximum))

    def move(self, *, threaded: bool) -> None:
        """The model's runs leave the event loop from now on, or come back to it."""
        self.threaded = threaded
        self._set(self._limit)

    def _set(self, limit: float) -> None:
        bounds = self._bounds
        self._limit = limit = min(max(limit, bounds.minimum), bounds.maximum)
        if self.threaded:
            self.value, self.ample = int(limit), 1
        else:
            self.value = min(max(int(limit), 2 * ONE_TURN), bounds.maximum)
            self.ample = min(ONE_TURN, int(self.value * OPEN_TO_ALL))

    def sample(
        self, now: float, waited: float, run: float, left: float, requests: int, in_flight: int
    ) -> None:
        """Learns from a run that begins.

        Args:
            now: seconds.
            waited: by the request of the run that waited least.
            run: that the run probably takes.
            left: that this request had left when it began to wait.
            requests: in the run.
            in_flight: requests of the model under way.
        """
        if now - waited < self._changed or not self._bounds.adaptive:
            # It joined while the limit was another: how long that queue was says nothing about this one.
            return
        if not self.is_open or now - self._last > self.STALE + run:
            self.is_open = True
            self._begun, self._run = now, 0.0
            self._count = self._peak = 0
            self._requests = -requests  # the first run's belong to the time before
            self._least = self._left = math.inf
        self._last = now
        self._count += 1
        self._requests += requests
        self._least = min(self._least, waited)
        self._left = min(self._left, left)
        self._run = max(self._run, run)
        self._peak = max(self._peak, in_flight)
        if self._count >= self.SAMPLES and now - self._begun >= self.WINDOW:
            self._decide(now, in_flight)

    def emptied(self) -> None:
        """The queue of a model that runs on the loop is empty, which no `sample` told."""
        self._least = 0.0

    def _decide(self, now: float, in_flight: int) -> None:
        self.is_open = False
        limit, run, wait = self._limit, self._run, self._least
        patience = min(max(2 * run, self.PATIENCE * self._left), (self._left - run) / 2)
        target = max(patience, self.SHORT) + self._company
        pressure = max(in_flight / limit, wait / target)
        if now - self._judged > self.STALE:
            self._pressure = pressure
        else:
            self._pressure += self.NEWEST * (pressure - self._pressure)
        self._judged = now
        before = self.value
        self._rate = self._requests / (now - self._begun)
        if wait > target:
            # Not below half of what is in use: a moment in which little was answered is no measure.
            self._set(min(limit, max(self._rate * (target + run), self._peak / 2)))
        elif 2 * self._peak >= limit:
            growth = min(2.0, math.sqrt((target + run) / (wait + run)))
            self._set(limit * growth + math.sqrt(limit) * (1 - wait / target))
        if self.value != before:
            self._changed = now

    def drain(self, in_flight: int) -> float:
        """Seconds in which so many requests are answered, at the rate last seen; 0 if none was."""
        return in_flight / self._rate if self._rate else 0.0

    def utilization(self, now: float, in_flight: int) -> float:
        """How much of what the model can do is in use: 1 is all of it, more is too much.

        The share of the limit, or where that is more, of the permitted wait; smoothed over some windows.
        """
        used = in_flight / self.value
        return used if now - self._judged > self.STALE else max(used, self._pressure)
