"""What becomes of a snapshot: in force, saved and acknowledged, or refused with a reason.

Knows nothing of streams: an answer goes to whoever brought the snapshot, if
that one still listens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from hedgerow_protos.hedgerow_control_pb2 import Ack, Nack, Snapshot, SubscribeRequest
from hedgerow_protos.manifest import ManifestError

from hedgerow_server.engine.catalog import Catalog, Superseded
from hedgerow_server.engine.desired import SnapshotRefused
from hedgerow_server.engine.files import ArtifactStore
from hedgerow_server.engine.incoming import in_thread
from hedgerow_server.engine.refusals import TRANSIENT_SECONDS
from hedgerow_server.routing.backoff import Backoff
from hedgerow_server.routing.last_good import LastGood

log = logging.getLogger(__name__)

#: Takes the Ack or Nack.
Answer = Callable[[SubscribeRequest], None]


class Applier:
    """Brings the server to the latest snapshot.

    Holds: which snapshot was the latest to come, and when the one in force came into force.

    Args:
        catalog: what is in memory.
        last_good: where the last good snapshot is kept.
        artifacts: the files, of which the unused are let go after each snapshot.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        last_good: LastGood,
        artifacts: ArtifactStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._last_good = last_good
        self._artifacts = artifacts
        self._clock = clock
        self._latest: Snapshot | None = None
        self._in_force_since: float | None = None
        self._saving = asyncio.Lock()
        #: Why the last snapshot was refused or could not be saved; empty if all went well.
        self.last_error = ""

    def __repr__(self) -> str:
        return f"<Applier {self._catalog!r}>"

    @property
    def age(self) -> float | None:
        """Seconds since the snapshot in force came into force; None if there is none."""
        return None if self._in_force_since is None else self._clock() - self._in_force_since

    async def boot(self) -> None:
        """Applies the last good snapshot, unless something newer is in force or on its way."""
        snapshot = await in_thread(self._last_good.load)
        if snapshot is None or self._latest is not None:
            return
        log.info("starting from the last good snapshot, version %d", snapshot.version)
        self._latest = snapshot
        again = Backoff(first=1.0, cap=30.0)
        while self._latest is snapshot:
            if await self._try(snapshot):
                return
            await asyncio.sleep(TRANSIENT_SECONDS + again.wait())

    async def apply(self, snapshot: Snapshot, answer: Answer) -> None:
        """Applies a snapshot from the control plane.

        Returns when it is in force and saved, refused for good, or when a
        newer one came. A snapshot that was refused for a reason that may pass
        (a file could not be fetched) is tried again, ever more rarely.
        """
        # Before the first await: of two snapshots the later is the latest.
        self._latest = snapshot
        again = Backoff(first=1.0, cap=30.0)
        told = ""
        while self._latest is snapshot:
            try:
                await self._catalog.apply(snapshot)
            except Superseded:
                return
            except SnapshotRefused as refusal:
                if refusal.reason != told:
                    told = refusal.reason
                    self._refuse(snapshot, refusal, answer)
                await self._fall_back(snapshot)
                if not refusal.transient:
                    return
                await asyncio.sleep(TRANSIENT_SECONDS + again.wait())
            except Exception:
                log.exception(
                    "snapshot %d could not be applied for a reason nobody foresaw", snapshot.version
                )
                self._refuse(snapshot, SnapshotRefused("internal error; the server's log has it"), answer)
                return
            else:
                self._came_into_force(snapshot)
                ack = Ack(nonce=snapshot.nonce, snapshot_version=snapshot.version)
                answer(SubscribeRequest(ack=ack))
                await self._save(snapshot)
                return

    async def _try(self, snapshot: Snapshot) -> bool:
        """Applies a snapshot from the disk; returns False if another try may go better."""
        try:
            await self._catalog.apply(snapshot)
        except Superseded:
            return True
        except SnapshotRefused as refusal:
            self._note(snapshot, refusal)
            return not refusal.transient
        self._came_into_force(snapshot)
        return True

    async def _fall_back(self, refused: Snapshot) -> None:
        """Serves the last good snapshot if nothing is in force and nothing newer is on its way.

        At a start, a snapshot that came before the last good one was loaded
        has taken over from it; when it is refused, that must not be the end.
        """
        if self._catalog.snapshot_version:
            return
        snapshot = await in_thread(self._last_good.load)
        if snapshot is not None and not self._catalog.snapshot_version and self._latest is refused:
            log.warning("falling back to the last good snapshot, version %d", snapshot.version)
            await self._try(snapshot)

    def _came_into_force(self, snapshot: Snapshot) -> None:
        self._in_force_since = self._clock()
        self.last_error = ""
        log.info("snapshot %d is in force", snapshot.version)

    def _note(self, snapshot: Snapshot, refusal: SnapshotRefused) -> None:
        culprit = f"{refusal.model}@{refusal.version}: " if refusal.model else ""
        self.last_error = f"snapshot {snapshot.version} is refused: {culprit}{refusal.reason}"
        log.warning("%s", self.last_error)

    def _refuse(self, snapshot: Snapshot, refusal: SnapshotRefused, answer: Answer) -> None:
        self._note(snapshot, refusal)
        nack = Nack(
            nonce=snapshot.nonce,
            snapshot_version=snapshot.version,
            last_good_version=self._catalog.snapshot_version,
            reason=refusal.reason,
            model=refusal.model,
            model_version=refusal.version,
            transient=refusal.transient,
        )
        answer(SubscribeRequest(nack=nack))

    async def _save(self, snapshot: Snapshot) -> None:
        """Saves the snapshot, then lets the files go that it does not need."""
        async with self._saving:
            if self._latest is not snapshot and self._catalog.snapshot_version != snapshot.version:
                return  # a newer one is in force and saves itself
            try:
                await in_thread(lambda: self._last_good.save(snapshot))
                await self._artifacts.keep(self._catalog.digests())
            except (OSError, ManifestError) as error:
                self.last_error = f"snapshot {snapshot.version} is in force but not saved: {error}"
                log.warning("%s", self.last_error)
