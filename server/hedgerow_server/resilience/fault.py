"""Fault injection, as Envoy's fault filter has it: some requests are delayed or fail on purpose."""

from __future__ import annotations

import random
from collections.abc import Callable

from hedgerow_server.errors import Unavailable


class FaultInjection:
    """Decides for each request, by chance, what happens to it before its model gets it.

    Args:
        delay_percent: So many of a hundred are delayed.
        delay: Seconds.
        abort_percent: So many of a hundred fail.
        chance: Numbers in [0, 1).
    """

    def __init__(
        self,
        *,
        delay_percent: float = 0.0,
        delay: float = 0.0,
        abort_percent: float = 0.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._delay_share = delay_percent / 100
        self._delay = delay
        self._abort_share = abort_percent / 100
        self._chance = chance
        #: Requests that were delayed, and that failed.
        self.delayed = self.aborted = 0

    def strike(self) -> float:
        """Seconds that a request waits; mostly 0.

        Raises:
            Unavailable: It fails.
        """
        if self._abort_share and self._chance() < self._abort_share:
            self.aborted += 1
            raise Unavailable("this request failed on purpose: fault.abort_percent is set on this server")
        if self._delay_share and self._chance() < self._delay_share:
            self.delayed += 1
            return self._delay
        return 0.0
