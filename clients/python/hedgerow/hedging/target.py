"""One server, or one region behind an address, as the client sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hedgerow_protos.breaker import Breaker
from hedgerow_protos.hedging import LOAD, OWN_PUSHBACK, PUSHBACK, ROOM, read_load, read_pushback

Trailing = Mapping[str, str | bytes]


def pushback_in(said: Trailing) -> float | None:
    """What a server says of further attempts: seconds, infinity for never, None for nothing."""
    return read_pushback(said.get(PUSHBACK, said.get(OWN_PUSHBACK)))


#: What a server said of its load counts for so many seconds.
LOAD_SECONDS = 5.0
#: A model that a target does not have is looked for there again after so many.
MISSING_SECONDS = 5.0
#: Such models that are remembered.
MOST_MISSING = 1024


class Target:
    """Holds: how one server, or one region behind an address, fares, and what it said of itself.

    Args:
        name: Its address.
        breaker: Of the calls to it.
    """

    __slots__ = (
        "_load",
        "_load_until",
        "_missing",
        "answered_at",
        "ask_at",
        "asked_at",
        "breaker",
        "is_ready",
        "name",
        "pushed_back_until",
    )

    def __init__(self, name: str, breaker: Breaker) -> None:
        self.name = name
        self.breaker = breaker
        #: It answers, and did not say that it drains or that its models are not loaded.
        self.is_ready = True
        #: When it last gave a sign of life.
        self.answered_at = -math.inf
        #: When it was asked that, and will be the next time.
        self.asked_at = self.ask_at = -math.inf
        #: It wants no further attempts before.
        self.pushed_back_until = -math.inf
        self._load, self._load_until = 0.0, -math.inf
        # Models that it does not have, and until when that is believed.
        self._missing: dict[str, float] = {}

    def __repr__(self) -> str:
        state = self.breaker.state.name.lower()
        return f"<Target {self.name} {state}{'' if self.is_ready else ', not ready'}>"

    def hear(self, now: float, trailing: Trailing) -> None:
        """Takes note of what it says of itself behind a reply."""
        pushback = pushback_in(trailing)
        # "Never" is about this one request.
        if pushback is not None and pushback < math.inf:
            self.pushed_back_until = max(self.pushed_back_until, now + pushback)
        load = read_load(trailing.get(LOAD))
        if load is not None:
            self._load, self._load_until = load, now + LOAD_SECONDS

    def has_room(self, now: float) -> bool | None:
        """Whether it can take what is too much for another; None if it did not say lately."""
        return self._load < ROOM if now < self._load_until else None

    def miss(self, now: float, model: str) -> None:
        """It does not have this model."""
        if len(self._missing) >= MOST_MISSING:
            self._missing.clear()
        self._missing[model] = now + MISSING_SECONDS

    def obstacle(self, now: float, model: str) -> str:
        """Why another target's request should not come here, whatever the breaker says; empty if it may."""
        if not self.is_ready:
            return "it is not ready"
        if now < self.pushed_back_until:
            return "it asked to be left alone"
        if self._missing and now < self._missing.get(model, -math.inf):
            return "it does not have the model"
        return ""
