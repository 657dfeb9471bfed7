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


def split(challenger: int, economy: int) -> dict[str, str]:
    """Caller -> variant, where the champion has the rest."""
    rest = 100 - challenger - economy
    return chosen(routed(("economy", "3", economy), ("champion", "1", rest), ("challenger", "2", challenger)))


#: Percent of challenger and economy that leave something, perhaps nothing, to the champion.
weights_of_two = st.integers(0, 100).flatmap(lambda one: st.tuples(st.just(one), st.integers(0, 100 - one)))


@settings(max_examples=40, deadline=None)
@given(weights_of_two, st.integers(0, 100), st.sampled_from(["challenger", "economy"]))
def test_a_growing_weight_takes_callers_from_the_champion_and_moves_nobody_else(
    weights: tuple[int, int], more: int, grows: str
) -> None:
    """Also beside the other variant: whoever has either of them keeps it."""
    challenger, economy = weights
    more = min(more, 100 - challenger - economy)
    before = split(challenger, economy)
    after = split(challenger + more, economy) if grows == "challenger" else split(challenger, economy + more)
    for caller in CALLERS:
        assert (before[caller], after[caller]) in {
            (before[caller], before[caller]),
            ("champion", grows),
        }


@settings(max_examples=40, deadline=None)
@given(weights_of_two, weights_of_two)
def test_whatever_becomes_of_both_weights_most_callers_stay(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    """No more move than the weights do; four standard deviations for the draw."""
    before, after = split(*one), split(*other)
    moved = sum(before[caller] != after[caller] for caller in CALLERS)
    share = min(1.0, (abs(one[0] - other[0]) + abs(one[1] - other[1])) / 100)
    assert moved <= len(CALLERS) * share + 4 * (len(CALLERS) * share * (1 - share)) ** 0.5


@settings(max_examples=40, deadline=None)
@given(weights_of_two)
def test_economy_and_challenger_together_have_their_shares(weights: tuple[int, int]) -> None:
    counts = Counter(split(*weights).values())
    for variant, percent in zip(("challenger", "economy"), weights, strict=True):
        share = percent / 100
        slack = 4 * (len(CALLERS) * share * (1 - share)) ** 0.5
        assert abs(counts[variant] - len(CALLERS) * share) <= slack


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


def relieving(*, allowed: bool) -> RouteTable:
    """A champion whose serving.yaml says so, and an economy variant without any weight."""
    champion = model("several", version="1")
    champion.serving.overload.economy_under_pressure = allowed
    made = [
        Route(variant="champion", version="1", weight=100),
        Route(variant="economy", version="3", weight=0),
    ]
    return RouteTable.build(1, {"m": {**VERSIONS, "1": champion}, "n": VERSIONS}, {"m": made})


def test_under_pressure_the_economy_variant_may_answer_where_the_champion_allows_it() -> None:
    choice = relieving(allowed=True).economy_under_pressure("m")
    assert choice is not None
    assert (choice.variant, choice.model.version) == ("economy", "3")
    assert relieving(allowed=False).economy_under_pressure("m") is None


@pytest.mark.parametrize("name", ["n", "nobody"])
def test_a_model_without_the_two_variants_has_nothing_for_pressure(name: str) -> None:
    assert relieving(allowed=True).economy_under_pressure(name) is None


def test_what_may_be_chosen_under_pressure_is_among_the_choices() -> None:
    """The request path prepares a codec for each of these and for no other."""
    table = relieving(allowed=True)
    assert table.economy_under_pressure("m") in set(table.models["m"].choices())


def test_variants_that_nobody_knows_are_counted_together() -> None:
    """Else a snapshot could make any number of series."""
    of = model("several")
    routes = [Route(variant=f"v{i}", version="1", weight=1) for i in range(50)]
    RouteTable.build(1, {"m": {"1": of}}, {"m": routes})
    assert set(of.statistics.variants) == {"asked", "other"}
