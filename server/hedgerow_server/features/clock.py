"""The clocks that ages are told by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks of one process, in seconds: one that never jumps, and one that servers share."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
