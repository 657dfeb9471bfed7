"""What the answers of one version in one role cost, and what they save against the champion's.

A prediction is a row of the batch dimension, as in Triton's `inference_count`, and a request to a
model without one is one prediction: the work follows the rows, and the bill must not change when a
client begins to send its rows together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """Sums of one variant of one version, in the units of the registry's `cost_per_1k`."""

    requests: int = 0
    predictions: int = 0
    #: None: it never had a price.
    cost: float | None = None
    #: What the champion would have cost more, and what it would have cost less; neither goes back.
    saved: float = 0.0
    extra: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        cost = other.cost if self.cost is None else self.cost + (other.cost or 0.0)
        return Spent(
            self.requests + other.requests,
            self.predictions + other.predictions,
            cost,
            self.saved + other.saved,
            self.extra + other.extra,
        )

    def growth(self, before: Spent) -> Spent:
        """What came since an earlier reading of the same sums."""
        return Spent(
            self.requests - before.requests,
            self.predictions - before.predictions,
            None if self.cost is None else self.cost - (before.cost or 0.0),
            self.saved - before.saved,
            self.extra - before.extra,
        )


class Tally:
    """Counts on the request path; whoever reads it multiplies.

    Holds: the counts, the prices in force, and what the answers cost that came before those.
    """

    __slots__ = ("_champion", "_price", "_settled", "predictions", "requests")

    def __init__(self) -> None:
        # The request path adds to these two, and to nothing else here.
        self.requests = 0
        self.predictions = 0
        self._price: float | None = None
        self._champion: float | None = None
        self._settled = Spent()

    def __repr__(self) -> str:
        return f"<Tally {self.spent()} at {self._price}, champion at {self._champion}>"

    def reprice(self, price: float | None, champion: float | None) -> None:
        """Counts what is answered from now on at other prices; what was answered keeps its own.

        Args:
            price: cost units of 1,000 predictions of this version; None where it has no price.
            champion: the same of the version that it is compared with; None: of none.
        """
        if (price, champion) == (self._price, self._champion):
            return
        self._settled = self.spent()
        self._price, self._champion = price, champion

    def spent(self) -> Spent:
        """The sums as of now."""
        settled = self._settled
        thousands = (self.predictions - settled.predictions) / 1000
        cost, saved, extra = settled.cost, settled.saved, settled.extra
        if self._price is not None:
            cost = (cost or 0.0) + thousands * self._price
            if self._champion is not None:
                saved += thousands * max(0.0, self._champion - self._price)
                extra += thousands * max(0.0, self._price - self._champion)
        return Spent(self.requests, self.predictions, cost, saved, extra)
