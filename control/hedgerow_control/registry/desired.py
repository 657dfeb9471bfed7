"""What the registry asks for, as plain data, and how it is read from names, aliases and tags."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SERVE_TAG = "hedgerow.serve"
WEIGHT_PREFIX = "hedgerow.weight."
ROLES = ("champion", "challenger", "economy", "shadow")
#: Percent of the traffic where no tag says otherwise; the champion takes the rest.
DEFAULT_WEIGHTS: Mapping[str, int] = {"challenger": 0, "economy": 10, "shadow": 0}
#: Tags of a version that travel to servers and operators.
VERSION_TAGS = ("owner", "cost_center", "cost_per_1k")


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


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """A model to serve: roles to version numbers, shares of the traffic, the versions themselves."""

    name: str
    aliases: dict[str, str]
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


def weights(tags: Mapping[str, str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Reads `hedgerow.weight.<role>` tags.

    Returns:
        Percent for each role but champion, and what was wrong; whatever is wrong
        leaves the defaults in force.
    """
    result = dict(DEFAULT_WEIGHTS)
    problems = []
    for key, text in sorted(tags.items()):
        if not key.startswith(WEIGHT_PREFIX):
            continue
        role = key.removeprefix(WEIGHT_PREFIX)
        if role == "champion":
            problems.append(f"tag {key} is not used: the champion takes what the other roles leave")
        elif role not in DEFAULT_WEIGHTS:
            problems.append(f"tag {key} names no role; the roles are {', '.join(ROLES)}")
        elif not (text.isascii() and text.isdigit() and int(text[:4]) <= 100 and len(text) <= 4):
            problems.append(f"tag {key} is {text[:40]!r}; expected a whole percentage, 0 to 100")
        else:
            result[role] = int(text)
    total = sum(percent for role, percent in result.items() if role != "shadow")
    if total > 100:
        problems.append(f"the weight tags sum to {total} %; expected at most 100; the defaults apply")
        result = dict(DEFAULT_WEIGHTS)
    return result, tuple(problems)
