"""Versions that lose their routes: when they are retired and dropped, and what if they come back."""

from __future__ import annotations

import pytest
from catalog_server import opening
from fleet import snapshot
from hedgerow_server.engine.desired import SnapshotRefused


@pytest.fixture
def server():
    with opening() as server:
        yield server


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
