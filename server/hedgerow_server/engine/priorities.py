"""Triton's priority levels: 1 is the highest, and requests that ask for none have the model's default."""

from __future__ import annotations

from dataclasses import dataclass

from hedgerow_protos.hedgerow_control_pb2 import ServingSpec

from hedgerow_server.engine.refusal import LoadRefused


@dataclass(frozen=True, slots=True)
class Priorities:
    """The levels of a model; 0: all requests are equal."""

    levels: int = 0
    default: int = 0

    def of(self, asked: int, *, is_hedge: bool = False) -> int:
        """The priority of a request that asks for this one; of a hedge, the lowest.

        As in Triton, that is the default for 0, and for one that the model does not have.
        """
        if is_hedge:
            return self.levels
        return asked if 0 < asked <= self.levels else self.default


def priorities_of(serving: ServingSpec) -> Priorities:
    """The levels that a serving spec asks for.

    Raises:
        LoadRefused: The default is none of them.
    """
    levels, default = serving.batching.priority_levels, serving.batching.default_priority_level
    if levels and not 1 <= default <= levels:
        raise LoadRefused(
            f"batching.defaultPriorityLevel is {default}; with priorityLevels {levels} it must be "
            f"from 1 to {levels}"
        )
    if default and not levels:
        raise LoadRefused(f"batching.defaultPriorityLevel is {default}, but there are no priorityLevels")
    return Priorities(levels, default)
