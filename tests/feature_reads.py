"""A view, a model bound to it, and requests, for tests of what joins the two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from hedgerow_protos.feature_view import canonical
from hedgerow_protos.hedgerow_control_pb2 import (
    EntityKey,
    FeatureColumn,
    FeatureDefault,
    FeatureField,
    FeatureInput,
    Features,
    FeatureView,
)
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.features.binding import Binding
from hedgerow_server.features.clock import Clock
from hedgerow_server.features.features import Features as Joining
from hedgerow_server.features.join import Joined
from hedgerow_server.features.sources import Cache, Store
from hedgerow_server.settings import Features as Settings

#: What is served where nothing is known; no row has it.
DEFAULT = -1.0


def view(
    name: str = "plane_profile",
    *,
    fields: int = 1,
    ttl: float = 10,
    stale_ttl: float = 60,
    max_age: float = 0,
) -> FeatureView:
    """A view of FP32 fields f0, f1, …, keyed by `tailnum`."""
    return canonical(
        FeatureView(
            name=name,
            version=1,
            entity=[EntityKey(name="tailnum", datatype="BYTES")],
            fields=[
                FeatureField(name=f"f{i}", datatype="FP32", default=FeatureDefault(numbers=[DEFAULT]))
                for i in range(fields)
            ],
            ttl=ttl,
            stale_ttl=stale_ttl,
            max_age=max_age,
        )
    )


def tensor(name: str, datatype: str, *shape: int) -> TensorSpec:
    """An input or output of a model."""
    return TensorSpec(name, DATATYPES[datatype], shape)


def signature(*inputs: TensorSpec) -> Signature:
    """Of a model with a batch dimension."""
    return Signature(inputs, (tensor("y", "FP32", -1, 1),), 128)


def row(value: float, fields: int = 1) -> bytes:
    """A row with one value in all fields."""
    return np.full(fields, value, "<f4").tobytes()


@dataclass(eq=False)
class Request:
    """A request for some entities; `reply` and what it came with are there when it is done."""

    tails: Sequence[str]
    deadline: float
    ended: bool = False
    began: float = 0.0
    answered: float | None = None
    freshness: str | None = None
    values: np.ndarray | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Server:
    """What one server does with requests that bring ids: product code around a store and a cache.

    Args:
        spec: The view that its model is bound to, all fields of it.
        store: Where features are from.
        cache: What is asked first.
        clock: The server's clocks.
        changed: Other settings than the defaults.
    """

    def __init__(
        self,
        spec: FeatureView,
        *,
        store: Store | None,
        cache: Cache | None,
        clock: Clock | None = None,
        on_reply: Callable[[Request], None] | None = None,
        **changed: float,
    ) -> None:
        self.clock = clock or Clock()
        self.joining = Joining(
            Settings(**changed), store=store, cache=cache, done=self._done, clock=self.clock
        )
        self.width = len(spec.fields)
        features = Features(
            views=[spec],
            inputs=[FeatureInput(input="x", columns=[FeatureColumn(view=f"{spec.name}@{spec.version}")])],
        )
        self.binding = Binding(
            features, signature(tensor("x", "FP32", -1, self.width)), self.joining.views.find
        )
        (self.view,) = {lookup.view for lookup in self.binding.lookups}
        self._on_reply = on_reply

    def submit(self, *batch: Sequence[str], timeout: float = 10.0) -> list[Request]:
        """Takes requests that arrive in one turn of the loop."""
        now = self.clock.monotonic()
        requests = [Request(tails, now + timeout, began=now) for tails in batch]
        for request in requests:
            ids = np.empty(len(request.tails), object)
            ids[:] = list(request.tails)
            self.joining.joiner.add(request, self.binding, [ids], [(len(request.tails),)])
        self.joining.joiner.flush()
        return requests

    async def ask(self, *tails: str, seconds: float = 10.0) -> Request:
        """One request and its reply."""
        (request,) = self.submit(tails, timeout=seconds)
        await request.done.wait()
        return request

    def _done(self, finished: Sequence[Joined]) -> None:
        for joined in finished:
            request = joined.asker
            assert isinstance(request, Request)
            assert request.answered is None, "a request is answered once"
            request.answered = self.clock.monotonic()
            request.freshness = joined.freshness.label
            request.values = np.frombuffer(joined.parts[0], "<f4").reshape(joined.shapes[0])
            request.done.set()
            if self._on_reply is not None:
                self._on_reply(request)

    async def close(self) -> None:
        """Ends reads and connections."""
        await self.joining.close()
