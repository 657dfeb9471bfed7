"""How long a request may take."""

from __future__ import annotations

from dataclasses import dataclass

from hedgerow_server.errors import DeadlineExceeded, InvalidTensor

#: Of a request's time the last part is for an answer that needs no run, and for the way back: a share, within
#: seconds. Timers have milliseconds; of less than two of them half is left for the run.
_KEPT_SHARE, _KEPT_LEAST, _KEPT_MOST = 0.1, 0.002, 0.25


def kept(seconds: float) -> float:
    """How much of the time that a request has is its last part, in seconds."""
    return max(min(_KEPT_SHARE * seconds, _KEPT_MOST), min(_KEPT_LEAST, seconds / 2))


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The time a request gets, in seconds: when it asks for none, and at most."""

    default: float = 10.0
    maximum: float = 60.0

    def end(self, now: float, remaining: float | None, timeout_us: int) -> float:
        """When a request's time is over.

        Args:
            now: seconds on a monotonic clock.
            remaining: what the transport says is left; None without a deadline.
                grpcio says 1e7 and more for "none".
            timeout_us: Triton's `timeout` parameter, microseconds; 0 without one.

        Returns:
            Seconds on the same clock.

        Raises:
            DeadlineExceeded: it is over already.
            InvalidTensor: the timeout parameter is negative.
        """
        if remaining is None and not timeout_us:
            return now + self.default
        if timeout_us < 0:
            raise InvalidTensor(
                f"parameter 'timeout' is {timeout_us} microseconds; send a positive number, or none"
            )
        seconds = None if remaining is None or remaining > 1e6 else remaining
        if timeout_us:
            asked = timeout_us * 1e-6
            seconds = asked if seconds is None else min(seconds, asked)
        if seconds is None:
            seconds = self.default
        if seconds <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived; nothing was run")
        return now + min(seconds, self.maximum)
