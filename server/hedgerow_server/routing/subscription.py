"""Follows the control plane: snapshots in; acknowledgements, reports and statistics out.

The stream may break at any time and the control plane may stay away for days:
what is in force stays in force. Applying a snapshot belongs to the server, not
to the stream that brought it, and goes on when the stream breaks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

import grpc
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DROPPED,
    Hello,
    SubscribeRequest,
    SubscribeResponse,
    VersionReport,
)
from hedgerow_protos.hedgerow_control_pb2_grpc import SnapshotsStub

from hedgerow_server.engine.catalog import Catalog
from hedgerow_server.routing.applying import Applier
from hedgerow_server.routing.backoff import Backoff
from hedgerow_server.routing.reports import Reports
from hedgerow_server.routing.stream_stats import StreamStats

log = logging.getLogger(__name__)

#: Messages that wait for the control plane to read them. If it does not, the
#: stream is broken off: a new one begins with the full state.
MAX_WAITING = 1024
#: A stream that lasted so long was a good one: the next is tried at once when it breaks.
GOOD_STREAM_SECONDS = 5.0

Outbox = asyncio.Queue[SubscribeRequest]
Call = grpc.aio.StreamStreamCall[SubscribeRequest, SubscribeResponse]


class Subscription:
    """Keeps this server at the control plane's latest snapshot.

    Holds: the stream that is open.

    Args:
        channel: to the control plane, as `control_channel.connect` returns it.
        hello: node, region and release of this server.
        address: of the control plane, for people.
        applier: is given every snapshot.
        catalog: what is in memory; `reports.record` is its `report`.
        reports: the states to pass on.
        backoff: waits between tries to connect.
        stats_seconds: between two statistics.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        hello: Hello,
        address: str,
        applier: Applier,
        catalog: Catalog,
        reports: Reports,
        backoff: Backoff | None = None,
        stats_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._stub = SnapshotsStub(channel)  # type: ignore[no-untyped-call]  # generated code
        self._hello = hello
        self._address = address
        self._applier = applier
        self._catalog = catalog
        self._reports = reports
        self._backoff = backoff or Backoff()
        self._stats_seconds = stats_seconds
        self._clock = clock
        self._outbox: Outbox | None = None
        self._call: Call | None = None
        self._stats = StreamStats(())
        self._lost_because = ""

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<Subscription {self._address} {state}, snapshot {self._catalog.snapshot_version}>"

    @property
    def connected(self) -> bool:
        """Whether the stream is open and its connection stands."""
        ready = grpc.ChannelConnectivity.READY
        return self._call is not None and self._channel.get_state() is ready

    def status(self) -> dict[str, object]:
        """For /health/dependencies; ages in seconds."""
        return {
            "address": self._address,
            "connected": self.connected,
            "snapshot_version": self._catalog.snapshot_version,
            "snapshot_age_seconds": self._applier.age,
            "last_error": self._applier.last_error or self._lost_because,
        }

    async def run(self) -> None:
        """Boots from the last good snapshot and follows the control plane, until it is cancelled."""
        async with asyncio.TaskGroup() as work:
            self._reports.listen(self._pass_on)
            try:
                # Both at once: whatever the control plane sends takes over from
                # the last good snapshot, and shares what is already loading.
                work.create_task(self._applier.boot(), name="boot from the last good snapshot")
                while True:
                    began = self._clock()
                    await self._follow(work)
                    if self._clock() - began >= GOOD_STREAM_SECONDS:
                        self._backoff.reset()
                    await asyncio.sleep(self._backoff.wait())
            finally:
                self._reports.listen(None)

    async def _follow(self, work: asyncio.TaskGroup) -> None:
        """Opens one stream and reads it to its end."""
        # From here to the first await nothing else runs: the full state is
        # sent before any change of it, and no change is missed.
        reports = self._reports.current()
        outbox: Outbox = asyncio.Queue(MAX_WAITING + len(reports))
        models = self._catalog.models()
        hello = Hello()
        hello.CopyFrom(self._hello)
        hello.snapshot_version = self._catalog.snapshot_version
        outbox.put_nowait(SubscribeRequest(hello=hello))
        for report in reports:
            outbox.put_nowait(SubscribeRequest(report=report))
        call: Call = self._stub.Subscribe()
        self._outbox, self._call, self._stats = outbox, call, StreamStats(models)
        talking = [
            asyncio.create_task(self._send(call, outbox), name="send to the control plane"),
            asyncio.create_task(self._tick(), name="statistics to the control plane"),
        ]
        try:
            async for response in call:
                snapshot = response.snapshot
                log.info("snapshot %d came", snapshot.version)
                self._lost_because = ""
                # The newest takes over from the others, so of these tasks few are alive.
                applying = self._applier.apply(snapshot, partial(self._answer, outbox))
                work.create_task(applying, name=f"apply snapshot {snapshot.version}")
            self._lost("it ended the stream")
        except grpc.aio.AioRpcError as error:
            self._lost(f"{error.code().name}: {error.details()}")
        except asyncio.CancelledError:
            # grpc raises this also when the call, not this task, was cancelled.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._lost("it did not read what was sent")
        finally:
            self._outbox = self._call = None
            call.cancel()
            for one in talking:
                one.cancel()
            await asyncio.gather(*talking, return_exceptions=True)

    def _lost(self, reason: str) -> None:
        # Told once, not at every try while it stays away.
        if reason != self._lost_because:
            log.warning(
                "no control plane at %s (%s); snapshot %d stays in force",
                self._address,
                reason,
                self._catalog.snapshot_version,
            )
        self._lost_because = reason

    async def _send(self, call: Call, outbox: Outbox) -> None:
        try:
            while True:
                await call.write(await outbox.get())
        finally:
            # Nobody may go on reading a stream that says nothing any more.
            call.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._stats_seconds)
            self._tell_stats(self._outbox)

    def _tell_stats(self, outbox: Outbox | None) -> None:
        self._say(outbox, SubscribeRequest(stats=self._stats.read(self._catalog.models())))

    def _answer(self, outbox: Outbox, message: SubscribeRequest) -> None:
        if message.WhichOneof("kind") == "ack":
            # Before it: the control plane can tell what was answered by the routes before.
            self._tell_stats(outbox)
        self._say(outbox, message)

    def _pass_on(self, report: VersionReport) -> None:
        if report.state == VERSION_STATE_DROPPED:
            self._tell_stats(self._outbox)  # its last chance to be counted
        self._say(self._outbox, SubscribeRequest(report=report))

    def _say(self, outbox: Outbox | None, message: SubscribeRequest) -> None:
        """Sends on the open stream; not at all if the stream that is meant has ended."""
        if outbox is None or outbox is not self._outbox or self._call is None:
            return
        try:
            outbox.put_nowait(message)
        except asyncio.QueueFull:
            self._call.cancel()
