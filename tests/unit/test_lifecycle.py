"""The state machine of a version: which steps are allowed and where they lead."""

from __future__ import annotations

import pytest
from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DRAINING,
    VERSION_STATE_DROPPED,
    VERSION_STATE_FAILED,
    VERSION_STATE_READY,
    VERSION_STATE_SERVING,
)
from hedgerow_server.engine.lifecycle import Lifecycle, LifecycleError, Place


def warm() -> Lifecycle:
    life = Lifecycle()
    life.warmed()
    return life


@pytest.mark.parametrize("place", Place)
def test_traffic_never_reaches_a_version_that_is_not_warm(place):
    with pytest.raises(LifecycleError):
        Lifecycle().placed(place)


def test_a_failed_version_never_comes_back():
    life = Lifecycle()
    life.failed()
    assert life.state == VERSION_STATE_FAILED
    for step in (life.warmed, life.abandoned, life.drained, lambda: life.placed(Place.ROUTED)):
        with pytest.raises(LifecycleError):
            step()


def test_losing_its_routes_it_drains_and_stays_ready():
    life = warm()
    life.placed(Place.ROUTED)
    assert life.state == VERSION_STATE_SERVING
    life.placed(Place.KEPT)
    assert life.state == VERSION_STATE_DRAINING
    life.drained()
    assert life.state == VERSION_STATE_READY


def test_omitted_it_drains_and_is_dropped():
    life = warm()
    life.placed(Place.ROUTED)
    life.placed(Place.OMITTED)
    assert life.state == VERSION_STATE_DRAINING
    life.drained()
    assert life.state == VERSION_STATE_DROPPED


def test_omitted_while_it_answers_nobody_it_still_drains_first():
    """Callers that ask by number may hold it."""
    life = warm()
    life.placed(Place.KEPT)
    life.placed(Place.OMITTED)
    assert life.state == VERSION_STATE_DRAINING


def test_routed_again_while_it_drains_it_serves_at_once():
    life = warm()
    life.placed(Place.ROUTED)
    life.placed(Place.OMITTED)
    life.placed(Place.ROUTED)
    assert life.state == VERSION_STATE_SERVING


def test_the_last_place_decides_where_a_drain_ends():
    life = warm()
    life.placed(Place.ROUTED)
    life.placed(Place.OMITTED)
    life.placed(Place.KEPT)
    life.drained()
    assert life.state == VERSION_STATE_READY


def test_what_was_published_cannot_be_abandoned():
    life = warm()
    life.placed(Place.ROUTED)
    with pytest.raises(LifecycleError):
        life.abandoned()
