"""Whether this worker and each of its models can answer, told in every form that someone asks in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from grpc_health.v1 import health, health_pb2

from hedgerow_server.answer import Answerer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Keeps `grpc.health.v1` in step with the route table, and answers the HTTP probes.

    The service "" is the server, each model's name is that model.

    Args:
        answerer: knows what is in service and whether the worker drains.
        missing: what is not there yet that should be; empty when all is.
        dependencies: what the server leans on, and how that fares.
    """

    def __init__(
        self,
        answerer: Answerer,
        missing: Callable[[], list[str]],
        dependencies: Callable[[], dict[str, object]],
    ) -> None:
        self._answerer = answerer
        self._missing = missing
        self._dependencies = dependencies
        self._changed = asyncio.Event()
        self._told: set[str] = set()
        # One at a time: what was true before a drain must not be told after it.
        self._telling = asyncio.Lock()
        self.servicer = health.aio.HealthServicer()

    def live(self) -> bool:
        """It answers, so it lives."""
        return True

    def ready(self) -> tuple[bool, list[str]]:
        """Whether requests should come here, and why not."""
        reasons = ["the server is shutting down"] if self._answerer.draining else self._missing()
        return not reasons, reasons

    def dependencies(self) -> dict[str, object]:
        """What the server leans on; none of it being down makes the server unready."""
        return self._dependencies()

    def change(self) -> None:
        """Says that the route table or the readiness has changed."""
        self._changed.set()

    async def follow(self) -> None:
        """Tells grpc.health.v1 of every change, until cancelled."""
        # A servicer starts as SERVING.
        await self.servicer.set("", NOT_SERVING)
        while True:
            await self.tell()
            await self._changed.wait()
            self._changed.clear()

    async def tell(self) -> None:
        """Tells grpc.health.v1 how things stand."""
        async with self._telling:
            draining = self._answerer.draining
            serving = {name for name, routes in self._answerer.table.models.items() if routes.shares}
            for name in serving | self._told:
                await self.servicer.set(name, SERVING if name in serving and not draining else NOT_SERVING)
            self._told |= serving
            await self.servicer.set("", SERVING if self.ready()[0] else NOT_SERVING)
