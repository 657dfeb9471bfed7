"""Everything that a call can end in, and the gRPC status each stands for.

HedgerowError
├── InvalidRequest      INVALID_ARGUMENT, OUT_OF_RANGE
│   ├── ModelRefused    a model or its description that cannot be published
│   ├── ViewRefused     a feature view that breaks a rule, or differs under one version
│   └── RowsRefused     a file of feature values that cannot be loaded
├── NotFound            NOT_FOUND
├── Unauthenticated     UNAUTHENTICATED
├── PermissionDenied    PERMISSION_DENIED
├── FailedPrecondition  FAILED_PRECONDITION; also a client used after close()
├── Overloaded          RESOURCE_EXHAUSTED
├── DeadlineExceeded    DEADLINE_EXCEEDED
├── Unavailable         UNAVAILABLE
│   ├── RegistryError   the MLflow registry refused or cannot be reached
│   └── StoreError      the feature store or its cache refused or cannot be reached
├── Cancelled           CANCELLED by the server, or by closing the client
├── Unimplemented       UNIMPLEMENTED
└── ServerFault         INTERNAL, UNKNOWN and every other status
    └── InvalidReply    the reply breaks the protocol

No exception of the gRPC library leaves the client; it is the `__cause__`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import grpc
from hedgerow_protos.hedging import OWN_PUSHBACK, PUSHBACK


class HedgerowError(Exception):
    """A call that brought no answer.

    Attributes:
        code: The gRPC status.
        details: What was wrong, in the server's words where the server said it.
        request_id: The `x-request-id` of the reply, by which the server's log knows
            the request; "" when no server answered.
        retry_after: Seconds after which the server asks to be tried again, if it said so.
    """

    default_code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        details: str,
        *,
        code: grpc.StatusCode | None = None,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(details)
        self.details = details
        self.code = code or self.default_code
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        about = self.code.name + (f", request {self.request_id}" if self.request_id else "")
        return f"{self.details} ({about})"


class InvalidRequest(HedgerowError):
    """The request does not fit the model or the protocol; found here or by the server."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class ModelRefused(InvalidRequest):
    """A model, its name or its serving.yaml cannot be published; nothing was uploaded."""


class ViewRefused(InvalidRequest):
    """A feature view breaks a rule, or has another definition under the same version; nothing was applied."""


class RowsRefused(InvalidRequest):
    """A file of feature values cannot be loaded; nothing of it was.

    Attributes:
        bad: The first bad rows: line (CSV) or row (Parquet) in the file, from 1, and reason.
        bad_count: How many bad rows there are.
    """

    def __init__(self, details: str, *, bad: Sequence[tuple[int, str]] = (), bad_count: int = 0) -> None:
        super().__init__(details)
        self.bad = tuple(bad)
        self.bad_count = bad_count


class NotFound(HedgerowError):
    """No such model, version, output or feature view."""

    default_code = grpc.StatusCode.NOT_FOUND


class Unauthenticated(HedgerowError):
    """The server does not know who calls."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(HedgerowError):
    """The caller may not do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class FailedPrecondition(HedgerowError):
    """The server, or a closed client, is not in a state to do this."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(HedgerowError):
    """Too much at once, or a message over the size limit."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(HedgerowError):
    """No answer within the timeout."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(HedgerowError):
    """Nobody answers at the address, or the server is draining."""

    default_code = grpc.StatusCode.UNAVAILABLE


class RegistryError(Unavailable):
    """The MLflow registry cannot be reached or refused a call."""


class StoreError(Unavailable):
    """The feature store or its cache cannot be reached or refused a call."""


class Cancelled(HedgerowError):
    """The server gave the call up, or the client was closed while it ran."""

    default_code = grpc.StatusCode.CANCELLED


class Unimplemented(HedgerowError):
    """The server does not have this method."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class ServerFault(HedgerowError):
    """A defect of the server or of the model."""

    default_code = grpc.StatusCode.INTERNAL


class InvalidReply(ServerFault):
    """The server answered, but its tensors disagree with their own description."""


_BY_CODE: dict[grpc.StatusCode, type[HedgerowError]] = {
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    **{
        kind.default_code: kind
        for kind in (
            InvalidRequest,
            NotFound,
            Unauthenticated,
            PermissionDenied,
            FailedPrecondition,
            Overloaded,
            DeadlineExceeded,
            Unavailable,
            Cancelled,
            Unimplemented,
            ServerFault,
        )
    },
}


def from_status(
    code: grpc.StatusCode, details: str, trailing: Mapping[str, str | bytes], target: str
) -> HedgerowError:
    """The error for a gRPC status; `target` is named where no server may have spoken."""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        details = f"{target}: {details}"
    pushback = trailing.get(PUSHBACK, trailing.get(OWN_PUSHBACK))
    retry_after = None
    if isinstance(pushback, str) and pushback.isdecimal():
        retry_after = int(pushback) / 1000
    return _BY_CODE.get(code, ServerFault)(
        details or code.name,
        code=code,
        request_id=str(trailing.get("x-request-id", "")),
        retry_after=retry_after,
    )


def from_rpc(error: grpc.RpcError, target: str) -> HedgerowError:
    """The error for what grpc or grpc.aio raised."""
    # Both libraries raise objects with these methods; RpcError itself declares none.
    call = cast("grpc.Call", error)
    trailing: dict[str, str | bytes] = dict(call.trailing_metadata() or ())
    return from_status(call.code(), call.details() or "", trailing, target)
