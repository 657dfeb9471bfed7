"""Streams the present snapshot to every server and hears what each says of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc
from hedgerow_protos import hedgerow_control_pb2 as pb

from hedgerow_control.snapshots.node import Node, VersionKey

logger = logging.getLogger(__name__)

MAX_NODES = 1000
#: A server that is gone is shown this long.
FORGET_SECONDS = 600.0
_HELLO_SECONDS = 10.0
#: Ours must be higher than what any server has, and the field has 64 bits.
_MAX_SNAPSHOT = 1 << 62

Context = grpc.aio.ServicerContext[Any, Any]


class HubEvents(Protocol):
    """Who acts on what servers say."""

    def wake(self) -> None:
        """Something about a server has changed."""

    def acked(self, warm: frozenset[VersionKey]) -> None:
        """A server holds these versions warm."""

    def nacked(self, node: Node, refused: pb.Snapshot, nack: pb.Nack) -> None:
        """A server refused a snapshot."""

    def hello(self, snapshot_version: int) -> None:
        """A server said which snapshot it has."""


class _Stream:
    """The sending side of one open stream."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.ended = False
        #: Send the present snapshot although it was sent before.
        self.again = False

    def end(self) -> None:
        self.ended = True
        self.wake.set()


class Hub:
    """`hedgerow.control.v1.Snapshots`. Owns the nodes; one stream a node, the newest wins.

    A snapshot is sent as soon as it is published: a server drops what it was
    loading for an older one. What is published while a send waits for the
    connection replaces what waits.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        #: Set before the first stream.
        self.events: HubEvents
        self.nodes: dict[str, Node] = {}
        self.nacks = 0
        self.snapshot = pb.Snapshot()
        self.clock = clock
        self._streams: dict[str, _Stream] = {}
        self._closing = False

    def publish(self, snapshot: pb.Snapshot) -> None:
        """Makes a snapshot the present one. It is not changed afterwards."""
        self.snapshot = snapshot
        for stream in self._streams.values():
            stream.wake.set()

    def resend(self, name: str) -> None:
        """Sends the present snapshot again to a node that refused it."""
        stream = self._streams.get(name)
        if stream is not None:
            stream.again = True
            stream.wake.set()

    def close(self) -> None:
        """Ends all streams."""
        self._closing = True
        for stream in self._streams.values():
            stream.end()

    def ready(self, key: tuple[str, str, str]) -> bool:
        """Whether every server that a move must wait for holds (model, version, digest) warm."""
        return all(node.warm is not None and key in node.warm for node in self.nodes.values() if node.counts)

    def settled(self) -> bool:
        """Whether every one of these serves the present snapshot."""
        return all(
            node.warm is not None and node.snapshot_version >= self.snapshot.version
            for node in self.nodes.values()
            if node.counts
        )

    async def Subscribe(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[pb.SubscribeRequest], context: Context
    ) -> AsyncIterator[pb.SubscribeResponse]:
        """One server's stream, until either side ends it."""
        hello = await self._hello(requests, context)
        node = self._admit(hello)
        if node is None:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_NODES} servers are connected already"
            )
        before = self._streams.get(node.name)
        if before is not None:
            before.end()
            node.goodbye(self.clock())
        stream = self._streams[node.name] = _Stream()
        node.hello(hello, self.clock())
        logger.info("server %s connected (region %s, release %s)", node.name, node.region, node.release)
        self.events.hello(hello.snapshot_version)
        listener = asyncio.create_task(self._listen(requests, node, stream))
        self.events.wake()
        try:
            stream.wake.set()
            sent: pb.Snapshot | None = None
            while await stream.wake.wait() and not stream.ended:
                stream.wake.clear()
                # Before the first reading of the registry there is nothing to say; and to a server
                # with a newer snapshot not before ours has got a higher number.
                newest = self.snapshot.version and self.snapshot.version >= node.snapshot_version
                if newest and (self.snapshot is not sent or stream.again):
                    sent, stream.again = self.snapshot, False
                    yield pb.SubscribeResponse(snapshot=node.sending(sent, self.clock()))
            if self._streams.get(node.name) is not stream:
                await context.abort(
                    grpc.StatusCode.ABORTED, f"another stream of node {node.name!r} has opened"
                )
        finally:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener
            if self._streams.get(node.name) is stream:
                del self._streams[node.name]
                node.goodbye(self.clock())
                logger.info("server %s is gone", node.name)
                self.events.wake()

    async def _hello(self, requests: AsyncIterator[pb.SubscribeRequest], context: Context) -> pb.Hello:
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                first = await anext(requests, None)
        except TimeoutError:
            first = None
        if self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the control plane is stopping")
        if first is None or first.WhichOneof("kind") != "hello" or not 1 <= len(first.hello.node) <= 255:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"expected a Hello with a node of 1 to 255 characters within {_HELLO_SECONDS:.0f} s",
            )
        assert first is not None
        if first.hello.snapshot_version > _MAX_SNAPSHOT:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "snapshot_version leaves no room for a higher one"
            )
        return first.hello

    def _admit(self, hello: pb.Hello) -> Node | None:
        now = self.clock()
        gone = sorted((n for n in self.nodes.values() if not n.connected), key=lambda node: node.seen_at)
        excess = len(self.nodes) + (hello.node not in self.nodes) - MAX_NODES
        for index, node in enumerate(gone):
            if node.name != hello.node and (index < excess or now - node.seen_at > FORGET_SECONDS):
                del self.nodes[node.name]
        if hello.node not in self.nodes and len(self.nodes) >= MAX_NODES:
            return None
        return self.nodes.setdefault(hello.node, Node(hello.node))

    async def _listen(
        self, requests: AsyncIterator[pb.SubscribeRequest], node: Node, stream: _Stream
    ) -> None:
        try:
            async for request in requests:
                if stream.ended:
                    return
                self._hear(request, node)
        finally:
            stream.end()

    def _hear(self, request: pb.SubscribeRequest, node: Node) -> None:
        node.seen_at = self.clock()
        kind = request.WhichOneof("kind")
        if kind == "stats":
            node.stats(request.stats)
            return
        if kind == "ack":
            warm = node.ack(request.ack)
            self.events.acked(warm)
        elif kind == "nack":
            refused = node.nack(request.nack, self.clock())
            if refused is not None:
                self.nacks += 1
                logger.warning(
                    "server %s refused snapshot %d: %s",
                    node.name,
                    refused.version,
                    request.nack.reason[:1000],
                )
                self.events.nacked(node, refused, request.nack)
            elif request.nack.transient:
                logger.warning("server %s goes on trying: %s", node.name, request.nack.reason[:1000])
        elif kind == "report":
            node.report(request.report)
        self.events.wake()
