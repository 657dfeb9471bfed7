"""Everything that can go wrong with a request, and the status each becomes.

ServingError
├── InvalidTensor      INVALID_ARGUMENT    400
├── NotFound           NOT_FOUND           404
├── Unauthenticated    UNAUTHENTICATED     401
├── PermissionDenied   PERMISSION_DENIED   403
├── FailedPrecondition FAILED_PRECONDITION 412
├── Overloaded         RESOURCE_EXHAUSTED  429
│   └── TooLarge
├── DeadlineExceeded   DEADLINE_EXCEEDED   504
├── Unavailable        UNAVAILABLE         503
│   └── Draining
├── Unimplemented      UNIMPLEMENTED       501
└── Internal           INTERNAL            500

A message says what was wrong, what was expected, and what to do next; it goes
to the caller as it stands. Any other exception is a defect: its text stays in
the log, the caller gets `Internal` with an error id and fixed text.
"""

from __future__ import annotations

import logging
import math
import uuid

import grpc

log = logging.getLogger(__name__)

#: For `ServingError.retry_after`.
NEVER = math.inf


class ServingError(Exception):
    """A request cannot be answered; the message is for the caller."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    http: int = 500
    #: The same request may be answered by a backup region, or by the version's fallback rules.
    elsewhere: bool = False
    #: Seconds after which trying again here makes sense; infinity: never. None: nothing is said.
    retry_after: float | None = None


class InvalidTensor(ServingError):
    """The request's tensors or parameters do not fit the model or the protocol."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    http = 400


class NotFound(ServingError):
    """No such model, version or output."""

    code = grpc.StatusCode.NOT_FOUND
    http = 404
    elsewhere = True


class Unauthenticated(ServingError):
    """The caller did not say who it is, or not credibly."""

    code = grpc.StatusCode.UNAUTHENTICATED
    http = 401


class PermissionDenied(ServingError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    http = 403


class FailedPrecondition(ServingError):
    """The server is not set up for this."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    http = 412


class Overloaded(ServingError):
    """Too much at once, or too large; the same request may succeed later or smaller."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http = 429
    elsewhere = True

    def __init__(self, message: str, retry_after: float = 0.1, *, reason: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        #: What the refusal counts as (gate.admission.REASONS); nothing, where it is the request's own fault.
        self.reason = reason


class TooLarge(Overloaded):
    """A request beyond the server's limit for one."""

    elsewhere = False

    def __init__(self, message: str) -> None:
        super().__init__(message, NEVER)


class DeadlineExceeded(ServingError):
    """The time the caller gave is over, or would be before an answer."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http = 504


class Unavailable(ServingError):
    """Draining, or nothing here can answer; another server may."""

    code = grpc.StatusCode.UNAVAILABLE
    http = 503
    elsewhere = True


class Draining(Unavailable):
    """This server is about to end; its callers find another one sooner than it could."""

    elsewhere = False


class Unimplemented(ServingError):
    """The protocol has it, this server does not."""

    code = grpc.StatusCode.UNIMPLEMENTED
    http = 501


class Internal(ServingError):
    """A defect of the server or the model; `error_id` finds its stack trace in the process's log."""

    code = grpc.StatusCode.INTERNAL
    http = 500
    elsewhere = True

    def __init__(self, message: str, error_id: str | None = None) -> None:
        super().__init__(message)
        self.error_id = error_id


def defect(what: object, error: Exception) -> Internal:
    """What the caller hears of an unforeseen failure: an id to quote, never its text."""
    error_id = uuid.uuid4().hex[:12]
    log.error("error %s: %r failed", error_id, what, exc_info=error)
    return Internal(f"the server failed to answer; quote error {error_id} to its operators", error_id)
