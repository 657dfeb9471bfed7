"""One server process as the control plane sees it: state in, no I/O."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from hedgerow_protos import hedgerow_control_pb2 as pb

from hedgerow_control.snapshots.latency import BUCKETS
from hedgerow_control.snapshots.traffic import Answered, Mark, read_variants, routes_of

#: Bounds on what one server can make us remember.
MAX_VERSIONS = 1000
_MAX_UNANSWERED = 16

VersionKey = tuple[str, str, str]


def version_keys(snapshot: pb.Snapshot) -> frozenset[VersionKey]:
    """(model, version, digest) of everything a snapshot holds."""
    return frozenset((m.name, v.version, v.digest) for m in snapshot.models for v in m.versions)


@dataclass(slots=True)
class Counts:
    """Requests of one version, summed."""

    succeeded: int = 0
    failed: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    #: Those answered, by the variant as which the version answered them.
    variants: dict[str, Answered] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Adds another's numbers to these."""
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        for variant, answered in other.variants.items():
            self.variants[variant] = self.variants.get(variant, Answered()) + answered


@dataclass(slots=True)
class Node:
    """Mutable; the hub owns it and feeds it what the server says."""

    name: str
    region: str = ""
    release: str = ""
    connected: bool = False
    #: Monotonic time of the last word from it.
    seen_at: float = 0.0
    #: What it serves: the snapshot it said hello with or acknowledged last.
    snapshot_version: int = 0
    #: Versions it holds warm, by its last acknowledgement; None before the first.
    warm: frozenset[VersionKey] | None = None
    #: Did not answer in time, or refused what others serve: holds nobody up.
    left_behind: bool = False
    last_nack: str = ""
    nacks: int = 0
    #: When to send the refused snapshot again, monotonic; None when it was not refused.
    resend_at: float | None = None
    states: dict[tuple[str, str], int] = field(default_factory=dict)
    #: Of those, the versions that answer from pre-packed weights.
    packed: set[tuple[str, str]] = field(default_factory=set)
    #: Sent and not answered yet, by nonce: (snapshot, when), the oldest first.
    unanswered: OrderedDict[str, tuple[pb.Snapshot, float]] = field(default_factory=OrderedDict)
    #: Totals of streams that have ended, and of the present one.
    past: dict[tuple[str, str], Counts] = field(default_factory=dict)
    present: dict[tuple[str, str], Counts] = field(default_factory=dict)
    #: By model: the routes it acknowledged last, and what it had answered when it took them up.
    marks: dict[str, Mark] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether a move must wait for it: it is there, serves something, and keeps up."""
        return (
            self.connected and not self.left_behind and (self.warm is not None or self.snapshot_version > 0)
        )

    def hello(self, hello: pb.Hello, now: float) -> None:
        """A stream has opened."""
        self.region, self.release = hello.region[:255], hello.release[:255]
        self.snapshot_version = hello.snapshot_version
        self.connected, self.seen_at = True, now
        self.warm, self.left_behind, self.resend_at, self.nacks = None, False, None, 0
        self.states.clear()
        self.packed.clear()
        self.unanswered.clear()

    def goodbye(self, now: float) -> None:
        """The stream has ended; its counts are kept, those of the next start at zero."""
        self.connected, self.seen_at = False, now
        self.unanswered.clear()
        self.states.clear()
        self.packed.clear()
        for key, counts in self.present.items():
            if key in self.past or len(self.past) < MAX_VERSIONS:
                self.past.setdefault(key, Counts()).add(counts)
        self.present = {}

    def sending(self, snapshot: pb.Snapshot, now: float) -> pb.Snapshot:
        """A copy of the snapshot with a nonce, remembered until it is answered."""
        copy = pb.Snapshot()
        copy.CopyFrom(snapshot)
        copy.nonce = uuid.uuid4().hex
        self.unanswered[copy.nonce] = (snapshot, now)
        while len(self.unanswered) > _MAX_UNANSWERED:
            self.unanswered.popitem(last=False)
        self.resend_at = None
        return copy

    def ack(self, ack: pb.Ack) -> frozenset[VersionKey]:
        """What it holds warm now; empty when the nonce is not of this stream."""
        answered = self._answered(ack.nonce)
        if answered is None:
            return frozenset()
        self.warm = version_keys(answered)
        self.snapshot_version = answered.version
        self.left_behind, self.nacks, self.last_nack, self.resend_at = False, 0, "", None
        self._mark(answered)
        return self.warm

    def nack(self, nack: pb.Nack, now: float) -> pb.Snapshot | None:
        """The snapshot it refused, to be sent again later.

        None when the nonce is not of this stream, or when the server goes on trying:
        then the snapshot still waits for its answer, but not longer than others.
        """
        if nack.nonce not in self.unanswered:
            return None
        self.last_nack = nack.reason[:1000] or "refused without a reason"
        if nack.transient:
            return None
        answered = self._answered(nack.nonce)
        self.nacks += 1
        self.resend_at = now + min(60.0, 2.0 ** min(self.nacks, 6))
        return answered

    def report(self, report: pb.VersionReport) -> None:
        """Where one version is in its life."""
        key = (report.model, report.model_version)
        self.packed.discard(key)
        if report.state == pb.VERSION_STATE_DROPPED:
            self.states.pop(key, None)
        elif key in self.states or len(self.states) < MAX_VERSIONS:
            self.states[key] = report.state
            if report.gear == pb.MODEL_GEAR_PACKED:
                self.packed.add(key)

    def stats(self, stats: pb.Stats) -> None:
        """Totals since the stream opened; of a version that it does not mention any more, the last."""
        for v in stats.versions[:MAX_VERSIONS]:
            # Taken out and put in again: at the front are those that were mentioned longest ago.
            self.present.pop((v.model, v.model_version), None)
            buckets = (list(v.latency_buckets) + [0] * BUCKETS)[:BUCKETS]
            counts = Counts(v.succeeded, v.failed, buckets, read_variants(v.variants))
            self.present[v.model, v.model_version] = counts
        for key in list(self.present)[:-MAX_VERSIONS]:
            del self.present[key]

    def overdue(self, now: float, seconds: float) -> bool:
        """Whether something sent that long ago is still unanswered."""
        oldest = next(iter(self.unanswered.values()), None)
        return oldest is not None and now - oldest[1] >= seconds

    def answers_from(self, model: str, version: str) -> bool:
        """Whether replies may still come from a version, by its own word."""
        state = self.states.get((model, version))
        return state in {pb.VERSION_STATE_SERVING, pb.VERSION_STATE_DRAINING}

    def answered(self) -> dict[str, dict[str, Answered]]:
        """What it has answered, by model and variant, whatever the version."""
        result: dict[str, dict[str, Answered]] = {}
        for part in (self.past, self.present):
            for (model, _), counts in part.items():
                variants = result.setdefault(model, {})
                for variant, answered in counts.variants.items():
                    variants[variant] = variants.get(variant, Answered()) + answered
        return result

    def _mark(self, snapshot: pb.Snapshot) -> None:
        routes = {model.name: routes_of(model) for model in snapshot.models}
        same = {name: mark for name, mark in self.marks.items() if mark.routes == routes.get(name)}
        answered = self.answered() if len(same) < len(routes) else {}
        self.marks = {
            name: same.get(name) or Mark(taken, answered.get(name, {})) for name, taken in routes.items()
        }

    def _answered(self, nonce: str) -> pb.Snapshot | None:
        """The snapshot with that nonce; it and older ones wait for no answer any more."""
        if nonce not in self.unanswered:
            return None
        while True:
            known, (snapshot, _) = self.unanswered.popitem(last=False)
            if known == nonce:
                return snapshot


def total(nodes: Mapping[str, Node]) -> dict[tuple[str, str], Counts]:
    """Counts of every version over all nodes."""
    result: dict[tuple[str, str], Counts] = {}
    for node in nodes.values():
        for part in (node.past, node.present):
            for key, counts in part.items():
                result.setdefault(key, Counts()).add(counts)
    return result
