"""The one error of a request that several targets have failed."""

from __future__ import annotations

import grpc

from hedgerow.errors import HedgerowError
from hedgerow.hedging.attempt import ELSEWHERE
from hedgerow.hedging.regions import Regions
from hedgerow.hedging.repetition import Errors


def summed_up(errors: Errors, regions: Regions, model: str, now: float) -> HedgerowError:
    """What a server said of the request itself, else the error of the first attempt.

    It gets a note for each of the others, and for each target that was not asked.
    """
    in_order = [error for _, error in sorted(errors, key=lambda one: one[0].number)]
    told = (
        error
        for error in in_order
        if error.code not in ELSEWHERE and error.code is not grpc.StatusCode.DEADLINE_EXCEEDED
    )
    chosen = next(told, in_order[0])
    for attempt, error in errors:
        if error is not chosen:
            name = regions.targets[attempt.target].name
            chosen.add_note(f"also tried {name} ({attempt.kind}): {error}")
    tried = {attempt.target for attempt, _ in errors}
    for index, target in enumerate(regions.targets):
        why = target.obstacle(now, model) or target.breaker.reason
        if index not in tried and why:
            chosen.add_note(f"not tried: {target.name}: {why}")
    return chosen
