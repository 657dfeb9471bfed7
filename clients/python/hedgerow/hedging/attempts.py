"""The attempts of one request: which to make, when, and which answer counts.

    start ──▶ the attempts to make at once, the first of them to be waited for
    on_time, failed ──▶ further ones
    answered ──▶ whether this is the answer
    over: there is an answer or an `error`; `losers` are to be cancelled

A plain object without I/O, clock or thread; both clients run it. Rules (gRFC A6 where it has them):

- The first attempt goes to the primary, or to the first backup that can take it while the primary's
  breaker is open. Once a second one request tries whether the primary is well again; it goes to a backup
  at the same time, so that its caller does not wait for the outcome. If nobody can take it, it goes to the
  target that has answered last: a breaker says whom to ask rather, and there is nobody else.
- An attempt that fails brings the next one at another target at once. It takes the other's place, so it
  needs no token of the budget; an overloaded target's does, unless the other said that it has room.
- After the delay another attempt begins beside those under way, if the budget has a token for it.
- When the breaker of the one target that a request waits for opens, another attempt begins before the delay
  is over, hedging on or off. The target may be alive and answer after all, so this takes a token too. Where
  there is none it begins when the request is slow itself, on credit: hedges wait until that is repaid.
- When all targets have had an attempt and nobody could be reached, they are tried again, after a pause
  and for a token each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import grpc
from hedgerow_protos.breaker import State, Token
from hedgerow_protos.hedging import ATTEMPT, HEDGE, Race, write_previous_attempts

from hedgerow.errors import HedgerowError
from hedgerow.hedging.attempt import ELSEWHERE, FAILOVER, PRIMARY, Attempt
from hedgerow.hedging.regions import Regions
from hedgerow.hedging.repetition import Repetition
from hedgerow.hedging.summary import summed_up
from hedgerow.hedging.target import Trailing, pushback_in

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED

#: Seconds by which a timer may come late; beyond that it says nothing of the targets. And how long it is
#: set back then, at most.
BEHIND, LONGEST_WAIT = 0.02, 0.05


class Attempts:
    """Holds: the attempts of one request that are under way, and how the others ended.

    Args:
        regions: What is known of the targets.
        model: For whose latencies the request counts.
        now: When it began.
        timeout: Seconds for all attempts together.
    """

    # What a request has that is answered by its first attempt, as nearly all are: so they cost little.
    _order: tuple[int, ...]
    _race: Race | None = None
    _made = 0
    _hedge_at = math.inf
    _repetition: Repetition | None = None
    #: A server said that this request should not be tried again.
    _is_final = False
    _has_waited = False
    _errors: tuple[tuple[Attempt, HedgerowError], ...] = ()

    #: There is an answer, or will be none.
    over = False
    #: When to call `on_time`.
    wake = math.inf
    winner: Attempt | None = None
    error: HedgerowError | None = None
    #: Attempts that nobody waits for any more.
    losers: tuple[Attempt, ...] = ()

    def __init__(self, regions: Regions, model: str, now: float, timeout: float) -> None:
        self._regions = regions
        self._model = model
        self._record = regions.model(model)
        self._began = now
        self._timeout = timeout
        self._order = regions.order
        #: By number.
        self.under_way: dict[int, Attempt] = {}

    def __repr__(self) -> str:
        return f"<Attempts {'over' if self.over else list(self.under_way.values())}>"

    # ------------------------------------------------------------ what happens

    def start(self, now: float) -> list[Attempt]:
        """The attempts to make at once."""
        regions = self._regions
        regions.budget.deposit()
        breaker = regions.targets[0].breaker
        token = self._ask_leave(0)
        if token is not None and breaker.state is State.CLOSED:
            attempts = [self._begin(0, 0, PRIMARY, token, now)]
        else:
            attempts = self._start_elsewhere(now, token)
        self._hedge_at = hedge_at = now + self._record.delay
        late_at = attempts[0].late_at
        self.wake = min(hedge_at, late_at)
        return attempts

    def on_time(self, now: float) -> list[Attempt]:
        """Attempts to make since it has become late; also called when a breaker has opened."""
        if self.over:
            return []
        behind = now - self.wake
        if behind > BEHIND and not self._has_waited:
            # This process was away, as a blocked loop is. Let it hear first what came meanwhile.
            self._has_waited = True
            self.wake = now + min(behind, LONGEST_WAIT)
            return []
        self._has_waited = False
        for attempt in self.under_way.values():
            if now >= attempt.late_at:
                attempt.late_at = math.inf
                assert attempt.token is not None
                attempt.token.late()
        attempts = self._hedge(now) if self.under_way else self._repeat(now)
        self._set_wake()
        return attempts

    def answered(self, attempt: Attempt, now: float, said: Trailing) -> bool:
        """An attempt brought a good answer; whether it is the one."""
        took = now - attempt.started
        self._regions.answered(attempt.target, self._record, attempt.token, now, took, said)
        if self._race is not None:
            losers = self._race.win(attempt.number)
            if losers is None:
                return False
            self._let_go(losers, attempt)
        elif self.over:
            return False
        self.over = True
        self.winner = attempt
        self._regions.served(self._record, now, now - self._began)
        del self.under_way[attempt.number]
        return True

    def failed(self, attempt: Attempt, now: float, error: HedgerowError, said: Trailing) -> list[Attempt]:
        """An attempt brought none; the attempts to make for it."""
        took = now - attempt.started
        self._regions.failed(attempt.target, self._model, attempt.token, now, took, error.code, said)
        if self.over or not self._racing().fail(attempt.number):
            return []
        del self.under_way[attempt.number]
        self._errors = (*self._errors, (attempt, error))
        if pushback_in(said) == math.inf:
            self._is_final = True
        attempts = self._after_failure(attempt, now, error)
        self._set_wake()
        return attempts

    def unsent(self, attempt: Attempt, error: HedgerowError | None = None) -> None:
        """An attempt was not even sent: the request was over by then, or the client is being closed."""
        if attempt.is_paid:
            self._regions.budget.refund()
            attempt.is_paid = False
        if attempt.token is not None:
            attempt.token.ignore()
        if attempt.number in self.under_way:
            self.end(error)

    def end(self, error: HedgerowError | None = None) -> None:
        """Nobody waits any more: the caller has gone, or its time, or the client."""
        if self.over:
            return
        self.over = True
        self.error = error
        self._let_go(self._racing().end(), None)

    def _racing(self) -> Race:
        race = self._race
        if race is None:
            # The numbers behind those of the targets are for repetitions.
            race = self._race = Race(len(self._order) + self._regions.retries)
        return race

    # ------------------------------------------------------------ what follows

    def _start_elsewhere(self, now: float, token: Token | None) -> list[Attempt]:
        """The primary is down; with a token, this request tries whether it still is."""
        leave = None
        for index in self._order[1:]:
            leave = self._ask_leave(index) if self._wants(index, now) else None
            if leave is not None:
                break
        else:
            index = self._regions.last_resort(self._order)
            if index == 0:
                return [self._begin(0, 0, PRIMARY, token, now)]
        self._order = (index, *(other for other in self._order if other != index))
        attempts = [self._begin(0, index, FAILOVER, leave, now)]
        if token is not None:
            number = self._racing().begin(lambda number: self._order[number] == 0)
            assert number is not None
            probe = self._begin(number, 0, PRIMARY, token, now)
            # As a hedge, so that the primary's rules do not answer for its model.
            probe.headers = (*probe.headers, (ATTEMPT, HEDGE))
            probe.is_probe = True
            attempts.append(probe)
        return attempts

    def _after_failure(self, attempt: Attempt, now: float, error: HedgerowError) -> list[Attempt]:
        if error.code not in ELSEWHERE:
            # The time is over for the others too, or they are about to answer where this one gave up early.
            waits = error.code is DEADLINE_EXCEEDED or attempt.number
            if not (waits and self.under_way):
                self._fail(now)
            return []
        if 0 in self.under_way:
            self._hedge_at = now
            return self._hedge(now)
        if not all(other.is_probe for other in self.under_way.values()):
            return []  # one that is under way takes its place
        replacement = None if self._is_final else self._replace(now, error)
        if replacement is not None:
            return [replacement]
        if not self.under_way and not self._plan_repetition(now):
            self._fail(now)
        return []

    def _replace(self, now: float, error: HedgerowError) -> Attempt | None:
        if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            return self._next(now, FAILOVER) or self._last_resort(now)
        # Too much for one is too much for all, unless one of them said that it is not.
        replacement = self._next(
            now, FAILOVER, lambda index: self._regions.targets[index].has_room(now) is True
        )
        if replacement is None and self._regions.budget.tokens >= 1:
            replacement = self._next(
                now, FAILOVER, lambda index: self._regions.targets[index].has_room(now) is None
            )
            if replacement is not None:
                self._regions.ask_soon(now, replacement.target)
                self._pay(replacement)
        return replacement

    def _hedge(self, now: float) -> list[Attempt]:
        if self._is_final:
            return []
        if self._is_written_off():
            attempt = self._move(now)
        elif now < self._hedge_at:
            return []
        elif self._regions.is_hedging and self._regions.budget.tokens >= 1:
            targets = self._regions.targets
            attempt = self._next(now, HEDGE, lambda index: targets[index].has_room(now) is not False)
            if attempt is not None:
                self._pay(attempt)
        else:
            attempt = None
        # Also where there was none: a token or a target may be there the next time.
        self._hedge_at = now + self._record.delay
        return [] if attempt is None else [attempt]

    def _is_written_off(self) -> bool:
        """Whether all that the request waits for is a target whose breaker has opened."""
        if len(self.under_way) > 1:
            return False
        (only,) = self.under_way.values()
        return self._regions.targets[only.target].breaker.state is not State.CLOSED

    def _move(self, now: float) -> Attempt | None:
        """Begins an attempt beside the only one, whose target is down by all signs, or just pauses."""
        (waiting,) = self.under_way.values()
        is_slow = waiting.late_at == math.inf
        if not is_slow and self._regions.budget.tokens < 1:
            return None
        attempt = self._next(now, FAILOVER) or self._last_resort(now)
        if attempt is not None:
            self._regions.budget.charge()
            attempt.is_paid = True
        return attempt

    def _last_resort(self, now: float) -> Attempt | None:
        """An attempt at a target that has answered since those tried, though its breaker is open.

        And since one under way began: a target that was last heard of before is no better to wait for.
        """
        targets = self._regions.targets
        heard = [targets[attempt.target].answered_at for attempt, _ in self._errors]
        for attempt in self.under_way.values():
            heard += [targets[attempt.target].answered_at, attempt.started]
        since = max(heard)
        return self._next(now, FAILOVER, lambda index: targets[index].answered_at > since, needs_leave=False)

    def _next(
        self,
        now: float,
        kind: str,
        allowed: Callable[[int], bool] | None = None,
        *,
        needs_leave: bool = True,
    ) -> Attempt | None:
        """Begins an attempt at the next target that had none and can take one."""
        leave: Token | None = None

        def is_usable(number: int) -> bool:
            nonlocal leave
            if number >= len(self._order) or (allowed and not allowed(self._order[number])):
                return False
            index = self._order[number]
            if not self._wants(index, now):
                return False
            leave = self._ask_leave(index)
            return leave is not None or not needs_leave

        number = self._racing().begin(is_usable)
        if number is None:
            return None
        attempt = self._begin(number, self._order[number], kind, leave, now)
        if kind == HEDGE:
            attempt.headers = (*attempt.headers, (ATTEMPT, HEDGE))
        elif attempt.target == 0:
            attempt.kind = PRIMARY
        return attempt

    def _wants(self, index: int, now: float) -> bool:
        return self._regions.wants(index, self._model, self._record, now, self._began + self._timeout)

    def _ask_leave(self, index: int) -> Token | None:
        return self._regions.leave(index, self._record, self._timeout)

    def _repeat(self, now: float) -> list[Attempt]:
        repetition = self._repetition
        if repetition is None or now < repetition.at:
            return []
        indices = repetition.take(now, self._errors)
        if not indices:
            # Another request may have been asked meanwhile to wait longer.
            if not repetition.plan(now, self._errors):
                self._fail(now)
            return []
        number = self._racing().begin(lambda number: number >= len(self._order))
        assert number is not None
        for index in indices:
            leave = self._ask_leave(index)
            if leave is not None:
                break
        else:
            index = self._regions.last_resort(indices)
        attempt = self._begin(number, index, FAILOVER if index else PRIMARY, leave, now)
        attempt.is_paid = True
        return [attempt]

    def _plan_repetition(self, now: float) -> bool:
        if self._is_final:
            return False
        if self._repetition is None:
            self._repetition = Repetition(self._regions, self._began + self._timeout)
        return self._repetition.plan(now, self._errors)

    def _begin(self, number: int, index: int, kind: str, token: Token | None, now: float) -> Attempt:
        headers = write_previous_attempts(self._made) if self._made else ()
        self._made += 1
        late_at = math.inf if token is None else now + token.slow_after
        attempt = Attempt(number, index, kind, headers, token, now, late_at)
        self.under_way[number] = attempt
        return attempt

    def _pay(self, attempt: Attempt) -> None:
        attempt.is_paid = self._regions.budget.withdraw()

    def _set_wake(self) -> None:
        wake = math.inf if self._repetition is None else self._repetition.at
        for attempt in self.under_way.values():
            wake = min(wake, attempt.late_at)
        left = self._racing().left
        if self.under_way and left and left[0] < len(self._order) and not self._is_final:
            wake = min(wake, self._hedge_at)
        self.wake = wake

    def _let_go(self, numbers: set[int], winner: Attempt | None) -> None:
        for number in sorted(numbers):
            attempt = self.under_way.pop(number)
            if attempt.is_probe and winner is not None:
                continue  # it has still to tell how the target is
            if attempt.token is not None:
                if winner is not None and attempt.started < winner.started:
                    attempt.token.late()  # another was asked later and answered earlier
                attempt.token.ignore()
            self.losers = (*self.losers, attempt)

    def _fail(self, now: float) -> None:
        self.end(summed_up(self._errors, self._regions, self._model, now))
