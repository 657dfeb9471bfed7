"""What the registry asks for, as plain data, and how it is read from names, aliases and tags."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from hedgerow_protos.registry_tags import COST_TAG, WEIGHT_PREFIX, TagError, parse_cost, parse_weight

SERVE_TAG = "hedgerow.serve"
ROLES = ("champion", "challenger", "economy", "shadow")
#: Percent of the traffic where no tag says otherwise; the champion takes the rest.
DEFAULT_WEIGHTS: Mapping[str, int] = {"challenger": 0, "economy": 10, "shadow": 0}
#: Tags of a version that travel to servers and operators.
VERSION_TAGS = ("owner", "cost_center", COST_TAG)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A registered model as one search of the registry shows it."""

    name: str
    aliases: dict[str, str]
    tags: dict[str, str]
    #: The version registered last; it is made ready before an alias moves to it.
    newest: str = ""


@dataclass(frozen=True, slots=True)
class DesiredVersion:
    """A version that an alias points at, or the newest one. Its files are a function of `source`."""

    version: str
    source: str
    tags: dict[str, str] = field(default_factory=dict)
    #: What could not be read as meant, for the operator.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """A model to serve: roles to version numbers, shares of the traffic, the versions themselves."""

    name: str
    aliases: dict[str, str]
    #: Percent of every role with an alias but champion.
    weights: dict[str, int]
    versions: dict[str, DesiredVersion]
    #: What could not be read as meant, for the operator.
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything to serve. A model that is not here is retired."""

    models: dict[str, DesiredModel] = field(default_factory=dict)
    #: Registered names that cannot be served, with the reason.
    refused: dict[str, str] = field(default_factory=dict)


def fingerprint(listing: Iterable[ListedModel]) -> str:
    """Hashes what a search showed, whatever its order; equal means nothing to do."""
    rows = [
        [
            model.name,
            model.newest,
            sorted((role, version) for role, version in model.aliases.items() if role in ROLES),
            sorted((key, value) for key, value in model.tags.items() if key.startswith("hedgerow.")),
        ]
        for model in listing
    ]
    rows.sort(key=lambda row: str(row[0]))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def weights(
    tags: Mapping[str, str], aliased: Iterable[str], last_good: Mapping[str, int] | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Reads `hedgerow.weight.<role>` tags.

    Args:
        tags: of the model.
        aliased: roles that an alias points at; the others share in nothing, so their tags do not count.
        last_good: what was read last of this model; None if nothing was.

    Returns:
        Percent for each aliased role but champion, and what was wrong. A tag that is no percentage
        leaves its role's last good weight, tags that sum to more than everything leave all of them.
    """
    known = last_good or {}
    result: dict[str, int] = {}
    problems = []
    for role in [role for role in DEFAULT_WEIGHTS if role in set(aliased)]:
        text = tags.get(WEIGHT_PREFIX + role)
        result[role] = DEFAULT_WEIGHTS[role]
        if text is None:
            continue
        try:
            result[role] = parse_weight(text)
        except TagError as error:
            result[role] = known.get(role, DEFAULT_WEIGHTS[role])
            problems.append(f"tag {WEIGHT_PREFIX}{role} is {error}; {role} stays at {result[role]} %")
    for key in sorted(key for key in tags if key.startswith(WEIGHT_PREFIX)):
        role = key.removeprefix(WEIGHT_PREFIX)
        if role == "champion":
            problems.append(f"tag {key} is not used: the champion takes what the other roles leave")
        elif role not in DEFAULT_WEIGHTS:
            problems.append(f"tag {key[:60]} names no role; the roles are {', '.join(ROLES)}")
    total = _sum(result)
    if total > 100:
        # What was in force had room; a role that is new to it gets nothing until there is some.
        stays = DEFAULT_WEIGHTS if last_good is None else last_good
        result = {role: stays.get(role, 0) for role in result}
        said = ", ".join(f"{role} {percent} %" for role, percent in result.items() if role != "shadow")
        problems.append(f"the weights sum to {total} %; expected at most 100; they stay {said}")
    return result, tuple(problems)


def with_good_cost(version: DesiredVersion, before: DesiredVersion | None) -> DesiredVersion:
    """The version with a `cost_per_1k` that is a number: its own, else the last good one, else none."""
    text = version.tags.get(COST_TAG)
    if text is None:
        return version
    try:
        parse_cost(text)
    except TagError as error:
        tags = {key: value for key, value in version.tags.items() if key != COST_TAG}
        stays = before.tags.get(COST_TAG) if before is not None else None
        if stays is not None:
            tags[COST_TAG] = stays
        problem = f"tag {COST_TAG} is {error}; " + (
            "its cost is not counted" if stays is None else f"it stays at {stays}"
        )
        return replace(version, tags=tags, problem=problem)
    return version


def _sum(shares: Mapping[str, int]) -> int:
    """Percent that are not the champion's; a shadow answers nobody."""
    return sum(percent for role, percent in shares.items() if role != "shadow")
