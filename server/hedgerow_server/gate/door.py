"""The door of the request path: whether a call may join its model's queue, and what has room in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from hedgerow_protos.hedging import HEDGE

from hedgerow_server.call import Call
from hedgerow_server.engine.runners import Engine
from hedgerow_server.errors import NEVER, Overloaded, ServingError
from hedgerow_server.gate.admission import (
    HEDGES,
    LIMIT,
    ORDINARY,
    PRIORITY,
    SHADOWS,
    Admission,
    Class,
    Refusal,
    class_of_priority,
)
from hedgerow_server.routing.table import CHAMPION, SHADOW, Choice, RouteTable


class Door:
    """Asked for a call whose model has others under way.

    Args:
        admission: decides.
        engine: knows what waits and runs.
        refuse: tells a call that it has to go again, because of one of higher priority.
    """

    def __init__(
        self, admission: Admission, engine: Engine, refuse: Callable[[Call, ServingError], None]
    ) -> None:
        self._admission = admission
        self._engine = engine
        self._refuse = refuse

    def enter(self, call: Call, choice: Choice, asked_priority: int, table: RouteTable, now: float) -> Choice:
        """Lets a call in, where it was meant to go or where there is room instead.

        Args:
            call: with its deadline.
            choice: the version that is to answer it.
            asked_priority: Triton's parameter; 0 without one.
            table: that the choice comes from.
            now: seconds, on the clock of the deadlines.

        Returns:
            What answers: the choice, or the economy variant if the champion allows that under pressure.

        Raises:
            Overloaded: there is no room.
        """
        of = _class_of(call, choice)
        left = call.deadline - now
        refusal = self._refusal(choice, of, call.priority, left)
        if refusal is None:
            return choice
        if refusal.reason in {LIMIT, PRIORITY}:
            lower = choice.model.queue.displace(call.priority)
            if lower is not None:
                self._refuse(cast("Call", lower), _overloaded(self._admission.displaced(choice.model)))
                return choice
        # Not for those who come last anyway. And who named the version wants no other.
        if of is ORDINARY and choice.variant == CHAMPION:
            economy = table.economy_under_pressure(call.model_name)
            if economy is not None and economy.model is not choice.model:
                priority = economy.model.priorities.of(asked_priority)
                if self._refusal(economy, of, priority, left) is None:
                    call.priority = priority
                    choice.model.statistics.moved_to_economy += 1
                    return economy
        raise _overloaded(refusal)

    def _refusal(self, choice: Choice, of: Class, priority: int, left: float) -> Refusal | None:
        model, admission = choice.model, self._admission
        return admission.full(model, of) or admission.late(
            model, of, self._engine.backlog(model, priority), left
        )


def _overloaded(refusal: Refusal) -> Overloaded:
    retry_after = NEVER if refusal.retry_after is None else refusal.retry_after
    return Overloaded(refusal.message, retry_after, reason=refusal.reason)


def _class_of(call: Call, choice: Choice) -> Class:
    if call.trace.attempt == HEDGE:
        return HEDGES
    if choice.variant == SHADOW:
        return SHADOWS
    return class_of_priority(call.priority, choice.model.priorities.levels)
