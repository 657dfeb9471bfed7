"""Weights and costs in a registry's tags: how they are read, and what stands where one cannot be."""

from __future__ import annotations

import pytest
from fake_registry import tags
from hedgerow_control.registry.desired import DesiredVersion, weights, with_good_cost
from hedgerow_protos.registry_tags import cost_of, parse_cost
from hypothesis import given
from hypothesis import strategies as st

ROLES = ("champion", "challenger", "economy", "shadow")
GOOD = {"challenger": 20, "economy": 5, "shadow": 0}


def test_weights_default_and_are_read_as_whole_percentages():
    assert weights({}, ROLES, None) == ({"challenger": 0, "economy": 10, "shadow": 0}, ())
    read, problems = weights({**tags(challenger="25", economy="0"), "team": "x"}, ROLES, None)
    assert read == {"challenger": 25, "economy": 0, "shadow": 0}
    assert problems == ()


BAD_WEIGHTS = ["lots", "-1", "101", "1e1", "5.5", "", "٣", "9" * 5000, "NaN", "inf", " 5", "+5", "5%"]


@pytest.mark.parametrize("text", BAD_WEIGHTS)
def test_a_weight_that_is_no_percentage_leaves_the_last_good_one_and_says_so(text):
    """The other role's tag counts: a canary can be stopped whatever the economy's tag says."""
    read, (problem,) = weights(tags(economy=text, challenger="0"), ROLES, GOOD)
    assert read == {"challenger": 0, "economy": 5, "shadow": 0}
    assert "expected a whole percentage" in problem
    assert problem.endswith("economy stays at 5 %")
    assert len(problem) < 200
    # Nothing good before it: the default.
    assert weights(tags(economy=text), ROLES, None)[0]["economy"] == 10


def test_weights_that_sum_to_more_than_everything_leave_all_as_they_were():
    read, (problem,) = weights(tags(challenger="60", economy="41"), ROLES, GOOD)
    assert read == GOOD
    assert "101 %" in problem
    assert "challenger 20 %, economy 5 %" in problem
    read, _ = weights(tags(challenger="60", economy="41"), ROLES, None)
    assert read == {"challenger": 0, "economy": 10, "shadow": 0}


def test_a_role_without_an_alias_takes_no_room():
    """A challenger may have everything where there is no economy variant, whose default is 10."""
    read, problems = weights(tags(challenger="100"), ("champion", "challenger"), None)
    assert (read, problems) == ({"challenger": 100}, ())
    # The economy alias comes: there is no room for it until the challenger gives some back.
    later, (problem,) = weights(tags(challenger="100"), ("champion", "challenger", "economy"), read)
    assert later == {"challenger": 100, "economy": 0}
    assert "110 %" in problem
    made, problems = weights(tags(challenger="90"), ("champion", "challenger", "economy"), later)
    assert (made, problems) == ({"challenger": 90, "economy": 10}, ())


@pytest.mark.parametrize("role", ["champion", "canary"])
def test_a_weight_of_no_use_is_reported(role):
    assert role in weights(tags(**{role: "5"}), ROLES, None)[1][0]


texts = st.one_of(st.integers(-5, 120).map(str), st.sampled_from(BAD_WEIGHTS))
readings = st.tuples(st.dictionaries(st.sampled_from(ROLES), texts), st.sets(st.sampled_from(ROLES)))


@given(st.lists(readings, max_size=8))
def test_whatever_the_tags_say_the_shares_leave_none_to_nobody(history):
    """Over any history of tags and aliases: never above 100 %, and no problem means what was asked."""
    last = None
    for texts_by_role, aliased in history:
        read, problems = weights(tags(**texts_by_role), aliased, last)
        assert read.keys() == aliased - {"champion"}
        assert sum(percent for role, percent in read.items() if role != "shadow") <= 100
        if not problems:
            default = {"economy": "10"}
            assert read == {role: int(texts_by_role.get(role, default.get(role, "0"))) for role in read}
        last = read


def priced(text: str, problem: str = "") -> DesiredVersion:
    return DesiredVersion("1", "store:/m/1", {"owner": "ada", "cost_per_1k": text}, problem)


@pytest.mark.parametrize("text", ["0", "0.25", ".5", "1.", "1e-3", "1000000000", "2E+2"])
def test_a_cost_is_a_number_from_zero_up(text):
    assert with_good_cost(priced(text), None) == priced(text)
    assert parse_cost(text) == float(text)


BAD_COSTS = ["", "free", "-0.1", "nan", "NaN", "inf", "1e400", "1e10", "1_0", "٣", "0x1", " 1", "1" * 5000]


@pytest.mark.parametrize("text", BAD_COSTS)
def test_a_cost_that_is_none_leaves_the_last_good_one_and_says_so(text):
    read = with_good_cost(priced(text), priced("0.5"))
    assert read.tags == {"owner": "ada", "cost_per_1k": "0.5"}
    assert "expected a number" in read.problem
    assert read.problem.endswith("it stays at 0.5")
    read = with_good_cost(priced(text), None)
    assert read.tags == {"owner": "ada"}
    assert read.problem.endswith("its cost is not counted")
    assert len(read.problem) < 200
    assert cost_of({"cost_per_1k": text}) is None
    # The good one is there for the next reading as well.
    again = with_good_cost(priced("also bad"), with_good_cost(priced(text), priced("0.5")))
    assert again.tags["cost_per_1k"] == "0.5"


@given(st.text(max_size=45))
def test_no_text_makes_a_cost_that_is_not_finite(text):
    cost = cost_of({"cost_per_1k": text})
    assert cost is None or 0 <= cost <= 1e9
