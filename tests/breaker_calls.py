"""Made-up time, and the calls that a circuit breaker sees in it."""

from __future__ import annotations

from hedgerow_protos.breaker import Breaker, Policy, State

POLICY = Policy(window=5.0, minimum=4, failed=0.5, slow_after=0.1, slow=0.5, open_for=1.0, probes=3)


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def call(breaker: Breaker, *, fails: bool = False, takes: float = 0.01) -> None:
    token = breaker.acquire()
    assert token is not None
    if fails:
        token.failure("no route")
    else:
        token.success(takes)


def trip(breaker: Breaker) -> None:
    for _ in range(POLICY.minimum):
        call(breaker, fails=True)
    assert breaker.state is State.OPEN
