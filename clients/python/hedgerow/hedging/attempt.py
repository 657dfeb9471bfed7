"""One attempt of a request."""

from __future__ import annotations

import grpc
from hedgerow_protos.breaker import Token

from hedgerow.infer_request import Headers

#: What an attempt is, beside a hedge; and what the result is called that it brought.
PRIMARY, FAILOVER = "primary", "failover"

#: Statuses after which another target may still answer. Inference changes nothing, so all that may be the
#: server's own trouble is among them, and NOT_FOUND, since one region may be behind the other. What the
#: request itself is to blame for is not, nor DEADLINE_EXCEEDED: all attempts have the same deadline.
ELSEWHERE = frozenset((
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
))  # fmt: skip


class Attempt:
    """One attempt: where it goes, what it is, and what it says of itself.

    Attributes:
        number: In its request, from 0.
        target: Index of the target.
        kind: `primary`, `hedge` or `failover`.
        headers: Metadata of this attempt alone.
        token: Leave of the target's breaker; None: it goes there for want of anybody else.
        started: When.
        late_at: When it is slow.
        is_paid: It took a token of the budget.
        is_probe: It tries whether the target is well again, and goes on when another attempt has won.
    """

    __slots__ = ("headers", "is_paid", "is_probe", "kind", "late_at", "number", "started", "target", "token")

    def __init__(
        self,
        number: int,
        target: int,
        kind: str,
        headers: Headers,
        token: Token | None,
        started: float,
        late_at: float,
    ) -> None:
        self.number = number
        self.target = target
        self.kind = kind
        self.headers = headers
        self.token = token
        self.started = started
        self.late_at = late_at
        self.is_paid = self.is_probe = False

    def __repr__(self) -> str:
        return f"<Attempt {self.number}: {self.kind} at target {self.target}>"
