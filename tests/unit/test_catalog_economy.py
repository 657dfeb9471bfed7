"""What may answer under pressure is served whatever its weight, and has a price."""

from __future__ import annotations

import pytest
from catalog_server import opening
from fleet import snapshot
from hedgerow_protos.hedgerow_control_pb2 import Route


@pytest.fixture
def server():
    with opening() as server:
        yield server


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
