"""Anything in any order: snapshots, cancellations, loads that succeed, fail or hang, requests, time.

What must hold throughout: what is in force is exactly one snapshot, whole;
nobody holds a version that was let go; a retirement is told only when every
request that chose the version by its old route is answered; nothing is loaded
twice; exactly what takes traffic is packed, and all requests of a version run in
one gear; and in the end nothing is left.
"""

from __future__ import annotations

import gc
from collections import Counter

from fleet import Clock, Loads, at_once, snapshot
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DRAINING as DRAINING,
)
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DROPPED as DROPPED,
)
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_FAILED as FAILED,
)
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_LOADING as LOADING,
)
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_READY as READY,
)
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_SERVING as SERVING,
)
from hedgerow_server.engine.catalog import Catalog, Superseded
from hedgerow_server.engine.desired import SnapshotRefused
from hedgerow_server.engine.gears import Gear
from hedgerow_server.engine.loader import Loader
from hedgerow_server.errors import NotFound
from hedgerow_server.routing.table import ASKED
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

#: Which state may follow which. Only for model "a", whose digests never change:
#: where one does, two versions speak under one name in turn.
FOLLOWS = {
    None: {LOADING},
    LOADING: {READY, FAILED, DROPPED},
    READY: {SERVING, DRAINING, DROPPED},
    SERVING: {DRAINING, SERVING},
    DRAINING: {SERVING, READY, DROPPED, DRAINING},
    FAILED: {LOADING},
    DROPPED: {LOADING},
}

weights = st.sampled_from([1, 0, None])
models = st.fixed_dictionaries(
    {},
    optional={name: st.dictionaries(st.sampled_from("12"), weights, min_size=1) for name in ("a", "b")},
)
picks = st.integers(0, 1000)


class CatalogMachine(RuleBasedStateMachine):
    """The catalog, and a model of what it must be like."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.loads = Loads()
        self.applying = []
        self.number = 0
        self.in_force = snapshot(0, {})
        self.requests = []  # (handle, whether it was chosen by a route)
        self.states = {}
        self.gears = {}
        self.catalog = Catalog(
            loader=Loader(
                resolve=self.loads.resolve,
                load=self.loads.load,
                pack=self.loads.pack,
                executor=self.loads,
                clock=self.clock.time,
                load_seconds=20,
            ),
            publish=self.publish,
            report=self.report,
            drain_seconds=10,
            aside=at_once,
        )

    # ------------------------------------------------------ what the catalog tells

    def publish(self, table) -> None:
        wanted = next(snap for snap, _ in self.applying if snap.version == table.version)
        self.in_force = wanted

    def report(self, model, version, state, reason, gear) -> None:
        before = self.states.get((model, version))
        self.states[model, version] = state
        geared = self.gears.get((model, version))
        self.gears[model, version] = gear
        if model == "a":
            assert state in FOLLOWS[before], f"{before} -> {state} ({reason})"
            if before == state == SERVING:
                assert gear is not geared or reason, "told twice"
            if state == READY:
                assert gear is Gear.MAPPED, "without routes a version holds no packed weights"
            held = [
                by_route
                for handle, by_route in self.requests
                if (handle.name, handle.version) == ("a", version)
            ]
            if before == DRAINING and state == READY:
                assert not any(held), "retired while a request that chose it by route is unanswered"
            if state == DROPPED:
                assert not held, "dropped while a request holds it"

    # ----------------------------------------------------------- what may happen

    @rule(wanted=models, digest=st.sampled_from(["d", "e"]))
    def apply(self, wanted, digest) -> None:
        self.number += 1
        digests = {("b", version): digest for version in "12"}
        snap = snapshot(self.number, wanted, digests)
        self.applying.append((snap, self.clock.create_task(self.catalog.apply(snap))))

    @rule(wanted=models)
    def apply_and_load(self, wanted) -> None:
        """The usual case, so that the others meet something in memory."""
        self.apply(wanted, "d")
        self.clock.settle()
        while loads := sorted(key for key in self.loads.waiting if key[-1] != "packed"):
            self.loads.finish(loads[0])
            self.clock.settle()

    @rule()
    def settle(self) -> None:
        self.clock.settle()

    @rule(turns=st.integers(1, 3))
    def run_a_little(self, turns) -> None:
        self.clock.settle(turns)

    @precondition(lambda self: self.applying)
    @rule(pick=picks)
    def cancel_an_apply(self, pick) -> None:
        self.applying[pick % len(self.applying)][1].cancel()

    @precondition(lambda self: self.loads.waiting)
    @rule(pick=picks)
    def load_succeeds(self, pick) -> None:
        self.loads.finish(sorted(self.loads.waiting)[pick % len(self.loads.waiting)])

    @precondition(lambda self: self.loads.waiting)
    @rule(pick=picks)
    def load_fails(self, pick) -> None:
        self.loads.refuse(sorted(self.loads.waiting)[pick % len(self.loads.waiting)])

    @rule(seconds=st.sampled_from([1, 15, 70]))
    def time_passes(self, seconds) -> None:
        self.clock.advance(seconds)

    @rule(
        model=st.sampled_from("ab"),
        version=st.sampled_from(["", "", "1", "2"]),
        caller=st.text("xy", max_size=3),
    )
    def request(self, model, version, caller) -> None:
        try:
            choice = self.catalog.table.choose(model, version, caller, "r")
        except NotFound:
            return
        choice.model.in_flight += 1
        self.requests.append((choice.model, choice.variant != ASKED))

    @precondition(lambda self: self.requests)
    @rule(pick=picks)
    def answer(self, pick) -> None:
        handle, _ = self.requests.pop(pick % len(self.requests))
        handle.release()

    # ------------------------------------------------------------- what must hold

    @invariant()
    def exactly_one_snapshot_is_in_force(self) -> None:
        table = self.catalog.table
        assert table.version == self.in_force.version == self.catalog.snapshot_version
        held = {
            (name, version): choice.model.digest
            for name, routes in table.models.items()
            for version, choice in routes.versions.items()
        }
        wanted = {
            (model.name, version.version): version.digest
            for model in self.in_force.models
            for version in model.versions
        }
        assert held == wanted
        for model in self.in_force.models:
            routed = {choice.model.version for _, choice in table.models[model.name].shares}
            assert routed == {route.version for route in model.routes if route.weight}

    @invariant()
    def traffic_reaches_only_what_is_loaded(self) -> None:
        for routes in self.catalog.table.models.values():
            for choice in routes.versions.values():
                assert choice.model._session is not None
        for handle, _ in self.requests:
            assert handle._session is not None

    @invariant()
    def a_route_leads_to_one_handle_whatever_was_asked(self) -> None:
        for routes in self.catalog.table.models.values():
            for _, choice in routes.shares:
                assert choice.model is routes.versions[choice.model.version].model

    @invariant()
    def every_handle_of_a_version_runs_in_its_gear(self) -> None:
        for holding in self.catalog._holdings():
            if holding.loaded is None:
                continue
            packed = holding._packed
            session = holding.loaded.session if packed is None else packed.session
            for handle in (*holding.retired, holding.handle()):
                assert handle._session is session
                assert (handle.latency is holding._first_latency) == (packed is None)

    @invariant()
    def only_what_takes_traffic_is_packed_and_all_of_it_is_or_will_be(self) -> None:
        for holding in self.catalog._holdings():
            state = holding.life.state
            if holding.gear is Gear.PACKED:
                assert state in (SERVING, DRAINING)
            if state == SERVING and holding.gear is Gear.MAPPED:
                assert holding.packing is not None or holding.cannot_pack
            if state != SERVING:
                assert holding.packing is None

    @invariant()
    def packed_weights_go_with_their_gear(self) -> None:
        held = {
            (*holding.key, "packed") for holding in self.catalog._holdings() if holding.gear is Gear.PACKED
        }
        if {session.key for session in self.loads.sessions if session.key[-1] == "packed"} - held:
            self.clock.settle()
            gc.collect()  # what a cancelled task's traceback held
            held = {
                (*holding.key, "packed")
                for holding in self.catalog._holdings()
                if holding.gear is Gear.PACKED
            }
            assert {session.key for session in self.loads.sessions if session.key[-1] == "packed"} <= held

    @invariant()
    def nothing_is_in_memory_twice(self) -> None:
        twice = [
            key for key, count in Counter(session.key for session in self.loads.sessions).items() if count > 1
        ]
        if twice:
            gc.collect()  # what a cancelled task's traceback held
            held = Counter(session.key for session in self.loads.sessions)
            assert not [key for key in twice if held[key] > 1]

    @invariant()
    def an_apply_ends_in_one_of_its_ways(self) -> None:
        for snap, task in self.applying:
            if task.done() and not task.cancelled() and (error := task.exception()):
                assert isinstance(error, SnapshotRefused | Superseded), (snap, error)
        self.applying = [(snap, task) for snap, task in self.applying if not task.done()]

    def teardown(self) -> None:
        """Everybody is answered and an empty snapshot comes: nothing is left, and nothing still runs."""
        for handle, _ in self.requests:
            handle.release()
        self.requests.clear()
        self.apply({}, "d")
        self.clock.settle()
        while self.loads.waiting:
            self.load_succeeds(0)
        self.clock.settle()
        assert self.catalog.snapshot_version == self.number
        self.an_apply_ends_in_one_of_its_ways()
        assert not self.applying
        assert not list(self.catalog._holdings())
        assert all(state in (DROPPED, FAILED) for state in self.states.values())
        self.clock.run_until_complete(self.catalog.close())
        self.clock.end()
        gc.collect()
        assert not list(self.loads.sessions)


CatalogMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestCatalog = CatalogMachine.TestCase
