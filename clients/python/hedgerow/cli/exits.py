"""What the command's exit code says, and which errors end in which."""

from __future__ import annotations

from hedgerow.errors import (
    Cancelled,
    DeadlineExceeded,
    HedgerowError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
UNREACHABLE = 4
INTERRUPTED = 130

TEXT = (
    "Exit codes: 0 done; 1 the server, registry or model said no; 2 wrong arguments or input;"
    " 3 no such model or version; 4 nobody answered in time; 130 interrupted."
)


def code(error: HedgerowError) -> int:
    """The exit code of an error."""
    if isinstance(error, InvalidRequest):
        return USAGE
    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, Unavailable | DeadlineExceeded | Cancelled | Overloaded):
        return UNREACHABLE
    return FAILED
