"""When a refused caller may try again, as trailing metadata.

- `grpc-retry-pushback-ms` (gRFC A6), which gRPC's own retries obey: milliseconds, or -1 for never. The
  native transport can send no `grpc-` keys but the next, so the same stands under
  `hedgerow-retry-pushback-ms` too;
- `grpc-status-details-bin` with a google.rpc.RetryInfo, for callers that look at errors themselves.
"""

from __future__ import annotations

import math
from functools import lru_cache

from hedgerow_protos.hedging import OWN_PUSHBACK, PUSHBACK
from hedgerow_protos.rpc_status_pb2 import Delay, Detail, RetryInfo, Status

from hedgerow_server.errors import NEVER, Draining, ServingError

#: Characters of a status message; clients refuse trailers above 8 KiB, and a
#: model may have thousands of inputs to enumerate.
_LONGEST_MESSAGE = 1000

DETAILS = "grpc-status-details-bin"
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


def ending(error: ServingError, *, is_attempt: bool) -> tuple[str, list[tuple[str, str | bytes]]]:
    """The message of a status, and the metadata that goes with it.

    Args:
        error: That ends a call.
        is_attempt: Whether the call was tried elsewhere before.
    """
    message = str(error)
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + "..."
    retry_after = error.retry_after
    if isinstance(error, Draining) and is_attempt:
        # Another region has more than this one to choose from. Any other caller may well try again:
        # its next attempt finds another server.
        retry_after = NEVER
    return message, [] if retry_after is None else trailing(error.code.value[0], message, retry_after)


def trailing(code: int, message: str, retry_after: float) -> list[tuple[str, str | bytes]]:
    """The metadata of a status.

    Args:
        code: The status.
        message: Its text.
        retry_after: Seconds until trying again makes sense; infinity: never, here.
    """
    if retry_after == math.inf:
        return [(PUSHBACK, "-1"), (OWN_PUSHBACK, "-1")]
    milliseconds = math.ceil(retry_after * 1e3)
    pushback = str(milliseconds)
    # Messages of one type, one behind the other, are their union.
    status = Status(code=code, message=message).SerializeToString() + _details(milliseconds)
    return [(PUSHBACK, pushback), (OWN_PUSHBACK, pushback), (DETAILS, status)]


@lru_cache(maxsize=1024)
def _details(milliseconds: int) -> bytes:
    """A Status that has nothing but its details."""
    delay = Delay(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)
    info = Detail(type_url=_RETRY_INFO, value=RetryInfo(retry_delay=delay).SerializeToString())
    return Status(details=[info]).SerializeToString()
