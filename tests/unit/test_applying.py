"""What becomes of snapshots that come while another is being dealt with."""

from __future__ import annotations

import asyncio
import threading

from fleet import InstantLoads, at_once, snapshot
from hedgerow_protos.hedgerow_control_pb2 import Snapshot, SubscribeRequest
from hedgerow_server.engine.catalog import Catalog
from hedgerow_server.engine.files import ArtifactStore
from hedgerow_server.engine.loader import Loader
from hedgerow_server.routing.applying import Applier
from hedgerow_server.routing.last_good import LastGood


class SlowDisk(LastGood):
    """A last good snapshot that takes its time to be read."""

    read = threading.Event()

    def load(self) -> Snapshot | None:
        """As ever, but only when `read` is set."""
        assert self.read.wait(20)
        return super().load()


async def test_falling_back_never_takes_over_from_a_newer_snapshot(tmp_path) -> None:
    """While the disk is read, the control plane may have sent what to serve instead of the refused one."""
    kept = SlowDisk(tmp_path)
    kept.save(snapshot(1, {"m": {"1": 100}}))
    newer_loads = asyncio.Event()

    loads = InstantLoads()

    async def resolve(name, version):
        if version.version == "3":
            await newer_loads.wait()
        return await loads.resolve(name, version)

    catalog = Catalog(
        loader=Loader(resolve=resolve, load=loads.load, executor=loads),
        publish=lambda table: None,
        report=lambda *report: None,
        aside=at_once,
    )
    applier = Applier(catalog=catalog, last_good=kept, artifacts=ArtifactStore(tmp_path / "artifacts"))
    said: list[SubscribeRequest] = []
    # A route to a version that is not listed: refused.
    bad = snapshot(2, {"m": {"2": 100}})
    bad.models[0].routes[0].version = "9"
    refused = asyncio.create_task(applier.apply(bad, said.append))
    while not said:  # noqa: ASYNC110  a turn of the loop at a time
        await asyncio.sleep(0)
    newer = asyncio.create_task(applier.apply(snapshot(3, {"m": {"3": 100}}), said.append))
    await asyncio.sleep(0)
    kept.read.set()
    await refused
    newer_loads.set()
    await newer
    assert catalog.snapshot_version == 3
    assert [message.WhichOneof("kind") for message in said] == ["nack", "ack"]
    await catalog.close()
