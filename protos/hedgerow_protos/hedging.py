"""When a request is tried a second time elsewhere: plain objects, the same in server and client.

A hedge is a second attempt that begins while the first is still under way; the first good
answer wins (Dean and Barroso, The Tail at Scale, 2013). The vocabulary and the rules are those of
gRFC A6, whose hedging gRPC's C core does not have; the delay is that of Finagle's
BackupRequestFilter: a live percentile, none until warm, with a cap, since a percentile of a host that is
slow all the time would switch hedging off when it is needed most (Cassandra-14293).

Nothing here has a clock or does I/O: times come in as arguments, in seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence

#: Request metadata of every attempt but the first (gRFC A6): how many came before. Who gets it makes no
#: further attempts, so hedges do not cascade.
PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"
#: The same under a name of our own. gRPC's C core and the native transport keep their own `grpc-` names from
#: the server's code, so this is what a server goes by.
OWN_PREVIOUS_ATTEMPTS = "hedgerow-previous-attempts"
#: Trailing metadata of a refusal (gRFC A6): milliseconds until the next attempt; negative: never.
PUSHBACK = "grpc-retry-pushback-ms"
#: The same where a transport does not let a server use gRPC's own name.
OWN_PUSHBACK = "hedgerow-retry-pushback-ms"
PUSHBACKS = frozenset((PUSHBACK, OWN_PUSHBACK))
#: Request metadata of an attempt: `hedge` (another one is under way) or `failover` (the other has failed, and
#: who sends this has rules of its own to fall back on).
ATTEMPT = "hedgerow-attempt"
HEDGE, FAILOVER = "hedge", "failover"
#: Trailing metadata of what a server answers another region: how busy it is, as ORCA writes it
#: (`TEXT application_utilization=0.42`), and where it is.
LOAD, REGION = "endpoint-load-metrics", "hedgerow-region"
#: Above this share of what it can do a server has no room for another region's failed calls.
ROOM = 0.8

#: The longest that pushback keeps a target out of use; a server that means more says so again.
LONGEST_PUSHBACK = 60.0


class Budget:
    """Tokens for attempts beside the first, shared by hedges and retries.

    Holds: the tokens. Each request adds `share` of one, each further attempt takes one; so in any
    stretch of `n` requests there are at most `share * n + burst` further attempts, and as many more as
    were made on credit; none but such are made until those are paid for.

    Args:
        share: Further attempts for each request, such as 0.02.
        burst: Tokens kept at most, and there at the start: a service with few requests can hedge too.
    """

    __slots__ = ("burst", "share", "tokens")

    def __init__(self, share: float, burst: float = 10.0) -> None:
        if not (0 < share <= 1 and burst >= 1):
            raise ValueError(f"a budget of share {share} and burst {burst} allows nothing")
        self.share = share
        self.burst = burst
        self.tokens = burst

    def __repr__(self) -> str:
        return f"<Budget {self.tokens:.2f} of {self.burst:g} tokens, {self.share:.2%} of requests>"

    def deposit(self, requests: int = 1) -> None:
        """So many requests have come."""
        self.tokens = min(self.burst, self.tokens + self.share * requests)

    def withdraw(self) -> bool:
        """Takes the token for one attempt; False: there is none, do not make it."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def charge(self) -> None:
        """Takes the token for an attempt that has to be made; where there is none, from those to come."""
        self.tokens -= 1.0

    def refund(self) -> None:
        """Gives the token of an attempt back that was never sent."""
        self.tokens = min(self.burst, self.tokens + 1.0)

    @property
    def fullness(self) -> float:
        """From 0, empty, to 1."""
        return max(0.0, self.tokens / self.burst)


class Percentiles:
    """Percentiles of the last seconds, from counts that only grow.

    Holds: what the counts were at some times before. Whoever measures keeps a histogram of all there ever was
    and adds to it, which is cheap; what happened lately is the difference.

    Args:
        bounds: Upper bounds of the buckets in seconds, ascending; the counts have one bucket more.
        window: Seconds that count.
    """

    __slots__ = ("_at", "_bounds", "_counts", "_step", "_taken")

    #: Parts that the window moves on by.
    STEPS = 20

    def __init__(self, bounds: Sequence[float], window: float = 10.0) -> None:
        self._bounds = bounds
        self._step = window / self.STEPS
        # (when, the counts then), oldest first.
        self._taken: deque[tuple[float, list[int]]] = deque()
        self._at = -math.inf
        self._counts: list[int] = []

    def update(self, now: float, counts: Sequence[int]) -> bool:
        """Takes the counts as they are now; True if percentiles may have changed."""
        if now < self._at + self._step:
            return False
        self._at = now
        taken = self._taken
        if not taken:
            taken.append((now, [0] * len(counts)))
        while len(taken) > 1 and taken[1][0] <= now - self._step * self.STEPS:
            taken.popleft()
        self._counts = [new - old for new, old in zip(counts, taken[0][1], strict=True)]
        taken.append((now, list(counts)))
        return True

    @property
    def samples(self) -> int:
        """How many requests the percentiles are of."""
        return sum(self._counts)

    def at(self, quantile: float) -> float:
        """Seconds that this share of the requests took at most; infinity if that is beyond all bounds.

        Within a bucket the requests count as evenly spread.
        """
        wanted = quantile * self.samples
        seen = 0
        for i, count in enumerate(self._counts):
            if count and seen + count >= wanted:
                if i >= len(self._bounds):
                    return math.inf
                low = self._bounds[i - 1] if i else 0.0
                return low + (self._bounds[i] - low) * max(0.0, wanted - seen) / count
            seen += count
        return math.inf


class HedgeDelay:
    """After how long a second attempt begins: a fixed time, or the percentile that the budget allows.

    With a budget of 2 % that is p98: what 2 % of the requests are slower than. The emptier the
    budget, the higher the percentile, so that what is left goes to the slowest.

    Args:
        after: Seconds; the delay, and its cap where it is adaptive.
        adaptive: Whether a percentile below `after` is used.
        budget: That the attempts are taken from.
    """

    __slots__ = ("_budget", "adaptive", "after")

    #: Requests in the window that make a percentile worth believing: ten beyond p98.
    WARM = 500
    #: The shortest; an event loop's timers have milliseconds.
    SHORTEST = 0.001
    #: The delay beyond the percentile: who is just above it is about to answer.
    MARGIN = 1.1

    def __init__(self, after: float, budget: Budget, *, adaptive: bool = False) -> None:
        self.after = after
        self.adaptive = adaptive
        self._budget = budget

    def seconds(self, latencies: Percentiles) -> float:
        """The delay now, counted from when the request came.

        Args:
            latencies: Of whole requests, also of those that a hedge has won: all of them took longer than
                the delay, and so did their first attempts, so a percentile below it is not biased.
        """
        if not self.adaptive or latencies.samples < self.WARM:
            return self.after
        spend = min(1.0, max(0.1, 2.0 * self._budget.fullness))
        live = latencies.at(1.0 - self._budget.share * spend) * self.MARGIN
        return min(self.after, max(live, self.SHORTEST))


class Race:
    """The attempts of one request: which are under way, and the one that won.

    Holds: numbers of attempts. 0 is the first, at the primary; 1, 2, ... go to the backups, in order.
    Each attempt ends once: it wins, fails, or is cancelled since another has won.

    Args:
        targets: How many there are, the primary included.
    """

    __slots__ = ("left", "over", "pending")

    def __init__(self, targets: int) -> None:
        #: Attempts that were not made yet, in order.
        self.left = list(range(1, targets))
        #: Attempts that have not ended.
        self.pending = {0}
        #: Somebody has won, or nobody can any more.
        self.over = False

    def __repr__(self) -> str:
        return f"<Race {'over' if self.over else sorted(self.pending)}, left {self.left}>"

    def begin(self, usable: Callable[[int], bool]) -> int | None:
        """Begins the next attempt: at the first target, in order, that is usable and had none.

        Returns:
            Its number; None if there is none. One that is not usable now may be so later.
        """
        if self.over:
            return None
        for place, number in enumerate(self.left):
            if usable(number):
                del self.left[place]
                self.pending.add(number)
                return number
        return None

    def win(self, number: int) -> set[int] | None:
        """An attempt brought a good answer.

        Returns:
            The attempts to cancel; None if this one comes too late and is not used.
        """
        if self.over or number not in self.pending:
            return None
        self.over = True
        losers = self.pending - {number}
        self.pending = set()
        return losers

    def fail(self, number: int) -> bool:
        """An attempt failed; False if it had ended before."""
        if self.over or number not in self.pending:
            return False
        self.pending.discard(number)
        return True

    def end(self) -> set[int]:
        """The request is over without a winner: out of time, given up, or refused.

        Returns:
            The attempts to cancel.
        """
        self.over = True
        losers, self.pending = self.pending, set()
        return losers


def read_pushback(value: str | bytes | None) -> float | None:
    """Seconds that a server asks to be left alone for, from its `grpc-retry-pushback-ms`.

    Returns:
        None if it said nothing; infinity if it said never, or what is no number (the same to gRFC A6).
    """
    if value is None:
        return None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    try:
        milliseconds = int(text)
    except ValueError:
        return math.inf
    return math.inf if milliseconds < 0 else min(milliseconds / 1000, LONGEST_PUSHBACK)


def write_previous_attempts(count: int) -> tuple[tuple[str, str], ...]:
    """The request metadata that says how many attempts came before; nothing for the first."""
    return ((PREVIOUS_ATTEMPTS, str(count)), (OWN_PREVIOUS_ATTEMPTS, str(count))) if count else ()


def read_previous_attempts(value: str | bytes) -> int:
    """The number in either of these; what is no number was meant as one, and counts as 1."""
    try:
        return max(0, int(value))
    except ValueError:
        return 1


def write_load(utilization: float) -> str:
    """How busy a server is, from 0 to 1 and above, as ORCA's text format has it."""
    return f"TEXT application_utilization={utilization:.3f}"


def read_load(value: str | bytes | None) -> float | None:
    """The utilization in an `endpoint-load-metrics`; None if it says nothing of it."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""
    form, _, rest = text.strip().partition(" ")
    if form.upper() != "TEXT":
        return None
    for pair in rest.split(","):
        name, _, number = pair.partition("=")
        if name.strip() == "application_utilization":
            try:
                found = float(number)
            except ValueError:
                return None
            return found if math.isfinite(found) and found >= 0 else None
    return None


def bucket(bounds: Sequence[float], seconds: float) -> int:
    """The bucket of a histogram with these upper bounds that a duration belongs to."""
    return bisect_left(bounds, seconds)
