"""The versions in memory: brings them to what a snapshot asks for, whole or not at all.

Make before break: everything the snapshot lists is loaded and warm before the
new route table is published, in one assignment; only then is what it omits
drained and dropped. All state changes happen on the event loop, between two
awaits; threads only load.

When is a version drained? The control plane waits for the last reply that an
old route caused. A version that stays in memory without a route still answers
those who ask for it by number, so its count of requests in flight may never
reach 0. Therefore a version that loses its routes gets a new handle (a new
`Model` on the same session and statistics) for the new table: requests that
chose before the swap hold the old handle, later ones the new, and the old
handle's count falls to 0 exactly when the last old request is answered.

In which gear is a version? One that takes traffic is packed as soon as that can
be had; one that is only kept is mapped. So it gives its packed weights back
when its last request by route is answered, and takes traffic at once, from the
mapped session, when it gets routes again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DRAINING,
    VERSION_STATE_DROPPED,
    VERSION_STATE_FAILED,
    VERSION_STATE_LOADING,
    VERSION_STATE_READY,
    VERSION_STATE_SERVING,
    ModelVersion,
    Snapshot,
    VersionState,
)

from hedgerow_server.engine import desired as desires
from hedgerow_server.engine.desired import Desired, Key, SnapshotRefused
from hedgerow_server.engine.gears import Gear
from hedgerow_server.engine.holding import Holding
from hedgerow_server.engine.incoming import in_thread
from hedgerow_server.engine.lifecycle import Place
from hedgerow_server.engine.loader import Loader
from hedgerow_server.engine.loading import LoadedModel
from hedgerow_server.engine.memory import let_go
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.refusal import LoadRefused
from hedgerow_server.routing.table import RouteTable

log = logging.getLogger(__name__)

#: (model, version, state, reason, gear; None if it is not in memory)
Report = Callable[[str, str, VersionState, str, Gear | None], None]
#: Runs blocking work beside the loop.
Aside = Callable[[Callable[[], None]], Awaitable[Any]]


class Superseded(Exception):
    """The snapshot was not applied because a newer one came while it was loading."""


class Catalog:
    """What is in memory, and the way there.

    Holds: the versions in the table, those being loaded for the snapshot that
    is being applied, those that drain, and the tasks of all of them.

    Args:
        loader: brings versions into memory.
        publish: makes a route table the one in force; called on the loop, must not fail.
        report: is told each change of a version's state.
        drain_seconds: after so long a drain that is not over is told in the log
            and in the report. It goes on: what a request holds is never dropped.
        aside: where sessions are dropped, which blocks.
    """

    def __init__(
        self,
        *,
        loader: Loader,
        publish: Callable[[RouteTable], None],
        report: Report,
        drain_seconds: float = 75.0,
        aside: Aside = in_thread,
    ) -> None:
        self._loader = loader
        self._publish = publish
        self._report = report
        self._drain_seconds = drain_seconds
        self._aside = aside
        #: How often a version's weights could not be packed.
        self.packing_failures = 0
        self._table = RouteTable.build(0, {}, {})
        # A holding is in exactly one of these three.
        self._live: dict[Key, Holding] = {}
        self._staged: dict[Key, Holding] = {}
        self._leaving: dict[Key, Holding] = {}
        # Set when a newer snapshot takes over from the one being applied.
        self._overtaken: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return (
            f"<Catalog snapshot {self.snapshot_version}: {len(self._live)} live, "
            f"{len(self._staged)} staged, {len(self._leaving)} leaving>"
        )

    @property
    def snapshot_version(self) -> int:
        """The version of the snapshot in force; 0 if none was applied."""
        return self._table.version

    @property
    def table(self) -> RouteTable:
        """The route table in force."""
        return self._table

    def digests(self) -> set[str]:
        """The digests whose files are in use."""
        return {holding.key.digest for holding in self._holdings()}

    def models(self) -> list[Model]:
        """Every version in memory that may have answered something; a version's latest handle."""
        return [
            holding.model for holding in self._holdings() if holding.model is not None and holding.published
        ]

    def gears(self) -> list[tuple[Model, Gear]]:
        """Every version in memory, with the gear it is in."""
        return [
            (holding.model, holding.gear)
            for holding in self._holdings()
            if holding.model is not None and holding.gear is not None
        ]

    async def apply(self, snapshot: Snapshot) -> None:
        """Brings memory and routes to what a snapshot asks for.

        Returns as soon as the new routes are in force; what the snapshot omits
        drains in the background. A call while another is loading takes over
        from it, with whatever is already loaded of what both ask for. May be
        cancelled: then nothing has changed.

        Raises:
            SnapshotRefused: it is malformed, or a version could not be loaded.
                Nothing of it is in force.
            Superseded: a newer call took over. Nothing of this one is in force.
        """
        wanted = desires.read(snapshot)
        for key in wanted.versions:
            if key not in self._live:
                self._loader.check(key)
        if self._overtaken is not None and not self._overtaken.done():
            self._overtaken.set_result(None)
        overtaken = self._overtaken = asyncio.get_running_loop().create_future()
        try:
            holdings = self._stage(wanted)
            await self._warm(holdings, overtaken)
            self._commit(wanted, holdings)
        finally:
            # The call that took over has also taken over what was staged.
            if self._overtaken is overtaken:
                self._overtaken = None
                self._unstage(list(self._staged.values()))

    def _stage(self, wanted: Desired) -> dict[Key, Holding]:
        """Finds or begins everything the snapshot lists."""
        self._unstage([holding for key, holding in self._staged.items() if key not in wanted.versions])
        holdings: dict[Key, Holding] = {}
        for key, version in wanted.versions.items():
            holding = self._live.get(key) or self._staged.get(key)
            if holding is None and (leaving := self._leaving.pop(key, None)):
                # On its way out, but still warm: it stays, at least until this
                # snapshot is in force or refused.
                holding = self._staged[key] = leaving
                self._place(holding, Place.KEPT)
            if holding is None:
                holding = self._staged[key] = Holding(key)
                holding.loading = self._spawn(self._load(holding, version), f"load {key}")
                self._tell(holding)
            holdings[key] = holding
        return holdings

    async def _load(self, holding: Holding, version: ModelVersion) -> None:
        key = holding.key
        try:
            loaded = await self._loader.bring(key, version)
            model = Model(key.model, key.version, key.digest, loaded, version.serving)
        except SnapshotRefused as refusal:
            holding.failed(refusal)
            self._tell(holding, refusal.reason)
        else:
            holding.warmed(loaded, model)
            self._tell(holding)

    async def _warm(self, holdings: dict[Key, Holding], overtaken: asyncio.Future[None]) -> None:
        """Waits until all are warm; the first that fails ends it."""
        loads = {holding.loading for holding in holdings.values() if holding.loading is not None}
        while True:
            if overtaken.done():
                raise Superseded
            for holding in holdings.values():
                if holding.refusal is not None:
                    raise holding.refusal
            loads = {load for load in loads if not load.done()}
            if not loads:
                return
            await asyncio.wait([*loads, overtaken], return_when=asyncio.FIRST_COMPLETED)

    def _commit(self, wanted: Desired, holdings: dict[Key, Holding]) -> None:
        """Puts the snapshot in force. Everything that may fail comes before the first change."""
        handles: dict[Key, Model] = {}
        models: dict[str, dict[str, Model]] = {name: {} for name in wanted.routes}
        for key, holding in holdings.items():
            loses_routes = holding.routed and key not in wanted.routed
            handles[key] = holding.next_handle() if loses_routes else holding.handle()
            models[key.model][key.version] = handles[key]
        table = RouteTable.build(wanted.snapshot_version, models, wanted.routes, wanted.costs)

        self._publish(table)
        self._table = table
        omitted = [holding for key, holding in self._live.items() if key not in holdings]
        self._live = dict(holdings)
        self._staged.clear()
        for key, holding in holdings.items():
            holding.turn_to(handles[key], routed=key in wanted.routed)
            self._place(holding, Place.ROUTED if key in wanted.routed else Place.KEPT)
        for holding in omitted:
            self._leaving[holding.key] = holding
            self._place(holding, Place.OMITTED)

    def _place(self, holding: Holding, place: Place) -> None:
        life = holding.life
        before = life.state
        life.placed(place)
        self._choose_gear(holding)
        if life.state != before:
            self._tell(holding)
        # What the drain waits for depends on the place: begin it anew.
        holding.stop_draining()
        if life.state == VERSION_STATE_DRAINING:
            if any(model.in_flight for model in holding.draining()):
                holding.drain = self._spawn(self._drain(holding), f"drain {holding.key}")
            else:
                self._drained(holding)

    async def _drain(self, holding: Holding) -> None:
        time = asyncio.get_running_loop().time
        since = time()
        models = holding.draining()
        # None of them can be chosen any more: one that is empty stays empty.
        for model in models:
            while model.in_flight:
                try:
                    async with asyncio.timeout(self._drain_seconds):
                        await model.drained()
                except TimeoutError:
                    held = sum(model.in_flight for model in models)
                    reason = f"{held} requests still hold it after {time() - since:.0f} s"
                    log.warning("%s drains slowly: %s", holding.key, reason)
                    self._tell(holding, reason)
        self._drained(holding)

    def _drained(self, holding: Holding) -> None:
        holding.drain = None
        holding.life.drained()
        holding.close_retired()
        self._choose_gear(holding)
        self._tell(holding)  # while `models` still lists it: its last statistics can be read
        if holding.life.state == VERSION_STATE_DROPPED:
            del self._leaving[holding.key]
            self._drop(holding)

    def _choose_gear(self, holding: Holding) -> None:
        """Packed where it takes traffic, mapped where it is only kept; while it drains, as it was."""
        loaded, state = holding.loaded, holding.life.state
        if loaded is None or not self._loader.packs(loaded):
            return
        if state == VERSION_STATE_SERVING:
            if holding.gear is Gear.MAPPED and holding.packing is None and not holding.cannot_pack:
                holding.packing = self._spawn(self._pack(holding, loaded), f"pack {holding.key}")
            return
        holding.stop_packing()
        if state == VERSION_STATE_READY and holding.gear is Gear.PACKED:
            self._let_go(holding.shift_down(), [])

    async def _pack(self, holding: Holding, loaded: LoadedModel) -> None:
        try:
            packed = await self._loader.pack(loaded, holding.handle().serving)
        except LoadRefused as refused:
            holding.packing = None
            holding.cannot_pack = True
            self.packing_failures += 1
            # As text: who keeps the log record would keep the traceback, and with it the session.
            reason = str(refused)
            log.warning("%s stays mapped, which runs slower: %s", holding.key, reason)
            self._tell(holding, f"its weights stay mapped: {reason}")
        else:
            holding.packing = None
            holding.shift_up(packed)
            log.info("%s is packed, after %.1f s", holding.key, packed.seconds)
            self._tell(holding)

    def _unstage(self, holdings: Iterable[Holding]) -> None:
        """Lets go of what was loaded for a snapshot that does not come into force."""
        for holding in list(holdings):
            del self._staged[holding.key]
            if holding.published:
                # Rescued while it drained; it goes on draining.
                self._leaving[holding.key] = holding
                self._place(holding, Place.OMITTED)
                continue
            if holding.loading is not None:
                holding.loading.cancel()
            if holding.life.state in (VERSION_STATE_LOADING, VERSION_STATE_READY):
                holding.life.abandoned()
                self._drop(holding)
                self._tell(holding)

    def _drop(self, holding: Holding) -> None:
        weights = holding.weights()
        if held := holding.close():
            self._let_go(held, weights)

    def _let_go(self, held: list[object], weights: list[Path]) -> None:
        self._spawn(self._drop_aside(held, weights), "drop sessions")

    async def _drop_aside(self, held: list[object], weights: list[Path]) -> None:
        await self._aside(partial(let_go, held, weights))

    def _tell(self, holding: Holding, reason: str = "") -> None:
        key, state = holding.key, holding.life.state
        level = logging.WARNING if state == VERSION_STATE_FAILED else logging.INFO
        log.log(level, "%s is %s%s", key, VersionState.Name(state)[14:].lower(), reason and f": {reason}")
        # When a digest changed, two holdings share a name and version. The fleet
        # knows only the pair, so one of them speaks for it: the one in service,
        # else the one to be.
        rank = self._rank(holding)
        for other in self._holdings():
            if other.key[:2] == key[:2] and other is not holding and self._rank(other) < rank:
                return
        self._report(key.model, key.version, state, reason, holding.gear)

    def _rank(self, holding: Holding) -> int:
        for rank, holdings in enumerate((self._live, self._staged, self._leaving)):
            if holdings.get(holding.key) is holding:
                return rank
        return 3

    def _holdings(self) -> Iterator[Holding]:
        yield from self._live.values()
        yield from self._staged.values()
        yield from self._leaving.values()

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Ends all loads and drains; to be called when no request is answered any more.

        An `apply` that is under way ends as Superseded.
        """
        if self._overtaken is not None and not self._overtaken.done():
            self._overtaken.set_result(None)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
