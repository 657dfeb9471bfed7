"""A circuit breaker: a plain object, state in, decision out.

                 too many calls fail, or are slow
        CLOSED ───────────────────────────────────▶ OPEN ◀──┐
           ▲                                          │      │ a probe fails,
           │ `probes` in a row were good              │ after `open_for`     or is slow
           └───────────────────────────── HALF-OPEN ◀─┘      │
                                                └────────────┘

Whoever wants to call the dependency acquires a token first and ends it in one
of three ways, as in Netflix's concurrency-limits: `success`, `failure`, or
`ignore` for a call that says nothing about the dependency (cancelled, or wrong
in itself). No token means: do not call. Refusal is a value, not an exception,
since an open breaker answers most calls.

While half-open, one probe is under way at a time, so that a dependency that
comes back is not greeted by everything that waited for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

#: Parts that the rolling window moves on by.
_SLICES = 10


class State(IntEnum):
    """What a breaker lets through: everything, a trickle, nothing. The numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Policy:
    """When a breaker opens and how it closes; times in seconds.

    Attributes:
        window: Calls count for so long.
        minimum: A share of fewer calls than this says nothing.
        failed: Opens when this share of the calls in the window failed.
        slow_after: A call that takes longer is slow, also before it ends.
        slow: Opens when this share of the calls in the window was slow.
        in_a_row: Opens when so many calls one after the other failed or were slow, and no good one ended
            between them; 0: however many. What answers nothing any more is noticed by this while the window
            is still full of good calls.
        silence: Seconds for which no good call must have ended by then, nor the breaker have changed, or as
            long as the last call of the row may take: a short stall of many calls is no such row.
        open_for: How long nothing is let through.
        probes: Good calls in a row that close it.
    """

    window: float = 5.0
    minimum: int = 5
    failed: float = 0.5
    slow_after: float = math.inf
    slow: float = 0.5
    in_a_row: int = 0
    silence: float = 0.25
    open_for: float = 1.0
    probes: int = 3


class Token:
    """Leave to make one call; must be ended exactly once, later endings do nothing."""

    __slots__ = ("_breaker", "_era", "ended", "overdue", "slow_after", "started")

    def __init__(self, breaker: Breaker, era: int, started: float, slow_after: float) -> None:
        self._breaker = breaker
        self._era = era
        self.started = started
        self.slow_after = slow_after
        self.ended = False
        #: Counted as slow already, while under way.
        self.overdue = False

    def success(self, duration: float | None = None) -> None:
        """The dependency answered.

        Args:
            duration: Seconds that the call took, where that is not the time since the token was acquired.
        """
        self._breaker._end(self, self._era, failed=False, duration=duration, reason="")  # noqa: SLF001 - one object in two parts

    def late(self) -> None:
        """The call is slow, though it has not ended: it counts so from now on, once, however it ends."""
        self._breaker._late(self, self._era)  # noqa: SLF001 - as above

    def failure(self, reason: str = "") -> None:
        """The dependency did not answer, not in time, or with an error of its own."""
        self._breaker._end(self, self._era, failed=True, duration=None, reason=reason)  # noqa: SLF001 - as above

    def ignore(self) -> None:
        """The call says nothing about the dependency."""
        if not self.ended:
            self._breaker._drop(self)  # noqa: SLF001 - as above


@dataclass(slots=True)
class _Slice:
    number: int = -1
    calls: int = 0
    failed: int = 0
    slow: int = 0


class Breaker:
    """Holds: how the last calls to one dependency went, and what follows from it.

    Args:
        name: Of the dependency, for logs and metrics.
        policy: When it opens and closes.
        clock: Seconds, monotonic.
        on_change: Told the breaker after each change of state.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        clock: Callable[[], float],
        on_change: Callable[[Breaker], None] | None = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.state = State.CLOSED
        #: Why the state is what it is.
        self.reason = ""
        #: Whether it is open because a probe failed, so that nothing is new.
        self.reopened = False
        #: Times that it opened.
        self.trips = 0
        #: Calls that it refused.
        self.refused = 0
        #: A call failed not long ago, so `tally` wants to hear of good ones as well.
        self.is_wary = False
        self._clock = clock
        self._on_change = on_change
        self._changed = clock()
        # Tokens and counts of an earlier state say nothing about this one.
        self._era = 0
        self._slices = [_Slice() for _ in range(_SLICES)]
        self._outstanding: deque[Token] = deque()
        self._probe: Token | None = None
        self._good_probes = 0
        # Calls that failed or were slow since the last good one, and when that ended.
        self._row = 0
        self._last_good = self._changed

    def __repr__(self) -> str:
        return f"<Breaker {self.name} {self.state.name.lower()}{': ' + self.reason if self.reason else ''}>"

    def refuses(self) -> bool:
        """Whether `acquire` would give no leave now."""
        now = self._clock()
        self._look_at_overdue(now)
        if self.state is State.OPEN:
            return now - self._changed < self.policy.open_for
        return self.state is State.HALF_OPEN and self._probe is not None

    @property
    def seconds_in_state(self) -> float:
        """How long it has been in this state."""
        return self._clock() - self._changed

    def check(self) -> State:
        """The state, after a look at the calls under way: one that hangs may just have become too slow."""
        self._look_at_overdue(self._clock())
        return self.state

    def acquire(self, slow_after: float | None = None) -> Token | None:
        """Leave to call the dependency now, or None; whoever gets a token ends it.

        Args:
            slow_after: Seconds after which this call is slow, where the policy's do not fit it. Whoever gives
                them says `late` himself when they are over and the call is still under way.
        """
        now = self._clock()
        if self._outstanding or self._probe is not None:
            self._look_at_overdue(now)
        limit = self.policy.slow_after if slow_after is None else slow_after
        if self.state is not State.CLOSED:
            return self._acquire_probe(now, limit)
        token = Token(self, self._era, now, limit)
        if slow_after is None and limit < math.inf:
            self._outstanding.append(token)
        return token

    def _acquire_probe(self, now: float, limit: float) -> Token | None:
        if self.state is State.OPEN and now - self._changed >= self.policy.open_for:
            self._change(State.HALF_OPEN, now, self.reason)
        if self.state is State.OPEN or self._probe is not None:
            self.refused += 1
            return None
        self._probe = Token(self, self._era, now, limit)
        return self._probe

    def tally(self, calls: int = 0, failed: int = 0, reason: str = "") -> None:
        """Counts calls that needed no leave since the breaker was closed when they began.

        For those who make so many that a token for each would cost too much: they tell failures always, and
        good calls while the breaker `is_wary`. A share of failures then counts none of the good calls
        before the first of them.

        Args:
            calls: That ended, the failed ones included.
            failed: Of them.
            reason: Of the last failure.
        """
        if self.state is not State.CLOSED:
            return
        now = self._clock()
        self._record(now, None, calls=calls, failed=failed, slow=0, why=reason)
        if failed:
            self.is_wary = self.state is State.CLOSED
        elif not any(part.failed for part in self._recent(now)):
            self.is_wary = False

    def _end(self, token: Token, era: int, *, failed: bool, duration: float | None, reason: str) -> None:
        if token.ended:
            return
        token.ended = True
        if era != self._era:
            return
        now = self._clock()
        took = now - token.started if duration is None else duration
        slow = took > token.slow_after
        if token is self._probe:
            self._probe = None
            if failed or slow:
                self._open(now, f"a probe {'failed: ' + reason if failed else f'took {took:.3f} s'}")
                return
            self._good_probes += 1
            if self._good_probes >= self.policy.probes:
                self._change(State.CLOSED, now, "")
            return
        if not (failed or slow or token.overdue):
            self._row = 0
            self._last_good = now
            self._slice(now).calls += 1
        else:
            slow = slow and not token.overdue
            self._row += failed or slow
            self._record(now, token, calls=not token.overdue, failed=failed, slow=slow, why=reason)
        while self._outstanding and self._outstanding[0].ended:
            self._outstanding.popleft()

    def _late(self, token: Token, era: int) -> None:
        if token.ended or token.overdue or era != self._era:
            return
        now = self._clock()
        if token is self._probe:
            self._open(now, f"a probe was not answered within {now - token.started:.3f} s")
            return
        token.overdue = True
        self._row += 1
        self._record(now, token, calls=True, failed=False, slow=True, why="")

    def _drop(self, token: Token) -> None:
        token.ended = True
        if token is self._probe:
            self._probe = None

    def _look_at_overdue(self, now: float) -> None:
        """Counts calls as slow while they are under way: a dependency that hangs ends none."""
        limit = self.policy.slow_after
        probe = self._probe
        if probe is not None and now - probe.started > probe.slow_after:
            self._open(now, f"a probe was not answered within {probe.slow_after:g} s")
            return
        outstanding = self._outstanding
        while outstanding and (outstanding[0].ended or now - outstanding[0].started > limit):
            token = outstanding.popleft()
            if not token.ended:
                token.overdue = True
                self._row += 1
                self._record(now, token, calls=True, failed=False, slow=True, why="")
                # If that opened the breaker, `outstanding` is empty now.

    def _slice(self, now: float) -> _Slice:
        number = int(now * _SLICES / self.policy.window)
        current = self._slices[number % _SLICES]
        if current.number != number:
            current.number, current.calls, current.failed, current.slow = number, 0, 0, 0
        return current

    def _recent(self, now: float) -> list[_Slice]:
        number = int(now * _SLICES / self.policy.window)
        return [part for part in self._slices if part.number > number - _SLICES]

    def _record(
        self, now: float, token: Token | None, *, calls: int, failed: int, slow: int, why: str
    ) -> None:
        policy = self.policy
        current = self._slice(now)
        current.calls += calls
        current.failed += failed
        current.slow += slow
        if not (failed or slow):
            return
        last = f"; the last: {why}" if why else ""
        if token is not None and policy.in_a_row and self._row >= policy.in_a_row:
            silence = min(policy.silence, token.slow_after)
            if now - self._last_good >= silence:
                self._open(now, f"{self._row} calls in a row failed or were slow{last}")
                return
        recent = self._recent(now)
        total = sum(part.calls for part in recent)
        if total < policy.minimum:
            return
        all_failed, all_slow = sum(part.failed for part in recent), sum(part.slow for part in recent)
        if all_failed >= policy.failed * total:
            self._open(now, f"{all_failed} of {total} calls failed{last}")
        elif all_slow >= policy.slow * total:
            limit = policy.slow_after
            slow_how = f"took longer than {limit:g} s" if limit < math.inf else "were slow"
            self._open(now, f"{all_slow} of {total} calls {slow_how}{last}")

    def _open(self, now: float, reason: str) -> None:
        self.trips += 1
        self._change(State.OPEN, now, reason)

    def _change(self, state: State, now: float, reason: str) -> None:
        self.reopened = state is State.OPEN and self.state is State.HALF_OPEN
        self.state = state
        self.reason = reason
        self._changed = now
        self._era += 1
        self._good_probes = 0
        self._probe = None
        self._outstanding.clear()
        self._row = 0
        self._last_good = now
        self._slices = [_Slice() for _ in range(_SLICES)]
        if self._on_change is not None:
            self._on_change(self)
