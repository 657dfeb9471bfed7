"""Remembers what could not be loaded, so that the same failure is not bought twice at once."""

from __future__ import annotations

import math
from collections.abc import Callable

from hedgerow_server.engine.desired import Key, SnapshotRefused

#: A model that ONNX Runtime refused, or whose warm-up hung, will do so again:
#: the same bytes are not tried again for a minute.
FINAL_SECONDS = 60.0
#: A file that could not be fetched may be there in a moment.
TRANSIENT_SECONDS = 1.0
#: As many are remembered; the oldest goes first.
REMEMBERED = 256


class Refusals:
    """Versions that failed lately. A plain object; time comes from `clock` (seconds)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Texts, not exceptions: a traceback would keep what its frames hold, sessions too.
        self._until: dict[Key, tuple[float, str, bool]] = {}

    def remember(self, key: Key, reason: str, *, transient: bool) -> SnapshotRefused:
        """Notes a failure and returns it as the refusal of the snapshot."""
        self._until.pop(key, None)
        while len(self._until) >= REMEMBERED:
            del self._until[next(iter(self._until))]
        pause = TRANSIENT_SECONDS if transient else FINAL_SECONDS
        self._until[key] = (self._clock() + pause, reason, transient)
        return SnapshotRefused(reason, key.model, key.version, transient=transient)

    def check(self, key: Key) -> None:
        """Raises SnapshotRefused if the version failed so lately that it is not tried again yet."""
        if key not in self._until:
            return
        until, reason, transient = self._until[key]
        left = until - self._clock()
        if left <= 0:
            del self._until[key]
            return
        raise SnapshotRefused(
            f"{reason} (not tried again for {math.ceil(left)} s)",
            key.model,
            key.version,
            transient=transient,
        )
