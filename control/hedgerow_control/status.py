"""What `hedgerow status` shows, gathered from the rooms."""

from __future__ import annotations

from collections import Counter

from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.registry_tags import cost_of

from hedgerow_control.registry.watcher import Watcher
from hedgerow_control.rollout.loop import Rollout
from hedgerow_control.snapshots.latency import percentile
from hedgerow_control.snapshots.node import Counts, total
from hedgerow_control.snapshots.traffic import Ledger, variants


def gather(rollout: Rollout, watcher: Watcher, *, uri: str) -> pb.GetStatusResponse:
    """One consistent look: nothing here awaits."""
    counts = total(rollout.hub.nodes)
    warm = Counter(
        key[:2] for node in rollout.hub.nodes.values() if node.connected for key in node.warm or ()
    )
    ledgers = [(node.answered(), node.marks) for node in rollout.hub.nodes.values()]
    published = {model.name: model for model in rollout.hub.snapshot.models}
    desired = rollout.state.desired
    names = published.keys() | (desired.models.keys() if desired else set())
    response = pb.GetStatusResponse(
        snapshot_version=rollout.hub.snapshot.version,
        registry=_registry(watcher, rollout.hub.clock(), uri),
        models=[
            _model(
                rollout,
                name,
                published.get(name, pb.Model()),
                counts,
                warm,
                [Ledger(answered.get(name, {}), marks.get(name)) for answered, marks in ledgers],
            )
            for name in sorted(names)
        ],
    )
    for name, reason in sorted(desired.refused.items()) if desired else ():
        shown = name.encode("unicode_escape").decode()[:300]
        refused = pb.ModelVersionStatus(stage="failed", reason=reason)
        response.models.append(pb.ModelStatus(name=shown, versions=[refused]))
    for node in sorted(rollout.hub.nodes.values(), key=lambda node: node.name):
        response.nodes.append(
            pb.NodeStatus(
                node=node.name,
                region=node.region,
                snapshot_version=node.snapshot_version,
                connected=node.connected,
                last_nack=node.last_nack,
                release=node.release,
            )
        )
    return response


def _registry(watcher: Watcher, now: float, uri: str) -> pb.RegistryStatus:
    state = watcher.state
    return pb.RegistryStatus(
        uri=uri,
        reachable=state.read_at is not None and not state.failing,
        age_seconds=-1.0 if state.read_at is None else now - state.read_at,
        error=state.error,
        calls=watcher.calls,
    )


def _model(
    rollout: Rollout,
    name: str,
    published: pb.Model,
    counts: dict[tuple[str, str], Counts],
    warm: Counter[tuple[str, str]],
    ledgers: list[Ledger],
) -> pb.ModelStatus:
    desired = rollout.state.desired.models.get(name) if rollout.state.desired else None
    states = {number: state for (model, number), state in rollout.preparer.states.items() if model == name}
    refused = {r.version: r.reason for r in rollout.state.refusals if r.model == name}
    held = {version.version for version in published.versions}
    routed = {route.version for route in published.routes}
    remembered = rollout.state.models.get(name)
    numbers = held | states.keys() | (set(desired.aliases.values()) if desired else set())
    problems = "; ".join(desired.problems) if desired else ""
    champion = desired.aliases.get("champion") if desired else None
    versions = []
    for number in sorted(numbers, key=lambda number: (len(number), number)):
        state = states.get(number)
        stage, reason = (state.stage, state.reason) if state else ("registered", "")
        if number in refused:
            stage, reason = "failed", refused[number]
        elif number in routed:
            stage = "serving"
        elif number in held:
            stage = "retained" if remembered and number in remembered.history else "published"
        known = desired.versions.get(number) if desired else None
        troubles = (reason, known.problem if known else "", problems if number == champion else "")
        reason = "; ".join(trouble for trouble in troubles if trouble)
        done = counts.get((name, number), Counts())
        p50, p95, p99 = (percentile(done.buckets, fraction) * 1e3 for fraction in (0.5, 0.95, 0.99))
        versions.append(
            pb.ModelVersionStatus(
                version=number,
                stage=stage,
                reason=reason,
                nodes_ready=warm[name, number],
                nodes_answering=sum(
                    node.connected and node.answers_from(name, number) for node in rollout.hub.nodes.values()
                ),
                nodes_packed=sum(
                    node.connected and (name, number) in node.packed for node in rollout.hub.nodes.values()
                ),
                succeeded=done.succeeded,
                failed=done.failed,
                p50_ms=p50,
                p95_ms=p95,
                p99_ms=p99,
            )
        )
    costs = {version.version: cost_of(version.tags) for version in published.versions}
    return pb.ModelStatus(
        name=name, routes=published.routes, versions=versions, variants=variants(published, ledgers, costs)
    )
