"""Which version answers: one immutable table a snapshot.

A request reads the table once and keeps what it chose; a swap replaces the
whole table by one assignment, so no request ever sees half of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from hedgerow_server.engine.model import Model
from hedgerow_server.errors import NotFound

#: Variants in the order in which they take their share of the callers. The
#: champion comes last: when a challenger's weight grows, callers move from the
#: champion to it and never between the others.
VARIANT_ORDER = ("challenger", "economy", "champion")
#: Mirrored, never chosen.
SHADOW = "shadow"
#: The variant of a request that named its version itself.
ASKED = "asked"


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


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """One model's versions and the shares of its traffic."""

    name: str
    versions: Mapping[str, Choice]
    #: Upper ends in (0, 1] of each share, and what answers there, ascending.
    shares: tuple[tuple[float, Choice], ...]

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
    ) -> RouteTable:
        """Builds a table from versions in memory and the routes of a snapshot.

        Args:
            version: the snapshot's version.
            models: model name -> version -> the version in memory.
            routes: model name -> its routes; each must lead to a version in `models`.
        """
        return cls(
            version,
            {name: _model_routes(name, versions, routes.get(name, ())) for name, versions in models.items()},
        )

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


def _model_routes(name: str, versions: Mapping[str, Model], routes: Sequence[Route]) -> ModelRoutes:
    taking = [route for route in routes if route.weight > 0 and route.variant != SHADOW]
    taking.sort(key=lambda route: _rank(route.variant))
    total = sum(route.weight for route in taking)
    shares: list[tuple[float, Choice]] = []
    end = 0
    for route in taking:
        end += route.weight
        shares.append((end / total, Choice(versions[route.version], route.variant)))
    return ModelRoutes(
        name,
        {version: Choice(model, ASKED) for version, model in versions.items()},
        tuple(shares),
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
