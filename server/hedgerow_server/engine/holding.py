"""One version that the catalog holds: its state, its sessions and the handles on them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hedgerow_server.engine.desired import Key, SnapshotRefused
from hedgerow_server.engine.gears import Gear
from hedgerow_server.engine.latency import LatencyModel
from hedgerow_server.engine.lifecycle import Lifecycle, Place
from hedgerow_server.engine.loading import LoadedModel
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.packing import PackedSession


class Holding:
    """A version from the first wish for it to its drop.

    Holds: the session it was loaded with, and the packed one while it has it;
    the handle (`model`) that new requests get; and the handles of earlier route
    tables that requests may still hold (`retired`).
    """

    __slots__ = (
        "_first_latency",
        "_packed",
        "cannot_pack",
        "drain",
        "key",
        "life",
        "loaded",
        "loading",
        "model",
        "packing",
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
        self.loaded: LoadedModel | None = None
        self._first_latency: LatencyModel | None = None
        self._packed: PackedSession | None = None
        self.packing: asyncio.Task[None] | None = None
        #: Packing failed since it got its routes.
        self.cannot_pack = False

    def __repr__(self) -> str:
        return f"<Holding {self.key} {self.life!r}, {len(self.retired)} retired handles>"

    def warmed(self, loaded: LoadedModel, model: Model) -> None:
        """It is loaded, and `model` is the first handle on it."""
        self.life.warmed()
        self.loaded = loaded
        self.model = model
        self._first_latency = model.latency

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
        assert self.loaded is not None, f"{self!r} is not warm"
        old = self.handle()
        new = Model(old.name, old.version, old.digest, self.loaded, old.serving)
        new.statistics, new.latency, new.batches = old.statistics, old.latency, old.batches
        if self._packed is not None:
            new.shift(self._packed.session, old.latency)
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

    @property
    def gear(self) -> Gear | None:
        """In which gear its next run happens; None if it is not in memory."""
        if self.loaded is None:
            return None
        return self.loaded.gear if self._packed is None else Gear.PACKED

    def weights(self) -> list[Path]:
        """The files that its sessions map."""
        return [] if self.loaded is None or self.loaded.source is None else self.loaded.source.weights()

    def shift_up(self, packed: PackedSession) -> None:
        """Runs from now on happen in the packed session, whose run times are learnt anew."""
        self._packed = packed
        latency = LatencyModel(first_guess=packed.run_seconds)
        for model in (*self.retired, self.handle()):
            model.shift(packed.session, latency)

    def shift_down(self) -> list[object]:
        """Runs from now on happen in the mapped session again, with what was learnt of it before.

        Returns:
            What it lets go, to be dropped by the caller.
        """
        assert self.loaded is not None, f"{self!r} is not warm"
        assert self._first_latency is not None, f"{self!r} is not warm"
        for model in (*self.retired, self.handle()):
            model.shift(self.loaded.session, self._first_latency)
        packed, self._packed = self._packed, None
        return [] if packed is None else [packed]

    def stop_packing(self) -> None:
        """Gives the packed session up that is on its way, and forgets that there was none."""
        self.cannot_pack = False
        if self.packing is not None:
            self.packing.cancel()
            self.packing = None

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

    def close(self) -> list[object]:
        """Lets go of the sessions.

        Returns:
            What it held, to be dropped by the caller.
        """
        self.stop_packing()
        self.close_retired()
        if self.model is not None:
            self.model.close()
            self.model = None
        held = [each for each in (self.loaded, self._packed) if each is not None]
        self.loaded = self._packed = None
        return list(held)
