"""One reading of the registry: blocking, in the watcher's thread.

One search, whatever the number of models and servers. Versions are looked up
when their model's aliases have changed; no search shows that a version's own
tags have, so while all is quiet a few are looked up in turn.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from hedgerow_protos.names import model_name_problem

from hedgerow_control.registry.client import NoSuchVersion, RegistryClient
from hedgerow_control.registry.desired import (
    DesiredModel,
    DesiredState,
    DesiredVersion,
    ListedModel,
    fingerprint,
    weights,
    with_good_cost,
)

logger = logging.getLogger(__name__)

#: In so many quiet readings each version with a role is looked up again, unless there are more
#: than MAX_LOOKUPS times as many: a reading must not become a burden to the registry.
TURN_READINGS = 30
MAX_LOOKUPS = 16


class Reader:
    """Holds the last reading, and what it was made from.

    Args:
        client: the registry.
        before: the last reading of an earlier process. Its weights and costs stand where the
            registry's cannot be read; nothing else of it counts.
    """

    def __init__(self, client: RegistryClient, before: DesiredState | None = None) -> None:
        self._client = client
        self._before = before or DesiredState()
        self._desired: DesiredState | None = None
        self._fingerprint = ""
        self._listed: dict[str, ListedModel] = {}
        self._lookups = 0

    def read(self) -> DesiredState | None:
        """What is desired now, or None when it is the same as before.

        Raises:
            RegistryError: the registry cannot be reached or refused; the last reading stands.
        """
        listing = self._client.served_models()
        seen = fingerprint(listing)
        if seen == self._fingerprint and self._desired is not None:
            desired = self._look_again(self._desired)
            if desired == self._desired:
                return None
        else:
            desired = self._read_anew(listing)
            # Only now: an error above leaves the old fingerprint, and the next poll tries again.
            self._fingerprint = seen
            self._listed = {listed.name: listed for listed in listing}
        self._desired = desired
        return desired

    def _read_anew(self, listing: list[ListedModel]) -> DesiredState:
        before = self._desired.models if self._desired else {}
        models: dict[str, DesiredModel] = {}
        refused: dict[str, str] = {}
        for listed in listing:
            problem = model_name_problem(listed.name)
            if problem:
                refused[listed.name] = problem
            elif self._listed.get(listed.name) == listed and listed.name in before:
                models[listed.name] = before[listed.name]
            else:
                models[listed.name] = self._describe(listed, before.get(listed.name))
        return DesiredState(models, refused)

    def _look_again(self, desired: DesiredState) -> DesiredState:
        turn = [
            (name, number)
            for name, model in sorted(desired.models.items())
            for number in sorted(set(model.aliases.values()) & model.versions.keys())
        ]
        models = dict(desired.models)
        for _ in range(min(MAX_LOOKUPS, math.ceil(len(turn) / TURN_READINGS))):
            name, number = turn[self._lookups % len(turn)]
            self._lookups += 1
            known = models[name].versions[number]
            try:
                found = self._look_up(name, number, known)
            except NoSuchVersion:
                continue  # deleted since the search; the next one will show it
            if found != known:
                _warn(f"{name} version {number}", found.problem)
                models[name] = replace(models[name], versions={**models[name].versions, number: found})
        return DesiredState(models, desired.refused)

    def _describe(self, listed: ListedModel, before: DesiredModel | None) -> DesiredModel:
        earlier = before or self._before.models.get(listed.name)
        shares, problems = weights(listed.tags, listed.aliases, earlier.weights if earlier else None)
        versions: dict[str, DesiredVersion] = {}
        same_aliases = before is not None and before.aliases == listed.aliases
        missing = []
        roles = sorted(listed.aliases.items())
        if listed.newest and roles:
            # Fetched and tried while it has no role yet: the next alias probably moves here.
            roles.append(("", listed.newest))
        for role, number in roles:
            if number in versions:
                continue
            known = before.versions.get(number) if before is not None and same_aliases else None
            last = earlier.versions.get(number) if earlier else None
            try:
                versions[number] = known or self._look_up(listed.name, number, last)
            except NoSuchVersion:
                if role:
                    missing.append(f"alias {role} points at version {number}, which does not exist")
            else:
                if versions[number] is not known:
                    _warn(f"{listed.name} version {number}", versions[number].problem)
        problems = (*problems, *missing)
        for problem in problems:
            if before is None or problem not in before.problems:
                _warn(listed.name, problem)
        return DesiredModel(listed.name, dict(listed.aliases), shares, versions, problems)

    def _look_up(self, name: str, number: str, before: DesiredVersion | None) -> DesiredVersion:
        return with_good_cost(self._client.version(name, number), before)


def _warn(who: str, problem: str) -> None:
    if problem:
        logger.warning("%s: %s", who, problem)
