"""Everything that joins features to requests in one worker, put together around a store and a cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from hedgerow_protos.breaker import Breaker, Policy, State

from hedgerow_server.features.clock import Clock
from hedgerow_server.features.counts import LaneCounts
from hedgerow_server.features.join import Joined, Joiner
from hedgerow_server.features.lane import Lane
from hedgerow_server.features.local import LocalValues
from hedgerow_server.features.reader import FLIGHT_KEYS, FeatureReader
from hedgerow_server.features.sources import Cache, Store
from hedgerow_server.features.view import Views
from hedgerow_server.features.writer import CacheWriter
from hedgerow_server.settings import Features as Settings

log = logging.getLogger(__name__)

#: Keys in one query.
STORE_KEYS = 1000


class Features:
    """Joins features; knows how its store and its cache fare.

    Args:
        settings: Section [features].
        store: None for none: values are then what the cache has, and it may take the whole budget.
        cache: None for none.
        clock: The process's clocks.
        done: Gets the requests that have their inputs, those of one moment together.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None,
        cache: Cache | None,
        done: Callable[[Sequence[Joined]], None],
        clock: Clock | None = None,
    ) -> None:
        clock = clock or Clock()
        if store is not None:
            clock = _by(store, clock)
        budget = settings.budget_ms / 1000
        cache_timeout = settings.cache_timeout_ms / 1000
        if store is None:
            # Nobody else could answer in what is left of the budget.
            cache_timeout = max(cache_timeout, budget)
        self.views = Views()
        #: Of the dependencies that there are; kept by name.
        self.breakers: dict[str, Breaker] = {}
        self.writer: CacheWriter | None = None
        # Slower than the budget, an answer is of no use to those who asked for it.
        store_policy = Policy(window=5.0, minimum=3, slow_after=budget, open_for=1.0, probes=2)
        cache_policy = Policy(window=5.0, minimum=3, open_for=0.5, probes=2)
        store_breaker = Breaker("feature_store", store_policy, clock.monotonic, _say)
        cache_breaker = Breaker("feature_cache", cache_policy, clock.monotonic, _say)
        if store is not None:
            self.breakers[store_breaker.name] = store_breaker
        if cache is not None:
            self.breakers[cache_breaker.name] = cache_breaker
            self.writer = CacheWriter(
                cache, cache_breaker, clock, timeout=5 * settings.cache_timeout_ms / 1000
            )
        reader = partial(
            FeatureReader,
            clock=clock,
            local=LocalValues(settings.local_bytes),
            local_ttl=settings.local_ttl_ms / 1000,
            store=store,
            store_lane=partial(
                Lane,
                breaker=store_breaker,
                calls=settings.store_connections,
                max_keys=STORE_KEYS,
                timeout=settings.store_timeout_ms / 1000,
                clock=clock.monotonic,
            ),
            cache=cache,
            cache_lane=partial(
                Lane,
                breaker=cache_breaker,
                # One connection is the writer's.
                calls=max(1, settings.cache_connections - 1),
                max_keys=FLIGHT_KEYS,
                timeout=cache_timeout,
                clock=clock.monotonic,
            ),
            writer=self.writer,
        )
        self.joiner = Joiner(
            lambda ready: reader(ready=ready),
            clock,
            budget=budget,
            max_entities=settings.max_entities,
            done=done,
        )

    def status(self) -> dict[str, object]:
        """How the dependencies fare, for /health/dependencies."""
        return {
            name: {
                "state": breaker.state.name.lower(),
                "since_seconds": round(breaker.seconds_in_state, 3),
                "trips": breaker.trips,
                **({"reason": breaker.reason} if breaker.reason else {}),
            }
            for name, breaker in self.breakers.items()
        }

    def counts(self) -> dict[str, LaneCounts]:
        """How calls to the dependencies went, by name."""
        reader = self.joiner.reader
        lanes = {lane.breaker.name: lane for lane in (reader.store_lane, reader.cache_lane)}
        return {name: lanes[name].counts for name in self.breakers}

    async def close(self) -> None:
        """Ends reads and connections."""
        await self.joiner.close()


def _by(store: Store, clock: Clock) -> Clock:
    """The process's clocks, the one that servers share set right by the store's."""
    return Clock(clock.monotonic, lambda: clock.wall() - store.ahead)


def _say(breaker: Breaker) -> None:
    # Once when it goes and once when it is back, not for each probe between.
    if breaker.state is State.OPEN and not breaker.reopened:
        log.warning("%s: not asked until it answers probes again: %s", breaker.name, breaker.reason)
    elif breaker.state is State.CLOSED:
        log.warning("%s: answers again", breaker.name)
