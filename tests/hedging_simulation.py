"""The client's hedging in made-up time: requests, their attempts, and targets that behave as told.

Runs `hedgerow.hedging.attempts` as both clients do, with a list of events in place of gRPC, threads and loop.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc
from hedgerow.errors import HedgerowError, from_status
from hedgerow.hedging import DEFAULT, Hedging
from hedgerow.hedging.attempt import Attempt
from hedgerow.hedging.attempts import Attempts
from hedgerow.hedging.regions import Regions

CODES = grpc.StatusCode
OK = CODES.OK
DEADLINE_EXCEEDED = CODES.DEADLINE_EXCEEDED
PUSHBACK, LOAD = "grpc-retry-pushback-ms", "endpoint-load-metrics"


@dataclass(frozen=True)
class Fate:
    """How an attempt ends: after so many seconds, with a status; infinity: it hangs."""

    seconds: float
    code: grpc.StatusCode = OK
    said: Mapping[str, str] = field(default_factory=dict)


HANGS = Fate(math.inf)
#: What an attempt at a target meets at a time.
Behaviour = Callable[[float], Fate]


def takes(seconds: float, **said: str) -> Behaviour:
    """Answers after so many seconds, and says this behind it."""
    return lambda now: Fate(seconds, OK, said)


def fails(code: grpc.StatusCode, seconds: float = 0.001, **said: str) -> Behaviour:
    """Ends with a status; underscores in what it says behind it are hyphens."""
    return lambda now: Fate(seconds, code, {key.replace("_", "-"): value for key, value in said.items()})


def hangs(now: float) -> Fate:
    """Never ends."""
    return HANGS


def spend(simulation: Simulation) -> None:
    """Leaves no token."""
    while simulation.regions.budget.withdraw():
        pass


@dataclass(eq=False)
class Request:
    """One request and what became of it."""

    attempts: Attempts
    began: float
    deadline: float
    made: list[Attempt] = field(default_factory=list)
    made_at: list[float] = field(default_factory=list)
    cancelled: list[Attempt] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    ended: float = math.nan
    look_at: float = math.inf

    @property
    def outcome(self) -> str:
        (one,) = self.outcomes
        return one

    @property
    def error(self) -> HedgerowError | None:
        return self.attempts.error


class Simulation:
    """Holds: the time, the requests, and what is to happen next.

    Args:
        behaviours: Of the targets, the primary first.
        hedge: As for the client.
        retries: As for the client.
        seed: Of all chance.
    """

    def __init__(
        self, *behaviours: Behaviour, hedge: Hedging | None = DEFAULT, retries: int = 2, seed: int = 0
    ) -> None:
        self.now = 1000.0
        self.chance = random.Random(seed)
        self.behaviours = list(behaviours)
        self.changes: list[tuple[float, str, str]] = []
        names = ["primary", *(f"backup{number}" for number in range(1, len(behaviours)))]
        self.regions = Regions(
            names,
            hedge,
            retries=retries,
            clock=lambda: self.now,
            changed=self._changed,
            chance=self.chance.random,
        )
        #: Attempts at each target, with when they began.
        self.seen: list[list[tuple[float, Attempt]]] = [[] for _ in behaviours]
        self.requests: list[Request] = []
        self.under_way: set[Request] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = itertools.count()
        self._looks_at_all = False

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Something happens at a time."""
        heapq.heappush(self._events, (when, next(self._turn), what))

    def run(self, until: float = math.inf) -> None:
        """Lets things happen until a time, or until nothing is left."""
        while self._events and self._events[0][0] <= until:
            when, _, what = heapq.heappop(self._events)
            self.now = max(self.now, when)
            what()
            while self._looks_at_all:
                self._looks_at_all = False
                for request in tuple(self.under_way):
                    self._look(request)
        if until < math.inf:
            self.now = max(self.now, until)

    def ask(self, timeout: float = 1.0, model: str = "m") -> Request:
        """A request begins now."""
        request = Request(Attempts(self.regions, model, self.now, timeout), self.now, self.now + timeout)
        self.requests.append(request)
        self.under_way.add(request)
        begun = request.attempts.start(self.now)
        self._set_timer(request)
        self._make(request, begun)
        return request

    def answer(self, timeout: float = 1.0, model: str = "m") -> Request:
        """A request, and all that happens until it is over."""
        request = self.ask(timeout, model)
        while not request.outcomes:
            self.run(self._events[0][0])
        return request

    def load(self, rate: float, seconds: float, timeout: float = 1.0) -> None:
        """Requests at random times, in open loop."""
        when, end = self.now, self.now + seconds
        while (when := when + self.chance.expovariate(rate)) < end:
            self.at(when, lambda: self.ask(timeout))

    def give_up(self, request: Request) -> None:
        """The caller of a request goes away."""
        request.attempts.end()
        self._settle(request)

    def _changed(self, breaker) -> None:
        self.changes.append((self.now, breaker.name, breaker.state.name))
        self._looks_at_all = True

    def _make(self, request: Request, begun: list[Attempt]) -> None:
        for attempt in begun:
            assert not request.attempts.over
            beside = [one for one in request.attempts.under_way.values() if one not in (attempt, *begun)]
            if not all(one.is_probe for one in beside):
                assert attempt.is_paid, "only what takes another's place is free"
            request.made.append(attempt)
            request.made_at.append(self.now)
            self.seen[attempt.target].append((self.now, attempt))
            fate = self.behaviours[attempt.target](self.now)
            ends = self.now + fate.seconds
            if ends > request.deadline:
                fate, ends = Fate(0.0, DEADLINE_EXCEEDED), request.deadline
            self.at(ends, lambda attempt=attempt, fate=fate: self._end(request, attempt, fate))
        self._settle(request)

    def _end(self, request: Request, attempt: Attempt, fate: Fate) -> None:
        if attempt in request.cancelled:
            return
        if fate.code is OK:
            if request.attempts.answered(attempt, self.now, fate.said):
                request.outcomes.append(attempt.kind)
            begun = []
        else:
            error = from_status(fate.code, "told so", fate.said, self.regions.targets[attempt.target].name)
            begun = request.attempts.failed(attempt, self.now, error, fate.said)
        self._set_timer(request)
        self._make(request, begun)

    def _look(self, request: Request) -> None:
        self._make(request, request.attempts.on_time(self.now))
        self._set_timer(request)

    def _set_timer(self, request: Request) -> None:
        wake = request.attempts.wake
        if request.attempts.over or wake in (request.look_at, math.inf):
            return
        assert wake > self.now or request.attempts.under_way, "nothing is looked at for nothing"
        request.look_at = wake

        def look() -> None:
            if request.look_at == wake and not request.attempts.over:
                request.look_at = math.inf
                self._look(request)

        self.at(wake, look)

    def _settle(self, request: Request) -> None:
        attempts = request.attempts
        if not attempts.over or request not in self.under_way:
            return
        self.under_way.discard(request)
        request.cancelled += attempts.losers
        request.ended = self.now
        if attempts.winner is None:
            request.outcomes.append(attempts.error.code.name if attempts.error else "given up")
