"""Which version answers: sticky, by weight, and never a version without traffic."""

from __future__ import annotations

from collections import Counter

import pytest
from fakes_engine import model
from hedgerow_protos.hedgerow_control_pb2 import Route
from hedgerow_server.errors import NotFound
from hedgerow_server.routing.table import RouteTable
from hypothesis import given, settings
from hypothesis import strategies as st

VERSIONS = {str(i): model("several", version=str(i)) for i in range(1, 5)}
CALLERS = [f"caller {i}" for i in range(2000)]


def routed(*routes: tuple[str, str, int]) -> RouteTable:
    """A table of model m with routes of (variant, version, weight)."""
    made = [Route(variant=variant, version=version, weight=weight) for variant, version, weight in routes]
    return RouteTable.build(1, {"m": VERSIONS}, {"m": made})


def chosen(table: RouteTable) -> dict[str, str]:
    """Caller -> variant."""
    return {caller: table.choose("m", "", caller, "some request").variant for caller in CALLERS}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.integers(0, 100))
def test_a_growing_challenger_takes_callers_and_moves_nobody_else(one: int, other: int) -> None:
    """Who has the challenger keeps it while its weight grows; nobody else changes."""
    small, large = sorted((one, other))
    before = chosen(routed(("champion", "1", 100 - small), ("challenger", "2", small)))
    after = chosen(routed(("champion", "1", 100 - large), ("challenger", "2", large)))
    for caller in CALLERS:
        assert after[caller] in {before[caller], "challenger"}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 90), st.integers(0, 90))
def test_beside_an_economy_variant_a_growing_challenger_keeps_its_callers(one: int, other: int) -> None:
    """Whoever had the challenger has it still, whatever else there is."""
    small, large = sorted((one, other))

    def split(weight: int) -> dict[str, str]:
        return chosen(
            routed(("economy", "3", 10), ("champion", "1", 90 - weight), ("challenger", "2", weight))
        )

    before, after = split(small), split(large)
    assert all(after[caller] == "challenger" for caller in CALLERS if before[caller] == "challenger")


@pytest.mark.parametrize("weights", [(90, 10), (50, 50), (1, 99), (7, 3), (100, 0)])
def test_shares_are_those_of_the_weights(weights: tuple[int, int]) -> None:
    """Within four standard deviations of a fair draw; hashing is fixed, so this never flickers."""
    champion, challenger = weights
    counts = Counter(chosen(routed(("champion", "1", champion), ("challenger", "2", challenger))).values())
    share = challenger / (champion + challenger)
    slack = 4 * (len(CALLERS) * share * (1 - share)) ** 0.5
    assert abs(counts["challenger"] - len(CALLERS) * share) <= slack


def test_a_caller_keeps_its_variant_in_another_table_and_whatever_order_the_routes_have() -> None:
    routes = [("economy", "3", 10), ("challenger", "2", 20), ("champion", "1", 70)]
    assert chosen(routed(*routes)) == chosen(routed(*reversed(routes)))


def test_unknown_callers_are_spread_by_their_request() -> None:
    table = routed(("champion", "1", 50), ("challenger", "2", 50))
    variants = Counter(table.choose("m", "", "", f"request {i}").variant for i in range(2000))
    assert 900 < variants["challenger"] < 1100


def test_two_models_do_not_split_their_callers_alike() -> None:
    """Else the callers of one challenger would be those of every challenger."""
    routes = [
        Route(variant="champion", version="1", weight=50),
        Route(variant="challenger", version="2", weight=50),
    ]
    table = RouteTable.build(1, {"m": VERSIONS, "n": VERSIONS}, {"m": routes, "n": routes})
    same = sum(
        table.choose("m", "", caller, "").variant == table.choose("n", "", caller, "").variant
        for caller in CALLERS
    )
    assert 900 < same < 1100


def test_a_shadow_and_a_weight_of_zero_are_never_chosen() -> None:
    table = routed(("champion", "1", 1), ("challenger", "2", 0), ("shadow", "3", 99))
    assert set(chosen(table).values()) == {"champion"}


def test_an_asked_version_wins_and_is_named_as_asked() -> None:
    choice = routed(("champion", "1", 100)).choose("m", "3", "anybody", "")
    assert (choice.model.version, choice.variant) == ("3", "asked")


@pytest.mark.parametrize("version", ["5", "01", "1 ", "-1", "latest", "\0", "9" * 5000])
def test_an_unknown_version_is_not_found_and_those_there_are_named(version: str) -> None:
    with pytest.raises(NotFound, match=r"1, 2, 3, 4") as caught:
        routed(("champion", "1", 100)).choose("m", version, "", "")
    assert len(str(caught.value)) < 300


def test_a_model_without_traffic_says_so_and_can_be_asked_for_by_version() -> None:
    table = routed(("shadow", "1", 100))
    with pytest.raises(NotFound, match="no version of it takes traffic"):
        table.choose("m", "", "", "")
    assert table.choose("m", "1", "", "").model is VERSIONS["1"]


def test_a_server_without_models_says_so() -> None:
    with pytest.raises(NotFound, match="no models yet"):
        RouteTable(0, {}).choose("m", "", "", "")


def test_a_route_to_a_version_that_is_not_here_fails_when_the_table_is_built() -> None:
    """And not when a request comes."""
    with pytest.raises(KeyError):
        routed(("champion", "9", 100))
