"""When a client asks a backup too: what its user decides."""

from __future__ import annotations

from dataclasses import dataclass

from hedgerow_protos.hedging import HedgeDelay

from hedgerow.errors import InvalidRequest

#: Above this share hedges are load that the backup has to be built for.
MOST_BUDGET = 0.05


@dataclass(frozen=True, slots=True)
class Hedging:
    """A second attempt at a backup while the first is still under way; the first good answer counts.

    Attributes:
        after: Seconds until the second attempt begins.
        adaptive: Begin earlier where the answers of the last seconds allow it: when all but the slowest
            share of them, the budget, would have come.
        budget: Further attempts for each request, hedges and retries together; at most 0.05. Ten more
            may be made at once, so that a client with few requests can hedge too.

    Raises:
        InvalidRequest: A value that cannot work.
    """

    after: float = 0.03
    adaptive: bool = False
    budget: float = 0.02

    def __post_init__(self) -> None:
        if not self.after >= HedgeDelay.SHORTEST:
            raise InvalidRequest(f"hedging after={self.after!r}: give seconds, {HedgeDelay.SHORTEST} or more")
        if not 0 < self.budget <= MOST_BUDGET:
            raise InvalidRequest(
                f"hedging budget={self.budget!r}: give a share of the requests above 0, up to {MOST_BUDGET}"
            )


#: What a client with backups does unless told otherwise.
DEFAULT = Hedging()
