"""One version that the catalog holds: its state, its session and the handles on it."""

from __future__ import annotations

import asyncio

from hedgerow_server.engine.desired import Key, SnapshotRefused
from hedgerow_server.engine.lifecycle import Lifecycle, Place
from hedgerow_server.engine.loading import LoadedModel
from hedgerow_server.engine.model import Model


class Holding:
    """A version from the first wish for it to its drop.

    Holds: the session; the handle (`model`) that new requests get; and the
    handles of earlier route tables that requests may still hold (`retired`).
    """

    __slots__ = (
        "_loaded",
        "drain",
        "key",
        "life",
        "loading",
        "model",
        "published",
        "refusal",
        "retired",
        "routed",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.life = Lifecycle()
        self.loading: asyncio.Task[None] | None = None
        self.drain: asyncio.Task[None] | None = None
        #: Why it cannot be loaded.
        self.refusal: SnapshotRefused | None = None
        #: Whether it ever was in a table: only then can a request hold it.
        self.published = False
        self.model: Model | None = None
        #: Whether a route has ever led to `model`.
        self.routed = False
        self.retired: list[Model] = []
        self._loaded: LoadedModel | None = None

    def __repr__(self) -> str:
        return f"<Holding {self.key} {self.life!r}, {len(self.retired)} retired handles>"

    def warmed(self, loaded: LoadedModel, model: Model) -> None:
        """It is loaded, and `model` is the first handle on it."""
        self.life.warmed()
        self._loaded = loaded
        self.model = model

    def failed(self, refusal: SnapshotRefused) -> None:
        """It cannot be loaded."""
        self.life.failed()
        self.refusal = refusal

    def handle(self) -> Model:
        """The handle that requests get now."""
        assert self.model is not None, f"{self!r} is not warm"
        return self.model

    def next_handle(self) -> Model:
        """A new handle on the same session: what it has done and learned goes on, its requests do not."""
        assert self._loaded is not None, f"{self!r} is not warm"
        old = self.handle()
        new = Model(old.name, old.version, old.digest, self._loaded, old.serving)
        new.statistics, new.latency, new.batches = old.statistics, old.latency, old.batches
        return new

    def turn_to(self, model: Model, *, routed: bool) -> None:
        """Gives new requests this handle; the old one lives as long as a request holds it."""
        self.published = True
        if model is not self.model:
            self.retired = [retired for retired in self.retired if retired.in_flight]
            self.retired.append(self.handle())
            self.model = model
            self.routed = False
        self.routed = self.routed or routed

    def draining(self) -> list[Model]:
        """The handles whose requests must be answered before it is drained."""
        if self.routed or self.life.place is Place.OMITTED:
            return [*self.retired, self.handle()]
        return list(self.retired)

    def stop_draining(self) -> None:
        """Forgets the wait for the old handles; they stay in `retired`."""
        if self.drain is not None:
            self.drain.cancel()
            self.drain = None

    def close_retired(self) -> None:
        """Lets go of the old handles, which nobody holds any more."""
        for model in self.retired:
            model.close()
        self.retired.clear()

    def close(self) -> None:
        """Lets go of the session."""
        self.close_retired()
        if self.model is not None:
            self.model.close()
            self.model = None
        self._loaded = None
