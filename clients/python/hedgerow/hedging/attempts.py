"""The attempts of one request: which to make, when, and which answer counts.

    start ──▶ the attempts to make at once, the first of them to be waited for
    on_time, failed ──▶ further ones
    answered ──▶ whether this is the answer
    over: there is an answer or an `error`; `losers` are to be cancelled

A plain object without I/O, clock or thread; both clients run it. Rules (gRFC A6 where it has them):

- The first attempt goes to the primary, or to the first backup that can take it while the primary's
  breaker is open. Once a second one request tries whether the primary is well again; it goes to a backup
  at the same time, so that its caller does not wait for the outcome.
- An attempt that fails brings the next one at another target at once. It takes the other's place, so it
  needs no token of the budget; an overloaded target's does, unless the other said that it has room.
- After the delay another attempt begins beside those under way, if the budget has a token for it.
- When the breaker of the one target that a request waits for opens, the request is as good as failed there.
- When all targets have had an attempt and nobody could be reached, they are tried again, after a pause
  and for a token each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import grpc
from hedgerow_protos.breaker import State, Token
from hedgerow_protos.hedging import ATTEMPT, HEDGE, HedgeDelay, Race, write_previous_attempts

from hedgerow.errors import HedgerowError
from hedgerow.hedging.attempt import FAILOVER, PRIMARY, Attempt
from hedgerow.hedging.regions import Regions
from hedgerow.hedging.target import Target, Trailing, pushback_in

#: Statuses after which another target may still answer. Inference changes nothing, so all that may be the
#: server's own trouble is among them, and NOT_FOUND, since one region may be behind the other. What the
#: request itself is to blame for is not, nor DEADLINE_EXCEEDED: all attempts have the same deadline.
ELSEWHERE = frozenset((
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
))  # fmt: skip

UNAVAILABLE, DEADLINE_EXCEEDED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED

#: Seconds before the first repetition, give or take a fifth; each further one waits three times as long.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5


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
    _retry_at = math.inf
    _pause = FIRST_PAUSE
    _repeated = 0
    #: A server said that this request should not be tried again.
    _is_final = False
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
        token = breaker.acquire(self._record.slow_after(0, self._timeout))
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
        for attempt in self.under_way.values():
            if now >= attempt.late_at:
                attempt.late_at = math.inf
                assert attempt.token is not None
                attempt.token.late()
        attempts = self._repeat(now) if now >= self._retry_at else self._hedge(now)
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
        for index in self._order[1:]:
            leave = self._leave(index, now)
            if leave is not None:
                break
        else:
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
            return self._next(now, FAILOVER)
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
        if not self.under_way or self._is_final:
            return []
        if self._is_written_off():
            attempt = self._next(now, FAILOVER)
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
        return not only.is_probe and self._regions.targets[only.target].breaker.state is not State.CLOSED

    def _next(self, now: float, kind: str, allowed: Callable[[int], bool] | None = None) -> Attempt | None:
        """Begins an attempt at the next target that had none and can take one."""
        leave: Token | None = None

        def is_usable(number: int) -> bool:
            nonlocal leave
            if number >= len(self._order) or (allowed and not allowed(self._order[number])):
                return False
            leave = self._leave(self._order[number], now)
            return leave is not None

        number = self._racing().begin(is_usable)
        if number is None:
            return None
        attempt = self._begin(number, self._order[number], kind, leave, now)
        if kind == HEDGE:
            attempt.headers = (*attempt.headers, (ATTEMPT, HEDGE))
        elif attempt.target == 0:
            attempt.kind = PRIMARY
        return attempt

    def _leave(self, index: int, now: float) -> Token | None:
        """Leave for an attempt at another target than the first, if it can and wants to take one."""
        target = self._regions.targets[index]
        median = self._record.at[index].median or HedgeDelay.SHORTEST
        if target.obstacle(now, self._model) or self._began + self._timeout - now <= median:
            return None
        return target.breaker.acquire(self._record.slow_after(index, self._timeout))

    def _plan_repetition(self, now: float) -> bool:
        """Sets when to try again those who could not be reached; False: not at all."""
        if self._is_final or self._repeated >= self._regions.retries or self._regions.budget.tokens < 1:
            return False
        pushed_back = [target.pushed_back_until for _, target in self._unreached()]
        is_reached = not any(error.code is UNAVAILABLE for _, error in self._errors)
        if is_reached or not pushed_back:
            return False
        pause = self._pause * (0.8 + 0.4 * self._regions.chance())
        self._pause = min(3 * self._pause, LONGEST_PAUSE)
        self._retry_at = max(now + pause, min(pushed_back))
        return self._retry_at < self._began + self._timeout

    def _repeat(self, now: float) -> list[Attempt]:
        self._retry_at = math.inf
        ready = [(index, target) for index, target in self._unreached() if now >= target.pushed_back_until]
        if not ready and self._plan_repetition(now):
            return []  # another request was asked meanwhile to wait
        if not ready or not self._regions.budget.withdraw():
            self._fail(now)
            return []
        self._repeated += 1
        number = self._racing().begin(lambda number: number >= len(self._order))
        assert number is not None
        # The first that a breaker lets through; if none does, the first: nobody else is left.
        index, leave = ready[0][0], None
        for other, target in ready:
            leave = target.breaker.acquire(self._record.slow_after(other, self._timeout))
            if leave is not None:
                index = other
                break
        attempt = self._begin(number, index, FAILOVER if index else PRIMARY, leave, now)
        attempt.is_paid = True
        return [attempt]

    def _unreached(self) -> list[tuple[int, Target]]:
        """The targets that have not answered with an error of their own, those that were not tried first."""
        codes = {attempt.target: error.code for attempt, error in self._errors}
        unreached = [index for index in self._regions.order if codes.get(index, UNAVAILABLE) is UNAVAILABLE]
        unreached.sort(key=codes.__contains__)
        return [(index, self._regions.targets[index]) for index in unreached]

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
        wake = self._retry_at
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
        """All have failed: the error is what a server said of the request, else that of the first attempt."""
        errors = [error for _, error in sorted(self._errors, key=lambda one: one[0].number)]
        chosen = next(
            (
                error
                for error in errors
                if error.code not in ELSEWHERE and error.code is not DEADLINE_EXCEEDED
            ),
            errors[0],
        )
        tried = {attempt.target for attempt, _ in self._errors}
        for attempt, error in self._errors:
            if error is not chosen:
                target = self._regions.targets[attempt.target]
                chosen.add_note(f"also tried {target.name} ({attempt.kind}): {error}")
        for index, target in enumerate(self._regions.targets):
            why = target.obstacle(now, self._model) or target.breaker.reason
            if index not in tried and why:
                chosen.add_note(f"not tried: {target.name}: {why}")
        self.end(chosen)
