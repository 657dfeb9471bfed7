"""Reads values of entities: from this process, then the cache, then the store.

    want ─▶ held here, and current? ──────────────────────────────▶ known
              │ no
              ▼
            Flight, one for each key, however many wait
              ├─ cache: one MGET for each view ── current? ───────▶ known
              └─ store: one query for each view ─ answered? ──────▶ known, and written to the cache
                                                  └ no ───────────▶ what was known before

Whoever waits has a `Wait`. It ends when all its keys are known, or when its
time is over; the flights go on without it, and what they bring is there for the
next request. Nothing here decides what may be served: `freshness.judge` does,
by the ages of what is known.

Plain functions on the event loop; the only tasks are the calls to cache and store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hedgerow_server.features.clock import Clock
from hedgerow_server.features.freshness import MAX_SKEW, Known, is_current, newer
from hedgerow_server.features.lane import Ask, Deliver, Lane
from hedgerow_server.features.local import LocalValues
from hedgerow_server.features.sources import Cache, Row, Store
from hedgerow_server.features.view import View
from hedgerow_server.features.writer import CacheWriter


class Flight:
    """One key that is being asked for."""

    __slots__ = ("at_store", "entity", "key", "known", "waiting")

    def __init__(self, key: bytes, entity: bytes) -> None:
        self.key = key
        self.entity = entity
        #: The best that was found so far.
        self.known: Known | None = None
        self.at_store = False
        self.waiting: list[Wait] = []


class Wait:
    """What one request wants to know, and has learnt.

    Attributes:
        values: By cache key; complete when `done`.
        owner: Whom it is for.
    """

    __slots__ = ("_missing", "done", "owner", "values")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.values: dict[bytes, Known | None] = {}
        self._missing: set[bytes] = set()
        self.done = False

    def __repr__(self) -> str:
        return f"<Wait {'done' if self.done else f'for {len(self._missing)} of {len(self.values)}'}>"


class FeatureReader:
    """Reads keys for many requests at once, each key at most once at a time.

    Holds: the flights, and the waits that end together.

    Args:
        clock: The process's clocks.
        local: What the process remembers; also where it is when cache and store are down.
        local_ttl: Seconds for which a remembered value spares the cache a question.
        store: None for none.
        store_lane: Makes the way to the store.
        cache: None for none.
        cache_lane: Makes the way to the cache.
        writer: Takes what the cache should know.
        ready: Gets the waits that ended, those of one moment together; never during `want`.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        local: LocalValues,
        local_ttl: float,
        store: Store | None,
        store_lane: Callable[[Ask, Deliver], Lane],
        cache: Cache | None,
        cache_lane: Callable[[Ask, Deliver], Lane],
        writer: CacheWriter | None,
        ready: Callable[[Sequence[Wait]], None],
    ) -> None:
        self._clock = clock
        self._local = local
        # Without a cache there is nobody else to ask.
        self._local_ttl = local_ttl if cache is not None else float("inf")
        self._store = store
        self._cache = cache
        self.store_lane = store_lane(self._ask_store, self._from_store)
        self.cache_lane = cache_lane(self._ask_cache, self._from_cache)
        self._writer = writer
        self._ready = ready
        self._flights: dict[bytes, Flight] = {}
        self._ended: list[Wait] = []

    def __repr__(self) -> str:
        return f"<FeatureReader {len(self._flights)} keys asked for, {len(self._local)} held>"

    # ------------------------------------------------------------ requests

    def want(self, wait: Wait, view: View, entities: Sequence[bytes]) -> None:
        """Adds entities of a view to what a request waits for; `flush` then asks for them."""
        now = self._clock.monotonic()
        bounds, prefix, values = view.bounds, view.prefix, wait.values
        local, flights = self._local.get, self._flights.get
        for entity in entities:
            key = prefix + entity
            if key in values:
                continue
            known = local(key)
            flight = flights(key)
            if (
                known is not None
                and is_current(known, bounds, now)
                and (now - known.read <= self._local_ttl or (flight is not None and flight.at_store))
            ):
                view.counts.local += 1
                values[key] = known
                if now >= known.refresh and flight is None:
                    self._refresh(view, key, entity, known)
                continue
            values[key] = None
            if flight is None:
                # What was read from the cache a moment ago, and was too old, still is.
                asked_cache = known is not None and now - known.read <= self._local_ttl
                flight = self._flights[key] = Flight(key, entity)
                flight.known = known
                if self._cache is None or asked_cache or not self.cache_lane.add(view, flight):
                    self._to_store(view, flight)
            if self._flights.get(key) is flight:
                wait._missing.add(key)  # noqa: SLF001 - one object in two parts
                flight.waiting.append(wait)
            else:
                values[key] = known

    def flush(self) -> None:
        """Begins to ask for what was wanted: one call for each view."""
        self.cache_lane.flush()
        self.store_lane.flush()
        self._hand_over()

    def seal(self, wait: Wait) -> bool:
        """Says that a request wants nothing more; True if everything is known already."""
        if not wait._missing:  # noqa: SLF001 - one object in two parts
            wait.done = True
        return wait.done

    def settle(self, waits: Sequence[Wait]) -> None:
        """Ends waits whose time is over with what is known by now."""
        for wait in waits:
            if wait.done:
                continue
            for key in wait._missing:  # noqa: SLF001 - one object in two parts
                flight = self._flights.get(key)
                wait.values[key] = newer(flight.known if flight else None, self._local.get(key))
            self._finish(wait)
        self._hand_over()

    def _refresh(self, view: View, key: bytes, entity: bytes, known: Known) -> None:
        """Asks the store ahead of time; nobody waits for it."""
        flight = self._flights[key] = Flight(key, entity)
        flight.known = known
        self._to_store(view, flight)

    # --------------------------------------------------------------- cache

    async def _ask_cache(self, view: View, flights: Sequence[Flight]) -> Sequence[bytes | None]:
        del view
        assert self._cache is not None
        return await self._cache.read([flight.key for flight in flights])

    def _from_cache(
        self, view: View, flights: Sequence[Flight], found: Sequence[bytes | None] | None
    ) -> None:
        wall, now = self._clock.wall(), self._clock.monotonic()
        counts, bounds, local = view.counts, view.bounds, self._local
        repair: list[tuple[bytes, Known]] = []
        for index, flight in enumerate(flights):
            best = local.get(flight.key)
            if found is not None:
                value = found[index]
                known = None if value is None else view.from_cache(value, wall, now)
                if known is None:
                    counts.cache_misses += 1
                else:
                    counts.cache_hits += 1
                # The cache's word counts unless it is clearly the older one: both clocks are in it.
                if known is not None and (best is None or known.confirmed >= best.confirmed - MAX_SKEW):
                    best = known
                    local.put(flight.key, known)
                elif best is not None and is_current(best, bounds, now):
                    repair.append((flight.key, best))
            flight.known = best
            if best is not None and is_current(best, bounds, now):
                self._land(flight)
                if now >= best.refresh:
                    self._refresh(view, flight.key, flight.entity, best)
            else:
                self._to_store(view, flight)
        if repair and self._writer is not None:
            self._writer.write(view, repair)
        self.store_lane.flush()
        self._hand_over()

    # --------------------------------------------------------------- store

    def _to_store(self, view: View, flight: Flight) -> None:
        flight.at_store = True
        if self._store is None or not self.store_lane.add(view, flight):
            self._land(flight)

    async def _ask_store(self, view: View, flights: Sequence[Flight]) -> tuple[float, Mapping[bytes, Row]]:
        assert self._store is not None
        asked = self._clock.monotonic()
        return asked, await self._store.read(view, [flight.entity for flight in flights])

    def _from_store(
        self, view: View, flights: Sequence[Flight], answer: tuple[float, Mapping[bytes, Row]] | None
    ) -> None:
        if answer is not None:
            asked, rows = answer
            wall, now = self._clock.wall(), self._clock.monotonic()
            fits = view.rows.fits
            learnt: list[tuple[bytes, Known]] = []
            for flight in flights:
                row = rows.get(flight.entity)
                values = row.values if row is not None and fits(row.values) else None
                known = view.from_store(values, row.event_us if row else 0, asked, wall, now)
                flight.known = known
                self._local.put(flight.key, known)
                learnt.append((flight.key, known))
            view.counts.stored += len(flights)
            if self._writer is not None:
                self._writer.write(view, learnt)
        for flight in flights:
            self._land(flight)
        self._hand_over()

    # ----------------------------------------------------------------- end

    def _land(self, flight: Flight) -> None:
        """Ends a flight and tells those who wait for it."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        for wait in flight.waiting:
            if wait.done:
                continue
            wait.values[flight.key] = flight.known
            missing = wait._missing  # noqa: SLF001 - one object in two parts
            missing.discard(flight.key)
            if not missing:
                self._finish(wait)

    def _finish(self, wait: Wait) -> None:
        wait.done = True
        self._ended.append(wait)

    def _hand_over(self) -> None:
        while self._ended:
            ended, self._ended = self._ended, []
            self._ready(ended)

    async def close(self) -> None:
        """Ends what is under way, then the connections; who waits gets what is known."""
        await self.cache_lane.close()
        await self.store_lane.close()
        if self._writer is not None:
            await self._writer.close()
        for source in (self._cache, self._store):
            if source is not None:
                await source.close()
