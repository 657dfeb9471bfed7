"""Requests with only what the queue in front of a model reads of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

NEVER = float("inf")


@dataclass(eq=False)
class Request:
    """What the queue reads of a request."""

    rows: int = 1
    kind: Hashable | None = "k"
    priority: int = 0
    deadline: float = NEVER
    ended: bool = False
    queued_ns: int = 0
