"""A queueing system in virtual time: the server's own queue, limit and admission, without threads or clock.

Requests arrive in open loop (`arrive`) or from callers who each wait for an answer (`callers`); so many
runs go on at once, each taking as long as `service` says.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from hedgerow_server.engine.batching import BatchQueue
from hedgerow_server.engine.latency import LatencyModel
from hedgerow_server.gate.admission import ORDINARY, PRIORITY, Admission, Class, Refusal, backlog
from hedgerow_server.gate.concurrency import DEFAULT_BOUNDS, Bounds, ConcurrencyLimit


@dataclass(eq=False)
class Request:
    """One request, and what became of it."""

    arrived: float
    deadline: float
    of: Class = ORDINARY
    rows: int = 1
    kind: Hashable | None = "k"
    priority: int = 0
    ended: bool = False
    queued_ns: int = 0
    done: Callable[[Request, str], None] | None = None


@dataclass
class Seen:
    """What became of the requests of some stretch of time."""

    outcomes: Counter[str] = field(default_factory=Counter)
    by_class: Counter[tuple[str, float, str]] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    waste: float = 0.0

    def percentile(self, share: float) -> float:
        """Of the latencies of good answers, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Station:
    """A model behind its door.

    Args:
        service: seconds that a run of so many rows takes, at a time.
        slots: runs at once.
        max_rows: in one run.
        bounds: of the limit.
        prioritized: whether requests have priorities.
    """

    name = "m"

    def __init__(
        self,
        service: Callable[[int, float], float],
        *,
        slots: int = 2,
        max_rows: int = 1,
        bounds: Bounds = DEFAULT_BOUNDS,
        prioritized: bool = False,
        seed: int = 0,
    ) -> None:
        self.random = random.Random(seed)
        self.service = service
        self.slots = slots
        self.max_rows = max_rows
        self.prioritized = prioritized
        self.queue: BatchQueue[Request] = BatchQueue(max_rows, prioritized=prioritized)
        self.latency = LatencyModel(service(1, 0.0))
        self.limit = ConcurrencyLimit()
        self.limit.move(threaded=True)
        self.admission = Admission(bounds, spread=self.random.random)
        self.admission.follow([self])
        self.in_flight = self.running = 0
        self.now = 0.0
        self.seen = Seen()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Schedules something."""
        heapq.heappush(self._events, (when, next(self._order), what))

    def run(self, until: float) -> Seen:
        """Lets time pass; returns what was seen meanwhile."""
        self.seen = Seen()
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until
        return self.seen

    # ----------------------------------------------------------------- arrivals

    def arrive(self, rate: float, until: float, patience: float, **more: object) -> None:
        """Poisson arrivals from now on."""

        def one() -> None:
            self.enter(Request(self.now, self.now + patience, **more))  # type: ignore[arg-type]
            following = self.now + self.random.expovariate(rate)
            if following < until:
                self.at(following, one)

        self.at(self.now + self.random.expovariate(rate), one)

    def callers(self, number: int, until: float, patience: float, pause: float = 0.0) -> None:
        """Callers who each send the next request when the last is answered, or a moment after a refusal."""

        def send() -> None:
            if self.now < until:
                self.enter(Request(self.now, self.now + patience, done=done))

        def done(request: Request, outcome: str) -> None:
            retry = 0.05 if outcome not in {"good", "late"} else 0.0
            self.at(self.now + pause + retry, send)

        for _ in range(number):
            self.at(self.now + self.random.random() * 0.01, send)

    # ------------------------------------------------------------- the way through

    def refusal(self, request: Request) -> Refusal | None:
        """What the door says; one of lower priority may have to go for it."""
        full = self.admission.full(self, request.of)
        if full is not None:
            lower = self.queue.displace(request.priority)
            if lower is None:
                return full
            self.in_flight -= 1
            self._end(lower, f"refused {PRIORITY}")
        run = self.latency.known(self.queue.typical_rows())
        found = backlog(self.queue.runs_ahead(request.priority), self.slots - self.running, self.slots, run)
        return self.admission.late(self, request.of, found, request.deadline - self.now)

    def enter(self, request: Request) -> None:
        """A request arrives."""
        refused = self.refusal(request)
        if refused is not None:
            self._end(request, f"refused {refused.reason}")
            return
        request.queued_ns = round(self.now * 1e9)
        self.in_flight += 1
        self.queue.add(request)
        self._begin()

    def _begin(self) -> None:
        while self.queue.length and self.running < self.slots:
            expected = self.latency.expect(self.queue.next_rows(self.now))
            batch, expired = self.queue.take(self.now, expected, self.latency.likely, self.latency.known)
            for request in expired:
                self.in_flight -= 1
                self._end(request, "expired")
            if not batch:
                continue
            last = self.queue.oldest() or batch[-1] if self.prioritized else batch[-1]
            self.limit.sample(
                self.now,
                self.now - last.queued_ns * 1e-9,
                expected,
                last.deadline - last.arrived,
                len(batch),
                self.in_flight,
            )
            self.seen.limits.append(self.limit.value)
            rows = sum(request.rows for request in batch)
            seconds = self.service(rows, self.now)
            self.running += 1
            self.at(self.now + seconds, lambda b=batch, r=rows, s=seconds: self._finish(b, r, s))  # type: ignore[misc]

    def _finish(self, batch: list[Request], rows: int, seconds: float) -> None:
        self.running -= 1
        self.latency.ran(rows, seconds)
        self.latency.observe(rows, seconds)
        for request in batch:
            self.in_flight -= 1
            self._end(request, "good" if self.now <= request.deadline else "late")
        self._begin()

    def _end(self, request: Request, outcome: str) -> None:
        assert not request.ended, "ended twice"
        request.ended = True
        self.seen.outcomes[outcome] += 1
        self.seen.by_class[request.of.reason, request.of.share, outcome] += 1
        if outcome == "good":
            self.seen.latencies.append(self.now - request.arrived)
        if request.done is not None:
            request.done(request, outcome)
