"""A snapshot is in force whole or not at all: what is loaded, refused and given up, case by case."""

from __future__ import annotations

import pytest
from catalog_server import Server, opening
from fleet import CancelledAt, InstantLoads, snapshot
from hedgerow_protos.hedgerow_control_pb2 import Route
from hedgerow_server.engine.catalog import Superseded
from hedgerow_server.engine.desired import SnapshotRefused
from hedgerow_server.engine.files import ArtifactError
from hedgerow_server.errors import NotFound


@pytest.fixture
def server():
    with opening() as server:
        yield server


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
