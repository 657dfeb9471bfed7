"""What reads requests and writes replies for each choice of a route table."""

from __future__ import annotations

from hedgerow_server.engine.model import Model
from hedgerow_server.engine.signature import TensorSpec
from hedgerow_server.features.binding import Binding
from hedgerow_server.features.view import Views
from hedgerow_server.routing.table import Choice, RouteTable
from hedgerow_server.rpc.codec import BoundCodec, TensorCodec

#: Variants that a reply names: not the plain case.
_NAMED = frozenset(("challenger", "economy"))


class Codecs:
    """One codec for each choice; holds those of the table in force.

    Args:
        views: that inputs may be bound to; None: bound inputs are taken as they come.
    """

    def __init__(self, views: Views | None = None) -> None:
        self.views = views
        self._codecs: dict[Choice, TensorCodec] = {}

    def __getitem__(self, choice: Choice) -> TensorCodec:
        return self._codecs[choice]

    def use(self, table: RouteTable) -> None:
        """Makes the codecs of every choice in a table, in place of the earlier ones."""
        self._codecs = {
            choice: self._make(choice) for routes in table.models.values() for choice in routes.choices()
        }

    def _make(self, choice: Choice) -> TensorCodec:
        model = choice.model
        said = {"hedgerow_variant": choice.variant} if choice.variant in _NAMED else {}
        codec = TensorCodec(model, said)
        if self.views is not None and model.serving.features.inputs:
            binding = Binding(model.serving.features, model.signature, self.views.find)
            codec.bound = BoundCodec(model, said, binding)
        return codec

    @property
    def models(self) -> set[Model]:
        """All that there is a codec for."""
        return {choice.model for choice in self._codecs}

    def inputs(self, choice: Choice) -> tuple[TensorSpec, ...]:
        """What callers of a version send; where inputs are bound to features, ids in their place."""
        codec = self._codecs.get(choice)
        bound = codec.bound if codec is not None else None
        return choice.model.signature.inputs if bound is None else bound.binding.callers
