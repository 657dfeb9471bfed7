"""Tells the registry of a rollback, in the background, until it agrees."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from hedgerow_control.registry.client import NoSuchVersion, RegistryClient, RegistryError
from hedgerow_control.registry.watcher import Watcher
from hedgerow_control.rollout.loop import Rollout
from hedgerow_control.rollout.policy import Override

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0


def write_alias(client: RegistryClient, *, model: str, override: Override) -> None:
    """Moves the champion alias off the bad version; somebody else's newer choice stands. Blocks."""
    if client.alias(model, "champion") == override.bad:
        client.move_alias(model, "champion", override.keep)


async def write_back(rollout: Rollout, watcher: Watcher) -> None:
    """Runs until cancelled: every override that stands is written, also one from before a restart."""
    changed = asyncio.Event()
    delay = FIRST_RETRY_SECONDS
    done: dict[str, Override] = {}
    while True:
        changed.clear()
        overrides = {name: m.override for name, m in rollout.state.models.items() if m.override is not None}
        done = {name: override for name, override in done.items() if overrides.get(name) == override}
        failed = False
        for name, override in overrides.items():
            if name in done:
                continue
            try:
                await watcher.call(partial(write_alias, model=name, override=override))
            except (RegistryError, NoSuchVersion) as error:
                failed = True
                logger.warning("%s: cannot move the champion alias to %s yet: %s", name, override.keep, error)
            else:
                done[name] = override
                logger.info("%s: champion alias moved to version %s", name, override.keep)
                watcher.hint()
        if failed:
            # Not woken by changes: they are frequent, and none of them mends the registry.
            await asyncio.sleep(delay)
            delay = min(LAST_RETRY_SECONDS, delay * 2)
        else:
            delay = FIRST_RETRY_SECONDS
            await rollout.watch(changed, 3600.0)
