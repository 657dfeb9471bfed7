"""Two gears: what serves from mapped weights, and when from packed ones."""

from __future__ import annotations

import gc

import pytest
from catalog_server import opening
from fleet import Loads, snapshot


@pytest.fixture
def geared():
    loads = Loads()
    with opening(loads, pack=loads.pack) as server:
        yield server


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
