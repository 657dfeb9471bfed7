"""The catalog, case by case, with loads and time under the test's control."""

from __future__ import annotations

import asyncio
import gc

import pytest
from fleet import CancelledAt, Clock, InstantLoads, Loads, at_once, snapshot
from hedgerow_protos.hedgerow_control_pb2 import Route, VersionState
from hedgerow_server.engine.catalog import Catalog, Superseded
from hedgerow_server.engine.desired import SnapshotRefused
from hedgerow_server.engine.files import ArtifactError
from hedgerow_server.engine.loader import Loader
from hedgerow_server.errors import NotFound


class Server:
    """A catalog and everything it speaks to."""

    def __init__(self, loads: Loads | None = None, **loader) -> None:
        self.clock = Clock()
        self.loads = loads or Loads()
        self.reports: list[str] = []
        self.tables = []
        self.tells_gears = "pack" in loader
        options = {"resolve": self.loads.resolve, "clock": self.clock.time} | loader
        self.catalog = Catalog(
            loader=Loader(load=self.loads.load, executor=self.loads, **options),
            publish=self.tables.append,
            report=self.report,
            drain_seconds=75.0,
            aside=at_once,
        )

    def report(self, model, version, state, reason, gear) -> None:
        name = VersionState.Name(state).removeprefix("VERSION_STATE_")
        if self.tells_gears and gear:
            name = f"{name} {gear.value}"
        self.reports.append(f"{model}@{version} {name}" + (f": {reason}" if reason else ""))

    def apply(self, wanted) -> asyncio.Task[None]:
        task = self.clock.create_task(self.catalog.apply(wanted))
        self.clock.settle()
        return task

    def finish(self, model: str, version: str, digest: str = "d") -> None:
        self.loads.finish((model, version, digest))
        self.clock.settle()

    def load_and_apply(self, wanted) -> None:
        """Applies a snapshot; every load succeeds."""
        task = self.apply(wanted)
        while self.loads.waiting:
            self.finish(*next(iter(self.loads.waiting)))
        task.result()

    def ask(self, model: str, version: str = ""):
        """A request that is under way; end it with `.release()`."""
        handle = self.catalog.table.choose(model, version, "", "r").model
        handle.in_flight += 1
        return handle

    def news(self) -> list[str]:
        news, self.reports[:] = list(self.reports), []
        return news

    def in_memory(self) -> list[str]:
        gc.collect()
        return sorted("@".join(session.key[:2]) for session in self.loads.sessions)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.clock.run_until_complete(server.catalog.close())
    server.clock.end()


def test_traffic_waits_until_every_version_is_warm(server):
    task = server.apply(snapshot(1, {"m": {"1": 100}, "n": {"1": 100}}))
    server.finish("m", "1")
    assert not server.tables
    assert not task.done()
    with pytest.raises(NotFound):
        server.ask("m")
    server.finish("n", "1")
    assert task.done()
    assert server.ask("m").version == "1"
    assert server.news() == [
        "m@1 LOADING",
        "n@1 LOADING",
        "m@1 READY",
        "n@1 READY",
        "m@1 SERVING",
        "n@1 SERVING",
    ]


def test_a_failed_version_leaves_the_old_snapshot_whole(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    server.news()
    task = server.apply(snapshot(2, {"m": {"2": 100}, "n": {"3": 100}}))
    server.finish("m", "2")
    server.loads.refuse(("n", "3", "d"), "the file is truncated")
    server.clock.settle()

    refusal = task.exception()
    assert isinstance(refusal, SnapshotRefused)
    assert (refusal.model, refusal.version, refusal.reason) == ("n", "3", "the file is truncated")
    assert not refusal.transient
    assert server.catalog.snapshot_version == 1
    assert len(server.tables) == 1
    assert server.in_memory() == ["m@1"]
    assert server.news() == [
        "m@2 LOADING",
        "n@3 LOADING",
        "m@2 READY",
        "n@3 FAILED: the file is truncated",
        "m@2 DROPPED",
    ]


def test_what_failed_is_not_loaded_again_at_once(server):
    wanted = snapshot(1, {"m": {"1": 100}})
    first = server.apply(wanted)
    server.loads.refuse(("m", "1", "d"))
    server.clock.settle()
    assert isinstance(first.exception(), SnapshotRefused)
    for _ in range(100):
        assert "not tried again for" in str(server.apply(wanted).exception())
    assert len(server.loads.begun) == 1
    server.clock.advance(60)
    server.load_and_apply(wanted)
    assert server.catalog.snapshot_version == 1


def test_files_that_cannot_be_fetched_may_be_there_later():
    async def unreachable(name, version):
        raise ArtifactError("the control plane is away")

    server = Server(resolve=unreachable)
    task = server.apply(snapshot(1, {"m": {"1": 100}}))
    assert task.exception().transient
    assert server.news()[-1] == "m@1 FAILED: the control plane is away"


def test_a_load_that_hangs_is_refused_and_keeps_nobody_from_loading(server):
    task = server.apply(snapshot(1, {"m": {"1": 100, "2": 0}}))
    server.clock.advance(120)
    assert "did not load within 120 s" in str(task.exception())
    assert server.in_memory() == []
    server.load_and_apply(snapshot(2, {"m": {"3": 100}}))
    assert server.ask("m").version == "3"


def test_two_versions_load_at_a_time(server):
    task = server.apply(snapshot(1, {"m": {"1": 1, "2": 1, "3": 1}}))
    assert len(server.loads.waiting) == 2
    server.finish("m", "1")
    assert set(server.loads.waiting) == {("m", "2", "d"), ("m", "3", "d")}
    task.cancel()


def test_closing_ends_an_apply_that_is_under_way(server):
    task = server.apply(snapshot(1, {"m": {"1": 1}}))
    server.clock.run_until_complete(server.catalog.close())
    server.clock.settle()
    assert isinstance(task.exception(), Superseded)
    assert not server.tables


def test_what_is_in_memory_is_never_loaded_twice(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    server.load_and_apply(snapshot(2, {"m": {"1": 50, "2": 50}}))
    server.load_and_apply(snapshot(3, {"m": {"1": 0, "2": 100}}))
    server.load_and_apply(snapshot(2, {"m": {"1": 100, "2": 0}}))
    assert server.loads.begun == [("m", "1", "d"), ("m", "2", "d")]
    assert server.catalog.snapshot_version == 2


def test_a_newer_snapshot_takes_over_and_shares_what_is_loading(server):
    first = server.apply(snapshot(1, {"m": {"1": 100, "2": 0}}))
    second = server.apply(snapshot(2, {"m": {"2": 100, "3": 0}}))
    assert isinstance(first.exception(), Superseded)
    # Given up, not finished: its place is free, its result will be dropped.
    server.loads.finish(("m", "1", "d"))
    server.finish("m", "2")
    server.finish("m", "3")
    second.result()
    assert server.loads.begun == [("m", "1", "d"), ("m", "2", "d"), ("m", "3", "d")]
    assert server.in_memory() == ["m@2", "m@3"]
    assert "m@1 DROPPED" in server.news()


def test_a_newer_snapshot_that_is_malformed_takes_over_nothing(server):
    first = server.apply(snapshot(1, {"m": {"1": 100}}))
    assert isinstance(server.apply(snapshot(2, {"m": {"x": 100}})).exception(), SnapshotRefused)
    server.finish("m", "1")
    first.result()
    assert server.catalog.snapshot_version == 1


def test_a_version_is_dropped_when_its_last_request_is_answered(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    requests = [server.ask("m"), server.ask("m", "1")]
    server.news()
    server.load_and_apply(snapshot(2, {"m": {"2": 100}}))
    assert server.catalog.snapshot_version == 2  # in force; nobody waited for the drain
    assert server.news()[-1] == "m@1 DRAINING"
    requests[0].release()
    server.clock.settle()
    assert server.in_memory() == ["m@1", "m@2"]
    assert not server.news()
    requests[1].release()
    server.clock.settle()
    assert server.news() == ["m@1 DROPPED"]
    del requests
    assert server.in_memory() == ["m@2"]


def test_nobody_in_flight_drops_at_once_but_still_says_draining(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    server.news()
    server.load_and_apply(snapshot(2, {}))
    assert server.news() == ["m@1 DRAINING", "m@1 DROPPED"]
    assert server.in_memory() == []


def test_a_kept_version_is_retired_though_callers_go_on_asking_for_it_by_number(server):
    """Its count never reaches 0; what chose it by the old route is counted apart."""
    server.load_and_apply(snapshot(1, {"m": {"1": 100, "2": 0}}))
    by_route, asked = server.ask("m"), server.ask("m", "1")
    server.news()
    server.load_and_apply(snapshot(2, {"m": {"1": 0, "2": 100}}))
    assert server.news() == ["m@1 DRAINING", "m@2 SERVING"]
    later = server.ask("m", "1")
    asked.release()
    server.clock.settle()
    assert not server.news()
    by_route.release()
    server.clock.settle()
    assert later.in_flight == 1
    assert server.news() == ["m@1 READY"]


def test_its_statistics_go_on_when_a_version_is_retired_and_serves_again(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100, "2": 0}}))
    server.ask("m").statistics.answered(0, 1000)
    server.load_and_apply(snapshot(2, {"m": {"1": 0, "2": 100}}))
    server.load_and_apply(snapshot(3, {"m": {"1": 100, "2": 0}}))
    server.ask("m").statistics.answered(0, 1000)
    assert server.catalog.table.choose("m", "1", "", "").model.statistics.requests == {0: 2}


def test_a_version_that_comes_back_while_it_drains_is_not_loaded_again(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    request = server.ask("m")
    server.load_and_apply(snapshot(2, {"m": {"2": 100}}))
    server.news()
    server.load_and_apply(snapshot(3, {"m": {"1": 100}}))
    assert "m@1 SERVING" in server.news()
    request.release()
    server.clock.settle()
    assert len(server.loads.begun) == 2
    assert server.ask("m").version == "1"
    assert server.in_memory() == ["m@1"]


def test_a_version_that_comes_back_unrouted_is_still_retired_only_after_its_old_requests(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    by_route = server.ask("m")
    server.load_and_apply(snapshot(2, {"m": {"2": 100}}))
    server.load_and_apply(snapshot(3, {"m": {"1": 0, "2": 100}}))
    server.news()
    asked = server.ask("m", "1")
    assert not server.news()
    by_route.release()
    server.clock.settle()
    assert asked.in_flight == 1
    assert server.news() == ["m@1 READY"]


def test_a_rescued_version_goes_on_leaving_when_the_snapshot_that_wants_it_is_refused(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    request = server.ask("m")
    server.load_and_apply(snapshot(2, {"m": {"2": 100}}))
    task = server.apply(snapshot(3, {"m": {"1": 100, "3": 0}}))
    request.release()
    server.clock.settle()
    assert server.in_memory() == ["m@1", "m@2"]  # drained, but spoken for
    server.loads.refuse(("m", "3", "d"))
    server.clock.settle()
    assert isinstance(task.exception(), SnapshotRefused)
    del request
    assert server.in_memory() == ["m@2"]


def test_a_rescued_version_is_among_the_models_while_the_snapshot_that_wants_it_loads(server):
    """Whoever sums up the counters of what is in memory would else count them twice when it is back."""
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    request = server.ask("m")
    server.load_and_apply(snapshot(2, {"m": {"2": 100}}))
    server.apply(snapshot(3, {"m": {"1": 100, "3": 0}}))
    assert sorted(model.version for model in server.catalog.models()) == ["1", "2"]
    request.release()
    server.finish("m", "3")
    assert sorted(model.version for model in server.catalog.models()) == ["1", "3"]


def test_another_digest_replaces_a_version_and_the_fleet_hears_of_one_only(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}, {("m", "1"): "old"}))
    request = server.ask("m")
    server.news()
    server.load_and_apply(snapshot(2, {"m": {"1": 100}}, {("m", "1"): "new"}))
    assert server.ask("m").digest == "new"
    assert request.digest == "old"
    request.release()
    server.clock.settle()
    assert server.news() == ["m@1 SERVING"]
    del request
    assert server.in_memory() == ["m@1"]


def test_a_drain_that_does_not_end_is_told_and_drops_nothing(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))
    request = server.ask("m")
    server.load_and_apply(snapshot(2, {}))
    server.news()
    server.clock.advance(75)
    assert server.news() == ["m@1 DRAINING: 1 requests still hold it after 75 s"]
    assert server.in_memory() == ["m@1"]
    request.release()
    server.clock.settle()
    assert server.news() == ["m@1 DROPPED"]


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (snapshot(1, {"m": {"01": 1}}), "not a positive integer"),
        (snapshot(1, {"m": {"": 1}}), "not a positive integer"),
        (snapshot(1, {"m": {"٣": 1}}), "not a positive integer"),  # a decimal digit, but not ASCII
        (snapshot(1, {"": {"1": 1}}), "empty"),
        (snapshot(1, {"a\0b": {"1": 1}}), "not printable"),
        (snapshot(1, {"m" * 300: {"1": 1}}), "longer than 256"),
    ],
)
def test_a_malformed_snapshot_is_refused_before_anything_is_loaded(server, wanted, text):
    assert text in str(server.apply(wanted).exception())
    assert not server.loads.begun


def test_a_route_to_nowhere_is_refused(server):
    wanted = snapshot(1, {"m": {"1": 100}})
    wanted.models[0].routes.append(Route(variant="challenger", version="2", weight=1))
    refusal = server.apply(wanted).exception()
    assert (refusal.model, refusal.version) == ("m", "2")


@pytest.mark.parametrize("twice", ["model", "version"])
def test_what_is_listed_twice_is_refused(server, twice):
    wanted = snapshot(1, {"m": {"1": 100}})
    listed = wanted.models if twice == "model" else wanted.models[0].versions
    listed.append(listed[0])
    assert "listed twice" in str(server.apply(wanted).exception())


def test_a_table_that_cannot_be_published_changes_nothing(server):
    server.load_and_apply(snapshot(1, {"m": {"1": 100}}))

    def fail(table):
        raise RuntimeError("defect")

    server.catalog._publish = fail
    server.news()
    task = server.apply(snapshot(2, {"m": {"2": 100}}))
    server.finish("m", "2")
    assert isinstance(task.exception(), RuntimeError)
    assert server.catalog.snapshot_version == 1
    assert server.in_memory() == ["m@1"]
    assert server.news() == ["m@2 LOADING", "m@2 READY", "m@2 DROPPED"]


# Two gears.


@pytest.fixture
def geared():
    loads = Loads()
    server = Server(loads, pack=loads.pack)
    yield server
    server.clock.run_until_complete(server.catalog.close())
    server.clock.end()


def load(server, wanted) -> None:
    """Applies a snapshot; every load succeeds, and what is packed behind it hangs."""
    task = server.apply(wanted)
    while keys := [key for key in server.loads.waiting if key[-1] != "packed"]:
        server.finish(*keys[0])
    task.result()


def pack(server, model: str, version: str) -> None:
    server.loads.finish((model, version, "d", "packed"))
    server.clock.settle()


def gear_of(server, handle) -> str:
    """In which session a request's run would happen now."""
    return "packed" if handle._session.key[-1] == "packed" else "mapped"


def test_traffic_is_answered_mapped_at_once_and_packed_when_that_is_warm(geared):
    load(geared, snapshot(1, {"m": {"1": 100}}))
    waiting = geared.ask("m")
    assert gear_of(geared, waiting) == "mapped"
    pack(geared, "m", "1")
    assert gear_of(geared, waiting) == gear_of(geared, geared.ask("m")) == "packed"
    assert geared.news() == ["m@1 LOADING", "m@1 READY mapped", "m@1 SERVING mapped", "m@1 SERVING packed"]


def test_a_run_under_way_ends_in_the_session_it_began_in(geared):
    load(geared, snapshot(1, {"m": {"1": 100}}))
    running = geared.ask("m")._session
    pack(geared, "m", "1")
    load(geared, snapshot(2, {"m": {"1": 0, "2": 100}}))
    assert running.key == ("m", "1", "d")
    assert running in geared.loads.sessions


def test_each_gear_learns_its_own_run_times(geared):
    load(geared, snapshot(1, {"m": {"1": 100, "2": 0}}))
    handle = geared.catalog.table.choose("m", "1", "", "").model
    handle.latency.observe(1, 0.5)
    mapped = handle.latency.expect(1)
    pack(geared, "m", "1")
    assert handle.latency.expect(1) == 1e-6  # as measured when it was packed
    load(geared, snapshot(2, {"m": {"1": 0, "2": 100}}))
    assert geared.catalog.table.choose("m", "1", "", "").model.latency.expect(1) == mapped


def test_without_routes_a_version_gives_its_packed_weights_back_once_its_last_request_is_answered(geared):
    load(geared, snapshot(1, {"m": {"1": 100, "2": 0}}))
    pack(geared, "m", "1")
    request = geared.ask("m")
    load(geared, snapshot(2, {"m": {"1": 0, "2": 100}}))
    assert gear_of(geared, request) == "packed"
    geared.news()
    request.release()
    geared.clock.settle()
    assert geared.news() == ["m@1 READY mapped"]
    gc.collect()
    assert {session.key for session in geared.loads.sessions} == {("m", "1", "d"), ("m", "2", "d")}


def test_with_routes_again_it_serves_mapped_at_once_and_is_packed_anew(geared):
    load(geared, snapshot(1, {"m": {"1": 100, "2": 0}}))
    pack(geared, "m", "1")
    load(geared, snapshot(2, {"m": {"1": 0, "2": 100}}))
    load(geared, snapshot(3, {"m": {"1": 100, "2": 0}}))
    assert gear_of(geared, geared.ask("m")) == "mapped"
    pack(geared, "m", "1")
    assert gear_of(geared, geared.ask("m")) == "packed"
    assert geared.loads.begun.count(("m", "1", "d")) == 1


def test_a_version_that_cannot_be_packed_goes_on_mapped_and_says_so(geared):
    load(geared, snapshot(1, {"m": {"1": 100}}))
    geared.news()
    geared.loads.refuse(("m", "1", "d", "packed"), "no memory")
    geared.clock.settle()
    assert gear_of(geared, geared.ask("m")) == "mapped"
    assert geared.news() == ["m@1 SERVING mapped: its weights stay mapped: no memory"]
    assert geared.catalog.packing_failures == 1
    load(geared, snapshot(2, {"m": {"1": 100}}))
    assert not geared.loads.waiting  # not tried again at every snapshot


def test_packing_that_hangs_is_given_up_and_the_next_version_is_packed(geared):
    load(geared, snapshot(1, {"m": {"1": 100}, "n": {"1": 100}}))
    geared.clock.advance(120)
    geared.clock.advance(0)
    assert geared.catalog.packing_failures == 1
    pack(geared, "n", "1")
    assert gear_of(geared, geared.ask("n")) == "packed"


def test_what_loses_its_routes_while_it_is_packed_stays_mapped(geared):
    load(geared, snapshot(1, {"m": {"1": 100}}))
    load(geared, snapshot(2, {"m": {"1": 0, "2": 100}}))
    pack(geared, "m", "1")
    assert ("m", "1", "d", "packed") not in {session.key for session in geared.loads.sessions}
    assert gear_of(geared, geared.ask("m", "1")) == "mapped"


def test_requests_of_an_earlier_table_change_gear_with_the_version(geared):
    load(geared, snapshot(1, {"m": {"1": 100, "2": 0}}))
    earlier = geared.ask("m")
    load(geared, snapshot(2, {"m": {"1": 0, "2": 100}}))
    load(geared, snapshot(3, {"m": {"1": 100, "2": 0}}))
    for _ in range(2):  # that of version 2 was given up
        geared.loads.finish(next(key for key in list(geared.loads.waiting) if key[-1] == "packed"))
        geared.clock.settle()
    assert geared.ask("m") is not earlier
    assert gear_of(geared, earlier) == gear_of(geared, geared.ask("m")) == "packed"


def test_one_version_is_packed_at_a_time(geared):
    load(geared, snapshot(1, {"m": {"1": 1, "2": 1}}))
    assert [key for key in geared.loads.waiting if key[-1] == "packed"] == [("m", "1", "d", "packed")]
    pack(geared, "m", "1")
    assert list(geared.loads.waiting) == [("m", "2", "d", "packed")]


def cancel_apply(run) -> bool:
    """Runs an apply that is cancelled by `run`; checks the whole; returns whether it was in time."""
    old, new = snapshot(1, {"m": {"1": 100}}), snapshot(2, {"m": {"1": 0, "2": 100}, "n": {"1": 1}})
    server = Server(InstantLoads(), places=1)
    server.apply(old).result()
    cancelled = run(server, new)
    if cancelled:
        assert server.catalog.snapshot_version == 1
        assert server.in_memory() == ["m@1"]
    assert not server.catalog._staged
    assert server.catalog._overtaken is None
    server.apply(new).result()
    assert server.catalog.snapshot_version == 2
    assert server.in_memory() == ["m@1", "m@2", "n@1"]
    server.clock.run_until_complete(server.catalog.close())
    server.clock.end()
    return cancelled


def test_apply_may_be_cancelled_at_every_await():
    """Whole afterwards: all or nothing is in force, no session is lost, and the next apply succeeds."""
    suspension = 0

    def at_an_await(server, new) -> bool:
        async def once():
            await CancelledAt(server.catalog.apply(new), suspension)

        task = server.clock.create_task(once())
        server.clock.settle()
        return task.cancelled()

    while True:
        suspension += 1
        if not cancel_apply(at_an_await):
            break
    assert suspension == 3  # one await a load, and one apply that ran through


def test_apply_may_be_cancelled_at_every_turn_of_the_loop():
    """The loads under it are at a different await each time."""
    turns = -1

    def after_turns(server, new) -> bool:
        task = server.clock.create_task(server.catalog.apply(new))
        server.clock.settle(turns)
        task.cancel()
        server.clock.settle()
        return task.cancelled()

    while True:
        turns += 1
        if not cancel_apply(after_turns):
            break
    assert turns > 5


def with_economy(number: int, *, relieves: bool, cost: str = "0.5"):
    """Version 1 is champion, version 2 the economy variant without any weight."""
    wanted = snapshot(number, {"m": {"1": 100, "2": None}})
    (model,) = wanted.models
    model.routes.append(Route(variant="economy", version="2", weight=0))
    model.versions[0].serving.overload.economy_under_pressure = relieves
    model.versions[1].tags["cost_per_1k"] = cost
    return wanted


@pytest.mark.parametrize(("relieves", "state"), [(True, "SERVING"), (False, "READY")])
def test_what_may_answer_under_pressure_is_served_whatever_its_weight(server, relieves, state):
    """Its packed weights are there before the pressure is, and its replies end before it says so."""
    server.load_and_apply(with_economy(1, relieves=relieves))
    assert f"m@2 {state}" in server.news()
    choice = server.catalog.table.economy_under_pressure("m")
    assert (choice is not None) is relieves
    if choice is None:
        return
    choice.model.in_flight += 1
    server.load_and_apply(snapshot(2, {"m": {"1": 100}}))
    assert server.news() == ["m@2 DRAINING"]
    choice.model.release()
    server.clock.settle()
    assert server.news() == ["m@2 DROPPED"]


def test_a_new_price_loads_nothing_and_counts_from_then_on(server):
    server.load_and_apply(with_economy(1, relieves=True))
    tally = server.catalog.table.models["m"].variants["economy"].tally
    server.tables[-1].reprice()
    tally.predictions += 1000
    begun = len(server.loads.begun)
    server.load_and_apply(with_economy(2, relieves=True, cost="0.25"))
    server.tables[-1].reprice()
    tally.predictions += 1000
    assert len(server.loads.begun) == begun
    assert server.catalog.table.models["m"].variants["economy"].tally is tally
    assert tally.spent().cost == 0.75


def test_a_price_that_is_none_is_no_reason_to_refuse_a_snapshot(server):
    server.load_and_apply(with_economy(1, relieves=True, cost="cheap"))
    assert server.catalog.table.models["m"].costs == {}
