"""Which version answers: one immutable table a snapshot.

A request reads the table once and keeps what it chose; a swap replaces the
whole table by one assignment, so no request ever sees half of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from hedgerow_server.engine.costs import Tally
from hedgerow_server.engine.model import Model
from hedgerow_server.errors import NotFound

CHAMPION = "champion"
ECONOMY = "economy"
#: Variants in the order in which they take their share of the callers. The champion has the middle:
#: when the weight of another grows, callers move from the champion to it and nowhere else.
VARIANT_ORDER = ("challenger", CHAMPION, ECONOMY)
#: Mirrored, never chosen.
SHADOW = "shadow"
#: The variant of a request that named its version itself.
ASKED = "asked"
#: What other variants count as: a snapshot could name any number of them.
OTHER = "other"
_COUNTED = frozenset((*VARIANT_ORDER, ASKED))


class Route(Protocol):
    """A part of a model's traffic, as `hedgerow.control.v1.Route` carries it."""

    variant: str
    version: str
    weight: int


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The version that answers a request, and as what; a key by identity."""

    model: Model
    variant: str
    #: What this version has answered as this variant, over all tables.
    tally: Tally = field(init=False, repr=False)

    def __post_init__(self) -> None:
        label = self.variant if self.variant in _COUNTED else OTHER
        object.__setattr__(self, "tally", self.model.statistics.tally(label))


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """One model's versions and the shares of its traffic."""

    name: str
    versions: Mapping[str, Choice]
    #: Upper ends in (0, 1] of each share, and what answers there, ascending.
    shares: tuple[tuple[float, Choice], ...]
    #: The first route of each variant but shadow, whatever its weight.
    variants: Mapping[str, Choice]
    #: Cost units of 1,000 predictions by version, where they are known.
    costs: Mapping[str, float]

    def choices(self) -> Iterator[Choice]:
        """Everything that can be chosen here."""
        yield from self.versions.values()
        for _, choice in self.shares:
            yield choice
        for choice in self.variants.values():
            yield choice

    def economy_under_pressure(self) -> Choice | None:
        """What may answer in the champion's place while the server has too much to do.

        None: there is no economy variant, or the champion's serving.yaml does not allow it
        (`overload.economy_under_pressure`). Not for a request that named its version.
        """
        champion, economy = self.variants.get(CHAMPION), self.variants.get(ECONOMY)
        if champion is None or not champion.model.serving.overload.economy_under_pressure:
            return None
        return economy

    def reprice(self) -> None:
        """Counts what is answered from now on at these costs."""
        champion = self.variants.get(CHAMPION)
        other = None if champion is None else self.costs.get(champion.model.version)
        for choice in self.choices():
            # Nothing is saved by a version that was asked for, whatever it costs.
            routed = choice.variant not in {CHAMPION, ASKED}
            choice.tally.reprice(self.costs.get(choice.model.version), other if routed else None)

    def choose(self, caller: str, request: str) -> Choice:
        """The choice for a request that asked for no version.

        Args:
            caller: who asks; the same caller gets the same variant as long as the
                weights stand. Empty: unknown, `request` decides.
            request: an id of this request.

        Raises:
            NotFound: no route takes traffic.
        """
        shares = self.shares
        if len(shares) == 1:
            return shares[0][1]
        if not shares:
            raise NotFound(
                f"model {self.name!r} is loaded but no version of it takes traffic; "
                f"give one its alias, or ask for one of the versions {', '.join(self.versions)}"
            )
        digest = blake2b(f"{self.name}\0{caller or request}".encode(), digest_size=8).digest()
        point = int.from_bytes(digest, "big") / 2**64
        for end, choice in shares:
            if point < end:
                return choice
        return shares[-1][1]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Every model this server answers for, as of one snapshot."""

    version: int
    models: Mapping[str, ModelRoutes]

    @classmethod
    def build(
        cls,
        version: int,
        models: Mapping[str, Mapping[str, Model]],
        routes: Mapping[str, Sequence[Route]],
        costs: Mapping[str, Mapping[str, float]] | None = None,
    ) -> RouteTable:
        """Builds a table from versions in memory and the routes of a snapshot.

        Args:
            version: the snapshot's version.
            models: model name -> version -> the version in memory.
            routes: model name -> its routes; each must lead to a version in `models`.
            costs: model name -> version -> cost units of 1,000 predictions, where they are known.
        """
        known = costs or {}
        return cls(
            version,
            {
                name: _model_routes(name, versions, routes.get(name, ()), known.get(name, {}))
                for name, versions in models.items()
            },
        )

    def economy_under_pressure(self, name: str) -> Choice | None:
        """See `ModelRoutes.economy_under_pressure`; None also for a model that is not here."""
        model = self.models.get(name)
        return None if model is None else model.economy_under_pressure()

    def reprice(self) -> None:
        """Has what is answered from now on counted at this table's costs."""
        for model in self.models.values():
            model.reprice()

    def choose(self, name: str, version: str, caller: str, request: str) -> Choice:
        """The version that answers a request.

        Args:
            name: the model asked for.
            version: the version asked for; empty if none.
            caller: who asks, if known.
            request: an id of this request.

        Raises:
            NotFound: this server has no such model or version.
        """
        model = self.models.get(name)
        if model is None:
            raise NotFound(_unknown_model(name, self.models))
        if not version:
            return model.choose(caller, request)
        choice = model.versions.get(version)
        if choice is None:
            raise NotFound(
                f"model {name!r} has no version {version[:64]!r} here; "
                f"it has {', '.join(model.versions)}; leave the version out to get the one in service"
            )
        return choice


def _model_routes(
    name: str, versions: Mapping[str, Model], routes: Sequence[Route], costs: Mapping[str, float]
) -> ModelRoutes:
    answering = [
        (route, Choice(versions[route.version], route.variant))
        for route in sorted(routes, key=lambda route: _rank(route.variant))
        if route.variant != SHADOW
    ]
    total = sum(route.weight for route, _ in answering)
    shares: list[tuple[float, Choice]] = []
    variants: dict[str, Choice] = {}
    end = 0
    for route, choice in answering:
        variants.setdefault(route.variant, choice)
        if route.weight > 0:
            end += route.weight
            shares.append((end / total, choice))
    return ModelRoutes(
        name,
        {version: Choice(model, ASKED) for version, model in versions.items()},
        tuple(shares),
        variants,
        costs,
    )


def _rank(variant: str) -> tuple[int, str]:
    known = variant in VARIANT_ORDER
    return (VARIANT_ORDER.index(variant) if known else -1, variant)


def _unknown_model(name: str, models: Mapping[str, ModelRoutes]) -> str:
    # What the caller sent is echoed shortened and quoted: it may be anything.
    shown = repr(name[:64]) + ("..." if len(name) > 64 else "")
    if not models:
        return f"no model {shown}: this server has no models yet"
    some = ", ".join(sorted(models)[:10]) + (", ..." if len(models) > 10 else "")
    return f"no model {shown} on this server; it has {some}"
