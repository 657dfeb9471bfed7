"""What is known of each model, put into the form that the policy and the snapshot need."""

from __future__ import annotations

from hedgerow_protos import hedgerow_control_pb2 as pb

from hedgerow_control.artifacts.preparer import Preparer
from hedgerow_control.registry.desired import DesiredModel, DesiredState
from hedgerow_control.rollout.policy import ModelPlan, ModelView
from hedgerow_control.rollout.state import ModelState, State
from hedgerow_control.snapshots.hub import Hub


class Views:
    """One consistent look at registry, preparation, servers and memory; taken without awaiting."""

    def __init__(self, state: State, hub: Hub, preparer: Preparer) -> None:
        self._state = state
        self._hub = hub
        self._desired = state.desired or DesiredState()
        self._published = {model.name: model for model in hub.snapshot.models}
        refused = {(r.model, r.version, r.digest) for r in state.refusals}
        #: Published and prepared versions by model and number, less those that a server has refused.
        self._usable: dict[str, dict[str, pb.ModelVersion]] = {}
        for name, model in self._published.items():
            self._usable[name] = {v.version: v for v in model.versions}
        for (name, number), preparation in preparer.states.items():
            if preparation.prepared is not None:
                self._usable.setdefault(name, {})[number] = preparation.prepared
        for name, versions in self._usable.items():
            for number in [n for n, v in versions.items() if (name, n, v.digest) in refused]:
                del versions[number]

    def all(self) -> dict[str, ModelView]:
        """Every model that is published or wanted."""
        return {name: self.of(name) for name in self._desired.models.keys() | self._published.keys()}

    def of(self, name: str) -> ModelView:
        """One model; an unknown one is empty."""
        model = self._desired.models.get(name)
        remembered = self._state.models.get(name, ModelState())
        usable = self._usable.get(name, {})
        now = self._published.get(name, pb.Model())
        # Only what a published snapshot holds can be warm, also when no server is there to say so.
        held = {version.version: version.digest for version in now.versions}
        ready = {
            number
            for number, version in usable.items()
            if held.get(number) == version.digest and self._hub.ready((name, number, version.digest))
        }
        return ModelView(
            wanted=model.aliases if model else {},
            weights=model.weights if model else {},
            usable=frozenset(usable),
            ready=frozenset(ready),
            routed={route.variant: route.version for route in now.routes},
            held=tuple(held),
            history=remembered.history,
            override=remembered.override,
            cold=not self._hub.snapshot.version,
        )

    def message(self, name: str, planned: ModelPlan) -> pb.Model:
        """A plan as the snapshot says it."""
        published = {v.version: v for v in self._published.get(name, pb.Model()).versions}
        usable = self._usable.get(name, {})
        versions = []
        for number in planned.versions:
            version = pb.ModelVersion()
            # A refused version may stay published when there is nothing to put in its place.
            version.CopyFrom(usable.get(number) or published[number])
            _tag(version, self._desired.models.get(name))
            versions.append(version)
        routes = [
            pb.Route(variant=role, version=number, weight=weight) for role, number, weight in planned.routes
        ]
        return pb.Model(name=name, versions=versions, routes=routes)


def _tag(version: pb.ModelVersion, model: DesiredModel | None) -> None:
    known = model.versions.get(version.version) if model else None
    if known is not None:
        version.tags.clear()
        version.tags.update(known.tags)
