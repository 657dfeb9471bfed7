"""What a snapshot asks for, checked before anything of it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hedgerow_protos.hedgerow_control_pb2 import Model, ModelVersion, Route, Snapshot
from hedgerow_protos.registry_tags import cost_of

from hedgerow_server.routing.table import CHAMPION, ECONOMY

#: The longest model name; as long as MLflow's.
MAX_NAME = 256


class Key(NamedTuple):
    """What makes two versions the same: loaded once, it is never loaded again."""

    model: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


class SnapshotRefused(Exception):
    """A snapshot cannot be applied, and nothing of it was.

    Args:
        reason: what is wrong, for the operator.
        model: the model at fault, if one is.
        version: its version at fault.
        transient: the same snapshot may go well later (a file could not be
            fetched, the disk was full), so it is worth another try.
    """

    def __init__(self, reason: str, model: str = "", version: str = "", *, transient: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.model = model
        self.version = version
        self.transient = transient


@dataclass(frozen=True, slots=True)
class Desired:
    """A snapshot that is whole: every route leads to a version it lists."""

    snapshot_version: int
    versions: Mapping[Key, ModelVersion]
    #: Those that answer callers who name no version: a route with a weight leads to them, or they
    #: are the economy variant to which the champion's callers may be moved under pressure.
    routed: frozenset[Key]
    routes: Mapping[str, Sequence[Route]]
    #: Model -> version -> cost units of 1,000 predictions, where the registry has them.
    costs: Mapping[str, Mapping[str, float]]


def read(snapshot: Snapshot) -> Desired:
    """Checks a snapshot against itself.

    Raises:
        SnapshotRefused: a name or version is malformed or listed twice, or a
            route leads to a version that the snapshot does not list.
    """
    versions: dict[Key, ModelVersion] = {}
    routed: set[Key] = set()
    routes: dict[str, Sequence[Route]] = {}
    costs: dict[str, dict[str, float]] = {}
    for model in snapshot.models:
        _check_name(model.name)
        if model.name in routes:
            raise SnapshotRefused(f"model {model.name!r} is listed twice", model.name)
        keys = _keys(model)
        specs = {version.version: version.serving for version in model.versions}
        versions.update({keys[version.version]: version for version in model.versions})
        relieved = any(
            route.variant == CHAMPION and specs[route.version].overload.economy_under_pressure
            for route in model.routes
            if route.version in specs
        )
        for route in model.routes:
            key = keys.get(route.version)
            if key is None:
                raise SnapshotRefused(
                    f"route {route.variant!r} leads to version {route.version!r}, "
                    "which the snapshot does not list",
                    model.name,
                    route.version,
                )
            if route.weight or (relieved and route.variant == ECONOMY):
                routed.add(key)
        routes[model.name] = model.routes
        priced = {version.version: cost_of(version.tags) for version in model.versions}
        costs[model.name] = {number: cost for number, cost in priced.items() if cost is not None}
    return Desired(snapshot.version, versions, frozenset(routed), routes, costs)


def _keys(model: Model) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for version in model.versions:
        number = version.version
        # Triton's clients read versions as integers.
        if not (number.isascii() and number.isdecimal() and len(number) <= 18) or number[0] == "0":
            raise SnapshotRefused(
                f"version {number!r} is not a positive integer without leading zeros", model.name, number
            )
        if number in keys:
            raise SnapshotRefused(f"version {number} is listed twice", model.name, number)
        keys[number] = Key(model.name, number, version.digest)
    return keys


def _check_name(name: str) -> None:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise SnapshotRefused(
            f"model name {name[:64]!r} is empty, longer than {MAX_NAME} characters or not printable",
            name[:MAX_NAME],
        )
