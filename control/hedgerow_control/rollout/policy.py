"""What the next snapshot should hold: a pure, idempotent function.

Make before break, in three kinds of snapshot that are never mixed up:

1. *add*: a new version appears without a route; servers load and warm it;
2. *move*: when every server that serves has acknowledged it, routes lead to it;
3. *retire*: what has no role any more is left out.

A move brings no version along that is not warm: a server applies a snapshot
whole, so a load of thirty seconds in it would hold up a rollback as long. What
was being added is left out and added again after the move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hedgerow_control.registry.desired import ROLES

#: Previous champions remembered for each model.
HISTORY = 8


@dataclass(frozen=True, slots=True)
class Override:
    """A rollback that the registry does not know of yet: it still says `bad`, routes lead to `keep`."""

    bad: str
    keep: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """All that the policy needs to know of one model."""

    #: Role to version, from the registry; without a champion the model is retired.
    wanted: Mapping[str, str] = field(default_factory=dict)
    #: Percent of every role but champion.
    weights: Mapping[str, int] = field(default_factory=dict)
    #: Versions whose files are verified and that no server has refused.
    usable: frozenset[str] = frozenset()
    #: Of these, the ones that every server that serves holds warm.
    ready: frozenset[str] = frozenset()
    #: Role to version, and all versions, in the snapshot that is published now.
    routed: Mapping[str, str] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    #: Previous champions, the latest first.
    history: tuple[str, ...] = ()
    override: Override | None = None
    #: Nothing has ever been published. Servers may still serve what an earlier control
    #: plane told them, so the first snapshot has its routes at once.
    cold: bool = False


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What the snapshot should say of one model, and what to remember of it."""

    versions: tuple[str, ...]
    #: (role, version, weight)
    routes: tuple[tuple[str, str, int], ...]
    history: tuple[str, ...]
    override: Override | None


def plan(views: Mapping[str, ModelView], *, retain: int, moving: bool) -> dict[str, ModelPlan]:
    """Decides for all models at once.

    Args:
        views: by model name; those with nothing published and nothing wanted may be left out.
        retain: previous champions to hold warm for each model.
        moving: the last published snapshot moved routes and is not acknowledged everywhere yet.

    Returns:
        The models of the next snapshot. Equal to what is published when there is nothing to do.
    """
    plans = {
        name: planned for name, view in views.items() if (planned := _plan_model(view, retain)) is not None
    }
    moves = any(
        {role: version for role, version, _ in planned.routes} != dict(views[name].routed)
        for name, planned in plans.items()
    )
    if moves or moving:
        plans = {name: _only_warm(views[name], planned) for name, planned in plans.items()}
    # A model that would hold nothing at all need not be mentioned.
    return {name: planned for name, planned in sorted(plans.items()) if planned.versions}


def _plan_model(view: ModelView, retain: int) -> ModelPlan | None:
    if "champion" not in view.wanted:
        return None
    override = _current_override(view)
    routed: dict[str, str] = {}
    champion = _champion(view, override)
    if champion is not None:
        routed["champion"] = champion
        for role in ROLES[1:]:
            version = _choose(view, role)
            if version is not None and version != champion:
                routed[role] = version
    history = _history(view, champion, override)
    wanted = [override.keep if override else view.wanted["champion"]]
    wanted += [view.wanted[role] for role in ROLES[1:] if role in view.wanted]
    retained = [version for version in history if version in view.usable][:retain]
    versions = {version for version in (*routed.values(), *wanted, *retained) if version in view.usable}
    if champion is not None:
        versions.add(champion)
    return ModelPlan(_sorted(versions), _routes(routed, view.weights), history, override)


def _current_override(view: ModelView) -> Override | None:
    """A rollback stands until the registry's champion is anything but the bad version."""
    return view.override if view.override and view.wanted["champion"] == view.override.bad else None


def _champion(view: ModelView, override: Override | None) -> str | None:
    # A rollback does not wait: servers hold the version warm, or load it while others answer.
    if override is not None and override.keep in view.usable:
        return override.keep
    chosen = _choose(view, "champion")
    if chosen is not None:
        return chosen
    # The published champion was refused by a server. Back to the latest that was not,
    # a warm one first; with none left the refused one stays where it is.
    current = view.routed.get("champion")
    if current is None:
        return None
    before = [version for version in view.history if version in view.usable]
    return next((version for version in before if version in view.ready), next(iter(before), current))


def _choose(view: ModelView, role: str) -> str | None:
    """The wanted version once it is warm everywhere, until then the one that has the role now."""
    wanted = view.wanted.get(role)
    if wanted is None:
        return None
    if wanted in view.usable and (wanted in view.ready or view.cold):
        return wanted
    current = view.routed.get(role)
    return current if current in view.usable else None


def _history(view: ModelView, champion: str | None, override: Override | None) -> tuple[str, ...]:
    current = view.routed.get("champion")
    if champion is None or current is None or champion == current:
        return view.history
    rest = [version for version in view.history if version not in {champion, current}]
    # A version that was rolled back from, or refused, is nothing to go back to.
    if override is not None and champion == override.keep:
        rest = [version for version in rest if version != override.bad]
    elif current in view.usable:
        rest = [current, *rest]
    return tuple(rest[:HISTORY])


def _routes(routed: Mapping[str, str], weights: Mapping[str, int]) -> tuple[tuple[str, str, int], ...]:
    if not routed:
        return ()
    shares = {role: weights.get(role, 0) for role in routed if role not in {"champion", "shadow"}}
    shares["champion"] = max(0, 100 - sum(shares.values()))
    return tuple((role, routed[role], shares.get(role, 0)) for role in ROLES if role in routed)


def _only_warm(view: ModelView, planned: ModelPlan) -> ModelPlan:
    """The same routes, without versions that a server would have to load first."""
    free = {version for _, version, _ in planned.routes} | set(view.routed.values())
    free |= (view.ready | set(view.history)) & set(view.held)
    versions = _sorted(version for version in planned.versions if version in free)
    return ModelPlan(versions, planned.routes, planned.history, planned.override)


def _sorted(versions: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(versions), key=lambda version: (len(version), version)))
