"""What a client knows of the servers that it may ask.

A plain object without I/O; times come in as arguments, in seconds of one monotonic clock. A client has one,
for all its requests; threads share it under the client's lock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import grpc
from hedgerow_protos.breaker import Breaker, Policy, State, Token
from hedgerow_protos.hedging import LOAD, Budget, HedgeDelay

from hedgerow.hedging.latencies import ModelRecord
from hedgerow.hedging.settings import DEFAULT, Hedging
from hedgerow.hedging.target import Target, Trailing

#: One that went silent is noticed by the row, one that is slow or fails now and then by the shares.
POLICY = Policy(window=5.0, minimum=20, in_a_row=5, silence=0.25, open_for=1.0, probes=3)
#: Seconds between two questions to a backup whether it is ready: while it is (which also keeps its
#: connections open and fresh), and while it is not or may not be.
ASK_READY, ASK_UNREADY = 30.0, 0.25
#: Models whose latencies are remembered.
MOST_MODELS = 1024

#: Statuses by which a target itself is judged; the others are about the request, or say that it is busy.
ITS_FAULT = frozenset((
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED,
))  # fmt: skip


class Regions:
    """Holds: the targets, primary first, the budget that their requests share, and the models' records.

    Args:
        targets: Addresses; the first is the primary.
        hedge: None: backups are asked only where the primary fails.
        retries: Attempts for a request after each target had one, when they are unreachable.
        clock: Seconds, monotonic.
        changed: Told when a breaker opens or closes.
        chance: Numbers in [0, 1).
    """

    def __init__(
        self,
        targets: Sequence[str],
        hedge: Hedging | None,
        *,
        retries: int,
        clock: Callable[[], float],
        changed: Callable[[Breaker], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.targets = tuple(Target(name, Breaker(name, POLICY, clock, changed)) for name in targets)
        self.order = tuple(range(len(targets)))
        self.budget = Budget((hedge or DEFAULT).budget)
        self.retries = retries
        self.chance = chance
        self.is_hedging = hedge is not None
        self._delay = HedgeDelay(hedge.after, self.budget, adaptive=hedge.adaptive) if hedge else None
        self._models: dict[str, ModelRecord] = {}
        #: When to ask a backup whether it is ready.
        self.ask_at = -math.inf

    def __repr__(self) -> str:
        return f"<Regions {', '.join(map(repr, self.targets))}, {self.budget!r}>"

    def model(self, name: str) -> ModelRecord:
        """What is known of a model."""
        record = self._models.get(name)
        if record is None:
            if len(self._models) >= MOST_MODELS:
                self._models.clear()
            delay = self._delay.after if self._delay else math.inf
            record = self._models[name] = ModelRecord(len(self.targets), delay)
        return record

    def served(self, record: ModelRecord, now: float, seconds: float) -> None:
        """A request was answered, by whichever attempt."""
        if self._delay is not None and self._delay.adaptive:
            changed = record.requests.add(now, seconds)
            if changed is not None:
                record.delay = self._delay.seconds(changed)

    def answered(
        self, index: int, record: ModelRecord, token: Token | None, now: float, seconds: float, said: Trailing
    ) -> None:
        """An attempt brought an answer, whether or not it came first."""
        target = self.targets[index]
        target.answered_at = now
        was_well = target.breaker.state is State.CLOSED
        if was_well:  # while it is not, it is measured by how it was
            record.at[index].add(now, seconds)
        if token is not None:
            token.success(seconds)
            if not was_well and target.breaker.state is State.CLOSED:
                record.at[index].begin_anew(seconds)
        if LOAD in said:
            target.hear(now, said)

    def failed(
        self,
        index: int,
        model: str,
        token: Token | None,
        now: float,
        seconds: float,
        code: grpc.StatusCode,
        said: Trailing,
    ) -> None:
        """An attempt brought none."""
        target = self.targets[index]
        target.hear(now, said)
        if code is grpc.StatusCode.NOT_FOUND:
            target.miss(now, model)
        if code is grpc.StatusCode.UNAVAILABLE and index:
            self.ask_soon(now, index)
        if code not in ITS_FAULT and code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            target.answered_at = now
        if token is None:
            return
        if code in ITS_FAULT:
            token.failure(code.name)
        elif code not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED):
            token.success(seconds)  # it lives: the request was wrong
        token.ignore()

    def wants(self, index: int, model: str, record: ModelRecord, now: float, deadline: float) -> bool:
        """Whether a target can take a request in place of another, whatever its breaker says."""
        median = record.at[index].median or HedgeDelay.SHORTEST
        return deadline - now > median and not self.targets[index].obstacle(now, model)

    def leave(self, index: int, record: ModelRecord, timeout: float) -> Token | None:
        """Leave of a target's breaker for an attempt."""
        breaker = self.targets[index].breaker
        is_well = breaker.state is State.CLOSED
        slow_after = record.slow_after if is_well else record.probe_slow_after
        return breaker.acquire(slow_after(index, timeout))

    def last_resort(self, indices: Sequence[int]) -> int:
        """Of targets that should not be asked, the one that answered last: it is slow or busy, not gone."""
        return max(indices, key=lambda index: self.targets[index].answered_at)

    # What backups are asked beside requests: whether they are ready.

    def ask_soon(self, now: float, index: int) -> None:
        """What is known of a backup may not hold any more."""
        target = self.targets[index]
        target.ask_at = min(target.ask_at, max(now, target.asked_at + ASK_UNREADY))
        self.ask_at = min(self.ask_at, target.ask_at)

    def to_ask(self, now: float) -> list[int]:
        """The backups to be asked now; `heard` or `unheard` is called for each."""
        due = [index for index in self.order[1:] if now >= self.targets[index].ask_at]
        for index in due:
            target = self.targets[index]
            target.asked_at, target.ask_at = now, now + ASK_READY
        self.ask_at = min((target.ask_at for target in self.targets[1:]), default=math.inf)
        return due

    def heard(self, now: float, index: int, said: Trailing, *, ready: bool | None) -> None:
        """A backup's answer; None: it did not understand the question, but is there."""
        target = self.targets[index]
        target.hear(now, said)
        target.is_ready = ready is not False
        if target.is_ready:
            target.answered_at = now
        target.ask_at = now + (ASK_READY if target.is_ready else ASK_UNREADY)
        self.ask_at = min(self.ask_at, target.ask_at)
