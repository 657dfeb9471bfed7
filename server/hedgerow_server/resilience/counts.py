"""What hedging and failover have done in one process, in plain numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: How an attempt at a backup ended; superseded: another answered first, or nobody waits any more.
OUTCOMES = ("won", "failed", "superseded")
#: Why an attempt was not made.
OBSTACLES = (
    "budget", "breaker", "not_ready", "pushback", "no_model", "no_time", "no_room", "no_backup", "busy",
)  # fmt: skip


@dataclass(slots=True)
class HedgeCounts:
    """Counters; kinds are `hedge` and `failover`."""

    #: Attempts that ended, by kind and outcome.
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Attempts that were due and not made, by kind and obstacle.
    suppressed: Counter[tuple[str, str]] = field(default_factory=Counter)
