"""Reads values of entities: from this process, then the cache, then the store.

    want ─▶ held here, and current? ──────────────────────────────▶ known
              │ no
              ▼
            Flight: keys that nobody was asking for; however many wait, each key is in one
              ├─ cache: one MGET for each view ── current? ───────▶ known
              └─ store: one query for each view ─ answered? ──────▶ known, and written to the cache
                                                  └ no ───────────▶ what was known before

A flight comes back from the cache as a whole. Keys of which the cache had no current
value go on to the store as a flight of their own, and with them those who want them.

Whoever waits has a `Wait`. It ends when all its keys are known, or when its
time is over; the flights go on without it, and what they bring is there for the
next request. Nothing here decides what may be served: `freshness.judge` does,
by the ages of what is known.

Plain functions on the event loop; the only tasks are the calls to cache and store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hedgerow_server.features.clock import Clock
from hedgerow_server.features.flight import Flight, Wait
from hedgerow_server.features.freshness import MAX_SKEW, Known
from hedgerow_server.features.lane import Ask, Deliver, Lane
from hedgerow_server.features.local import LocalValues
from hedgerow_server.features.sources import Cache, Store
from hedgerow_server.features.view import View
from hedgerow_server.features.writer import CacheWriter

#: Keys of one flight at most, and so of one question to the cache. More is slower for all than two.
FLIGHT_KEYS = 500


class FeatureReader:
    """Reads keys for many requests at once, each key at most once at a time.

    Holds: the flight of each key that is asked for, and the waits that end together.

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

    def want(self, wait: Wait, view: View, keys: Sequence[bytes]) -> None:
        """Adds keys of a view to what a request waits for; `flush` then asks for them."""
        now = self._clock.monotonic()
        ttl, local_ttl, values = view.bounds.ttl, self._local_ttl, wait.values
        local, flights = self._local.get, self._flights.get
        cache: dict[bytes, Known | None] = {}
        store: dict[bytes, Known | None] = {}
        ahead: dict[bytes, Known | None] = {}
        under_way: dict[Flight, list[bytes]] = {}
        for key in keys:
            if key in values:
                continue
            known, flight = local(key), flights(key)
            held = known is not None and now - known.read <= local_ttl
            if known and now - known.confirmed <= ttl and (held or (flight and flight.at_store)):
                view.counts.local += 1
                values[key] = known
                if flight is None and now >= known.refresh:
                    ahead[key] = known
            elif flight is not None:
                under_way.setdefault(flight, []).append(key)
            elif held:
                # What was read from the cache a moment ago, and was too old, still is.
                store[key] = known
            else:
                cache[key] = known
        for flight, wanted in under_way.items():
            wait.board(flight, wanted)
        if cache:
            self._ask(view, cache, wait, at_store=self._cache is None)
        if store:
            self._ask(view, store, wait, at_store=True)
        if ahead:
            self._ask(view, ahead, None, at_store=True)

    def remembered(self, keys: Sequence[bytes]) -> dict[bytes, Known | None]:
        """What this process knows of keys, of whatever age; nobody is asked."""
        return {key: self._local.get(key) for key in keys}

    def seal(self, wait: Wait) -> bool:
        """Says that a request wants nothing more; True if everything is known already."""
        wait.done = not wait.missing
        return wait.done

    def flush(self) -> None:
        """Begins to ask for what was wanted: one call for each view."""
        self.cache_lane.flush()
        self.store_lane.flush()
        self._hand_over()

    def settle(self, waits: Sequence[Wait]) -> None:
        """Ends waits whose time is over with what is known by now."""
        for wait in waits:
            if wait.done:
                continue
            for flight in tuple(wait.missing):
                wait.learn(flight)
            self._finish(wait)
        self._hand_over()

    # ------------------------------------------------------------- flights

    def _ask(
        self, view: View, known: dict[bytes, Known | None], wait: Wait | None, *, at_store: bool
    ) -> None:
        """Asks for keys that nobody is asking for; without a `wait`, ahead of time."""
        for part in (known,) if len(known) <= FLIGHT_KEYS else _parts(known):
            flight = Flight(part, at_store=at_store)
            self._take_off(view, flight)
            if wait is not None and flight.landed:
                wait.values.update(part)
            elif wait is not None:
                wait.board(flight, part)

    def _take_off(self, view: View, flight: Flight) -> None:
        """Puts a flight in line; where nobody can be asked, it lands with what is known."""
        self._flights.update(dict.fromkeys(flight.known, flight))
        if flight.at_store or not self.cache_lane.add(view, flight):
            flight.at_store = True
            if self._store is None or not self.store_lane.add(view, flight):
                self._land(flight)

    def _land(self, flight: Flight) -> None:
        """Ends a flight and tells those who wait for it."""
        flight.landed = True
        for key in flight.known:
            del self._flights[key]
        for wait in flight.waiting:
            if not wait.done:
                wait.learn(flight)
                if not wait.missing:
                    self._finish(wait)
        # The frames of a call that failed keep its flights until the garbage collector finds them.
        flight.waiting.clear()

    def _finish(self, wait: Wait) -> None:
        wait.done = True
        self._ended.append(wait)

    def _hand_over(self) -> None:
        while self._ended:
            ended, self._ended = self._ended, []
            self._ready(ended)

    # --------------------------------------------------------------- cache

    async def _ask_cache(self, view: View, flights: Sequence[Flight]) -> Mapping[bytes, Known | None]:
        assert self._cache is not None
        keys = _keys(flights)
        values = await self._cache.read(keys)
        known = view.from_cache(values, self._clock.wall(), self._clock.monotonic())
        return dict(zip(keys, known, strict=True))

    def _from_cache(
        self, view: View, flights: Sequence[Flight], answer: Mapping[bytes, Known | None] | None
    ) -> None:
        now, ttl, local = self._clock.monotonic(), view.bounds.ttl, self._local
        learnt = answer or {}
        taken: dict[bytes, Known] = {}
        repair: list[tuple[bytes, Known]] = []
        for flight in flights:
            known = flight.known
            late: dict[bytes, Known | None] = {}
            ahead: dict[bytes, Known | None] = {}
            for key, before in known.items():
                best, new = local.get(key) or before, learnt.get(key)
                # The cache's word counts unless it is clearly the older one: both clocks are in it.
                if new is not None and (best is None or new.confirmed >= best.confirmed - MAX_SKEW):
                    best = taken[key] = new
                known[key] = best
                if best is None or now - best.confirmed > ttl:
                    late[key] = best
                    continue
                if best is not new and answer is not None:
                    repair.append((key, best))
                if now >= best.refresh:
                    ahead[key] = best
            if late:
                self._go_on(view, flight, late)
            else:
                self._land(flight)
            if ahead:
                self._ask(view, ahead, None, at_store=True)
        local.put(taken)
        if repair and self._writer is not None:
            self._writer.write(view, repair)
        self.store_lane.flush()
        self._hand_over()

    def _go_on(self, view: View, flight: Flight, late: dict[bytes, Known | None]) -> None:
        """Lands a flight from the cache; its late keys go on to the store, and with them who wants them."""
        onward = Flight(late, at_store=True)
        for wait in flight.waiting:
            wanted = () if wait.done else [key for key in wait.missing[flight] if key in late]
            if wanted:
                wait.board(onward, wanted)
        self._land(flight)
        self._take_off(view, onward)

    # --------------------------------------------------------------- store

    async def _ask_store(self, view: View, flights: Sequence[Flight]) -> Mapping[bytes, Known]:
        assert self._store is not None
        keys = _keys(flights)
        entities = [key[len(view.prefix) :] for key in keys]
        asked = self._clock.monotonic()
        rows = await self._store.read(view, entities)
        now = self._clock.monotonic()
        known = view.from_store([rows.get(entity) for entity in entities], asked, self._clock.wall(), now)
        return dict(zip(keys, known, strict=True))

    def _from_store(
        self, view: View, flights: Sequence[Flight], answer: Mapping[bytes, Known] | None
    ) -> None:
        if answer is not None:
            self._local.put(answer)
            for flight in flights:
                flight.known.update({key: answer[key] for key in flight.known})
            if self._writer is not None:
                self._writer.write(view, list(answer.items()))
        for flight in flights:
            self._land(flight)
        self._hand_over()

    # ----------------------------------------------------------------- end

    async def close(self) -> None:
        """Ends what is under way, then the connections; who waits gets what is known."""
        await self.cache_lane.close()
        await self.store_lane.close()
        if self._writer is not None:
            await self._writer.close()
        for source in (self._cache, self._store):
            if source is not None:
                await source.close()


def _parts(known: dict[bytes, Known | None]) -> list[dict[bytes, Known | None]]:
    items = list(known.items())
    return [dict(items[first : first + FLIGHT_KEYS]) for first in range(0, len(items), FLIGHT_KEYS)]


def _keys(flights: Sequence[Flight]) -> list[bytes]:
    return [key for flight in flights for key in flight.known]
