"""Keys that are being asked for, and the requests that wait for them: plain objects."""

from __future__ import annotations

from collections.abc import Iterable

from hedgerow_server.features.freshness import Known


class Flight:
    """Keys of one view that are asked for together, since one request was the first to want them.

    Attributes:
        known: The keys, in the order in which they are asked for, with the best found so far of each.
        at_store: The store is asked, not the cache.
        waiting: Who wants some of the keys.
        landed: It is over.
    """

    __slots__ = ("at_store", "known", "landed", "waiting")

    def __init__(self, known: dict[bytes, Known | None], *, at_store: bool) -> None:
        self.known = known
        self.at_store = at_store
        self.waiting: list[Wait] = []
        self.landed = False

    def __repr__(self) -> str:
        source = "store" if self.at_store else "cache"
        return f"<Flight of {len(self.known)} keys to the {source}, {len(self.waiting)} wait>"


class Wait:
    """What one request wants to know, and has learnt.

    Attributes:
        values: By cache key; complete when `done`.
        missing: Keys that it waits for, by the flight that brings them.
        done: Nothing is missing any more, or the time for it is over.
    """

    __slots__ = ("done", "missing", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, Known | None] = {}
        self.missing: dict[Flight, Iterable[bytes]] = {}
        self.done = False

    def __repr__(self) -> str:
        return f"<Wait {'done' if self.done else f'for {list(self.missing)}'}, {len(self.values)} known>"

    def board(self, flight: Flight, keys: Iterable[bytes]) -> None:
        """Waits for keys that a flight brings."""
        before = self.missing.get(flight)
        if before is None:
            self.missing[flight] = keys
            flight.waiting.append(self)
        else:
            self.missing[flight] = [*before, *keys]

    def learn(self, flight: Flight) -> None:
        """Takes what a flight has brought, or what is known before it has."""
        keys, known = self.missing.pop(flight), flight.known
        self.values.update(known if keys is known else {key: known[key] for key in keys})
