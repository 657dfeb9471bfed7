"""Fault injection, as Envoy's fault filter has it: some requests are delayed or fail on purpose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from hedgerow_server.call import Call
from hedgerow_server.errors import Unavailable


class FaultInjection:
    """Decides for each request, by chance, what happens to it before its model gets it.

    Owns: the timers of requests that are held up.

    Args:
        delay_percent: So many of a hundred are held up.
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
        self._held: dict[Call, asyncio.TimerHandle] = {}

    def strike(self, call: Call, go_on: Callable[[], None]) -> bool:
        """Holds a request up, or not.

        Args:
            call: That is about to join its model's queue.
            go_on: Called later, if it is held up and has not ended meanwhile.

        Returns:
            Whether it is held up.

        Raises:
            Unavailable: It fails.
        """
        if self._abort_share and self._chance() < self._abort_share:
            raise Unavailable("this request failed on purpose: fault.abort_percent is set on this server")
        if not self._delay_share or self._chance() >= self._delay_share:
            return False

        def release() -> None:
            del self._held[call]
            go_on()

        self._held[call] = asyncio.get_running_loop().call_later(self._delay, release)
        return True

    def ended(self, call: Call) -> None:
        """Lets go of a request that has ended."""
        timer = self._held.pop(call, None)
        if timer is not None:
            timer.cancel()

    def give_up(self) -> list[Call]:
        """The requests that are held up; somebody must tell them that nobody will run them."""
        return list(self._held)
