"""The rollback verb: routes flip first, the registry hears of it later."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from hedgerow_control.rollout.loop import Rollout
from hedgerow_control.rollout.policy import ModelView, Override


class CannotRollBack(Exception):
    """There is nothing to roll back to; the message says what to do instead."""


class NoSuchModel(Exception):
    """The model is not served."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did."""

    from_version: str
    to_version: str
    snapshot_version: int
    #: From the command to the last server's word that it answers no more from `from_version`.
    seconds: float
    #: Servers that did not say so in time.
    late: tuple[str, ...]


def target(view: ModelView, asked: str) -> tuple[str, str]:
    """Chooses (from, to).

    Args:
        view: the model now.
        asked: a version, or empty for the previous champion.

    Raises:
        CannotRollBack: no such version is warm on the servers.
    """
    champion = view.routed.get("champion")
    if champion is None or "champion" not in view.wanted:
        raise CannotRollBack("no version is champion yet, so there is nothing to roll back from")
    warm = [version for version in view.history if version in view.usable and version in view.held]
    if not asked:
        if not warm:
            raise CannotRollBack(
                f"version {champion} has no predecessor that the servers hold warm; "
                "move the champion alias in the registry instead"
            )
        return champion, warm[0]
    if asked == champion:
        raise CannotRollBack(f"version {asked} is the champion already")
    if asked not in view.usable or asked not in view.held:
        held = ", ".join(view.held)
        raise CannotRollBack(
            f"the servers do not hold version {asked[:40]} (they hold {held}); "
            "move the champion alias in the registry instead"
        )
    return champion, asked


async def roll_back(rollout: Rollout, model: str, asked: str) -> RolledBack:
    """Moves the champion's route back at once and waits for the servers' word.

    Raises:
        NoSuchModel: it is not in the published snapshot.
        CannotRollBack: see `target`.
    """
    started = time.perf_counter()
    if all(published.name != model for published in rollout.hub.snapshot.models):
        raise NoSuchModel(f"no model {model[:255]!r} is served")
    moves: list[tuple[str, str]] = []

    def choose(view: ModelView) -> Override:
        moves.append(target(view, asked))
        # What is overridden is the registry's choice, which may not even be routed yet.
        return Override(bad=view.wanted["champion"], keep=moves[-1][1])

    await rollout.override(model, choose)
    ((bad, keep),) = moves
    flip = rollout.hub.snapshot.version
    changed = asyncio.Event()
    while True:
        changed.clear()
        late = tuple(
            node.name
            for node in rollout.hub.nodes.values()
            if node.connected
            and (node.warm is None or node.snapshot_version < flip or node.answers_from(model, bad))
        )
        left = rollout.ack_timeout_seconds - (time.perf_counter() - started)
        if not late or left <= 0:
            return RolledBack(bad, keep, flip, time.perf_counter() - started, late)
        await rollout.watch(changed, left)
