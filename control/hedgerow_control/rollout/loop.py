"""Steps the rollout: gathers what is known, asks the policy, publishes what it says.

Every event (a reading of the registry, a version prepared, an ACK, a NACK, a
server come or gone, a deadline) only wakes the loop; each step looks at
everything anew, so an event lost or doubled changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from hedgerow_protos import hedgerow_control_pb2 as pb

from hedgerow_control.artifacts.preparer import Preparation, Preparer
from hedgerow_control.artifacts.store import ArtifactStore
from hedgerow_control.registry.desired import DesiredState
from hedgerow_control.rollout.policy import ModelPlan, ModelView, Override, plan
from hedgerow_control.rollout.state import ModelState, PreparedRecord, Refusal, State, StateFile
from hedgerow_control.rollout.views import Views
from hedgerow_control.snapshots.hub import Hub
from hedgerow_control.snapshots.node import Node, VersionKey

logger = logging.getLogger(__name__)

#: Deadlines are looked at this often.
_TICK_SECONDS = 0.25
#: Of each model, the files of as many stay here: an alias that moves back to one of them
#: waits for no download and no trial load.
_FORMER_CHAMPIONS = 3


class Rollout:
    """Owns the state and the published snapshot. One step at a time, under a lock."""

    def __init__(
        self,
        *,
        state: State,
        file: StateFile,
        hub: Hub,
        preparer: Preparer,
        store: ArtifactStore,
        retain: int,
        ack_timeout_seconds: float,
    ) -> None:
        self.state = state
        self.hub = hub
        self.preparer = preparer
        self.ack_timeout_seconds = ack_timeout_seconds
        self._file = file
        self._store = store
        self._retain = retain
        self._moving = False
        #: The published snapshot must go out again under a higher number.
        self._renumber = False
        self._proven = set(state.proven)
        self._saved = b""
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._watching: set[asyncio.Event] = set()
        hub.events = self
        preparer.on_change = self.wake

    def start(self) -> None:
        """Takes up where the last process stopped: its snapshot goes out at once."""
        for record in self.state.prepared:
            prepared = pb.ModelVersion.FromString(record.message)
            if self._store.holds(prepared):
                state = Preparation(record.source, "verified", prepared=prepared)
                self.preparer.restore((record.model, prepared.version), state)
            else:
                logger.warning(
                    "the files of %s version %s are gone; fetching again", record.model, prepared.version
                )
        self.hub.publish(pb.Snapshot.FromString(self.state.snapshot))
        self.wake()

    async def run(self) -> None:
        """Steps until cancelled."""
        while True:
            self._wake.clear()
            # Also when events come faster than the tick below.
            self._deadlines()
            try:
                await self.step()
            except OSError:
                logger.exception("the state cannot be saved; nothing is published until it can")
                await asyncio.sleep(1.0)
                continue
            while not self._wake.is_set():
                try:
                    await asyncio.wait_for(self._wake.wait(), _TICK_SECONDS)
                except TimeoutError:
                    self._deadlines()

    # What the others call when something has happened.

    def wake(self) -> None:
        """Something has changed."""
        self._wake.set()
        for watcher in self._watching:
            watcher.set()

    def desire(self, desired: DesiredState) -> None:
        """The registry asks for something new."""
        # An alias set on a version is the operator's word that it is worth a try, also
        # when it failed before: perhaps its files were not all there yet.
        for key in _with_role(desired) - _with_role(self.state.desired):
            self.preparer.forget_failure(key)
            self.state.refusals = [r for r in self.state.refusals if (r.model, r.version) != key]
        self.state.desired = desired
        self.wake()

    def acked(self, warm: frozenset[VersionKey]) -> None:
        """A server holds these versions warm."""
        new = {"/".join(key) for key in warm} - self._proven
        self._proven |= new
        self.state.proven.extend(sorted(new))

    def nacked(self, node: Node, refused: pb.Snapshot, nack: pb.Nack) -> None:
        """A server refused a snapshot; the version at fault fails unless others serve it."""
        found = next(
            (
                version
                for model in refused.models
                for version in model.versions
                if (model.name, version.version) == (nack.model, nack.model_version)
            ),
            None,
        )
        if found is None:
            node.left_behind = True
            return
        key = (nack.model, found.version, found.digest)
        routed = any(
            model.name == nack.model and any(route.version == found.version for route in model.routes)
            for model in self.hub.snapshot.models
        )
        remembered = self.state.models.get(nack.model, ModelState())
        if routed and ("/".join(key) in self._proven or not remembered.history):
            # Others serve it, or there is nothing else: one server's trouble is its own.
            logger.warning(
                "server %s stays behind: it refuses %s version %s, which is routed", node.name, *key[:2]
            )
            node.left_behind = True
            return
        reason = f"refused by server {node.name}: {node.last_nack}"
        logger.warning("%s version %s failed, %s", key[0], key[1], reason)
        self.state.refusals = [r for r in self.state.refusals if (r.model, r.version) != key[:2]]
        self.state.refusals.append(Refusal(*key, reason))

    def hello(self, snapshot_version: int) -> None:
        """A server has a newer snapshot than ours: our state was lost, and ours must be newer still."""
        if snapshot_version > self.state.snapshot_version and self.hub.snapshot.version:
            logger.warning(
                "a server has snapshot %d, ours is %d", snapshot_version, self.state.snapshot_version
            )
            self._renumber = True
        self.state.snapshot_version = max(snapshot_version, self.state.snapshot_version)

    async def watch(self, done: asyncio.Event, seconds: float) -> None:
        """Waits until `done` is set by `wake`, or so long."""
        self._watching.add(done)
        try:
            await asyncio.wait_for(done.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._watching.discard(done)

    # The step.

    async def step(self) -> None:
        """Brings the published snapshot to what the policy says now."""
        async with self._lock:
            await self._step()

    async def override(self, model: str, choose: Callable[[ModelView], Override]) -> None:
        """Lets an operator choose the champion, and publishes that.

        Nothing is published between the look that `choose` takes and its effect.
        """
        async with self._lock:
            view = Views(self.state, self.hub, self.preparer).of(model)
            chosen = choose(view)
            self.state.models[model] = ModelState(view.history, chosen)
            await self._step()

    async def _step(self) -> None:
        if self.state.desired is None:
            return
        self._want(self.state.desired)
        if not self.hub.snapshot.version and self._starting():
            return
        if self._moving and self.hub.settled():
            self._moving = False
        views = Views(self.state, self.hub, self.preparer)
        plans = plan(views.all(), retain=self._retain, moving=self._moving)
        models = [views.message(name, planned) for name, planned in plans.items()]
        before = dict(self.state.models)
        self._remember(plans, self.state.desired)
        published = self.hub.snapshot
        if published.version and list(published.models) == models and not self._renumber:
            if self.state.models != before:
                # A rollback that has ended must not begin again after a restart.
                await self.save()
            return
        # Before the first await: a hello meanwhile asks for it again.
        renumber, self._renumber = self._renumber, False
        snapshot = pb.Snapshot(version=self.state.snapshot_version + 1, models=models)
        moved = _routed(published.models) != _routed(snapshot.models)
        self.state.snapshot_version = snapshot.version
        self.state.snapshot = snapshot.SerializeToString()
        # Saved before it is sent: a number that a server has seen is never given again.
        try:
            await self.save()
        except OSError:
            self._renumber |= renumber
            raise
        self._moving = moved
        self.hub.publish(snapshot)
        logger.info(
            "snapshot %d published%s: %s", snapshot.version, " (routes move)" if moved else "", _say(models)
        )
        self.wake()

    async def save(self) -> None:
        """Writes the state if it differs from what is on disk."""
        self.state.prepared = [
            PreparedRecord(name, state.source, state.prepared.SerializeToString(deterministic=True))
            for (name, _), state in self.preparer.states.items()
            if state.prepared is not None
        ]
        encoded = self.state.encode()
        if encoded != self._saved:
            await asyncio.to_thread(self._file.save, encoded)
            self._saved = encoded

    async def prune(self) -> None:
        """Removes files that no prepared or published version needs."""
        async with self._lock:
            if self.preparer.busy:
                return
            keep = {state.prepared.digest for state in self.preparer.states.values() if state.prepared}
            keep |= {version.digest for model in self.hub.snapshot.models for version in model.versions}
            aside = await asyncio.to_thread(self._store.set_aside, keep)
        # Without the lock: a rollback must not wait for it.
        for digest, directory in aside.items():
            await asyncio.to_thread(self._store.remove, directory)
            logger.info("removed the files of %s", digest)

    def _want(self, desired: DesiredState) -> None:
        """Asks for the files of every version that has a role, or may get one back."""
        published = {model.name: model for model in self.hub.snapshot.models}
        wanted: dict[tuple[str, str], str] = {}
        # In the order in which they are prepared: what has a role before what may get one.
        for name, number in _with_role(desired):
            wanted[name, number] = desired.models[name].versions[number].source
        for name, model in desired.models.items():
            for version in model.versions.values():
                wanted.setdefault((name, version.version), version.source)
            remembered = self.state.models.get(name, ModelState())
            kept = set(remembered.history[: max(self._retain, _FORMER_CHAMPIONS)])
            kept |= {version.version for version in published.get(name, pb.Model()).versions}
            kept |= {remembered.override.keep} if remembered.override else set()
            for number in kept:
                state = self.preparer.states.get((name, number))
                if state is not None:
                    wanted.setdefault((name, number), state.source)
        self.preparer.want(wanted)

    def _starting(self) -> bool:
        """Whether versions with a role are still under their first preparation.

        Before the very first snapshot they are awaited: if it is the first only
        because our state was lost, servers would drop what they serve.
        """
        states = self.preparer.states
        return any(
            key in states and states[key].stage in {"registered", "fetched"}
            for key in _with_role(self.state.desired)
        )

    def _remember(self, plans: dict[str, ModelPlan], desired: DesiredState) -> None:
        for name, planned in plans.items():
            before = self.state.models.get(name)
            if before is not None and before.override is not None and planned.override is None:
                logger.info("%s: the registry agrees with the rollback or has moved on", name)
            self.state.models[name] = ModelState(planned.history, planned.override)
        served = {name for name, model in desired.models.items() if "champion" in model.aliases}
        for name in self.state.models.keys() - served:
            del self.state.models[name]
        # What is not wanted any more may be tried again when it is wanted anew.
        self.state.refusals = [r for r in self.state.refusals if (r.model, r.version) in self.preparer.states]

    def _deadlines(self) -> None:
        now = self.hub.clock()
        for node in self.hub.nodes.values():
            if not node.connected:
                continue
            if not node.left_behind and node.overdue(now, self.ack_timeout_seconds):
                node.left_behind = True
                self.wake()
                logger.warning(
                    "server %s did not acknowledge within %.1f s; the others go on without it",
                    node.name,
                    self.ack_timeout_seconds,
                )
            if node.resend_at is not None and now >= node.resend_at:
                node.resend_at = None
                self.hub.resend(node.name)


def _with_role(desired: DesiredState | None) -> set[tuple[str, str]]:
    """(model, version) of everything that an alias points at, and that exists."""
    models = desired.models.values() if desired else ()
    return {
        (model.name, number)
        for model in models
        for number in model.aliases.values()
        if number in model.versions
    }


def _routed(models: Iterable[pb.Model]) -> dict[tuple[str, str], str]:
    return {(model.name, route.variant): route.version for model in models for route in model.routes}


def _say(models: list[pb.Model]) -> str:
    parts = []
    for model in models:
        routes = ", ".join(f"{route.variant} {route.version} ({route.weight} %)" for route in model.routes)
        held = ",".join(version.version for version in model.versions)
        parts.append(f"{model.name} [{held}] {routes or 'no route yet'}")
    return "; ".join(parts) or "no models"
