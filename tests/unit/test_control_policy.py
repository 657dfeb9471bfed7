"""What the next snapshot holds: cases one by one, then any history at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hedgerow_control.registry.desired import weights
from hedgerow_control.rollout.policy import ModelPlan, ModelView, Override, plan
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

ALL = frozenset("123456")


def one(view: ModelView, *, retain: int = 1, moving: bool = False) -> ModelPlan | None:
    return plan({"m": view}, retain=retain, moving=moving).get("m")


#: Version 1 is champion and served; the registry now wants version 2.
MOVED = ModelView(
    wanted={"champion": "2"}, usable=ALL, ready=frozenset("1"), routed={"champion": "1"}, held=("1",)
)


def test_a_new_version_is_added_without_a_route():
    planned = one(MOVED)
    assert planned.versions == ("1", "2")
    assert planned.routes == (("champion", "1", 100),)


def test_the_route_moves_when_the_version_is_warm_everywhere():
    planned = one(replace(MOVED, ready=frozenset("12"), held=("1", "2")))
    assert planned.routes == (("champion", "2", 100),)
    assert planned.versions == ("1", "2")
    assert planned.history == ("1",)


def test_nothing_is_published_of_a_version_that_is_not_prepared():
    planned = one(replace(MOVED, usable=frozenset("1")))
    assert planned.versions == ("1",)
    assert planned.routes == (("champion", "1", 100),)


def test_a_refused_champion_gives_way_to_the_one_before():
    planned = one(
        ModelView(
            wanted={"champion": "2"},
            usable=frozenset("1"),
            ready=frozenset("1"),
            routed={"champion": "2"},
            held=("1", "2"),
            history=("1",),
        )
    )
    assert planned.routes == (("champion", "1", 100),)
    assert "2" not in planned.history


def test_of_several_to_go_back_to_a_warm_one_is_taken():
    planned = one(
        ModelView(
            wanted={"champion": "4"},
            usable=frozenset("123"),
            ready=frozenset("2"),
            routed={"champion": "4"},
            held=("2", "4"),
            history=("3", "2", "1"),
        )
    )
    assert planned.routes == (("champion", "2", 100),)


def test_a_refused_champion_with_nothing_before_it_stays():
    planned = one(ModelView(wanted={"champion": "1"}, routed={"champion": "1"}, held=("1",)))
    assert planned.routes == (("champion", "1", 100),)
    assert planned.versions == ("1",)


@pytest.mark.parametrize(
    "view", [ModelView(), replace(MOVED, wanted={}), replace(MOVED, wanted={"shadow": "1"})]
)
def test_a_model_without_a_champion_alias_is_retired(view):
    assert one(view) is None


def test_as_many_previous_champions_are_held_as_asked():
    view = ModelView(
        wanted={"champion": "4"},
        usable=ALL,
        ready=ALL,
        routed={"champion": "4"},
        held=("4",),
        history=("3", "2", "1"),
    )
    assert one(view, retain=0).versions == ("4",)
    assert one(view, retain=2).versions == ("2", "3", "4")


def test_the_first_snapshot_of_all_has_its_routes_at_once():
    planned = one(ModelView(wanted={"champion": "2"}, usable=frozenset("2"), cold=True))
    assert planned.routes == (("champion", "2", 100),)


ROLES = ModelView(
    wanted={"champion": "1", "challenger": "2", "economy": "3", "shadow": "4"},
    weights={"challenger": 20, "economy": 10, "shadow": 0},
    usable=ALL,
    ready=ALL,
    routed={"champion": "1"},
    held=("1", "2", "3", "4"),
)


def test_the_champion_takes_what_the_other_roles_leave():
    assert one(ROLES).routes == (
        ("champion", "1", 70),
        ("challenger", "2", 20),
        ("economy", "3", 10),
        ("shadow", "4", 0),
    )


percents = st.integers(0, 100)


@given(percents, percents, st.sets(st.sampled_from(["challenger", "economy", "shadow"])), st.booleans())
def test_the_weights_of_the_routes_are_the_tags_and_sum_to_everything(challenger, economy, roles, warm):
    """A role without an alias, or not warm yet, leaves its share to the champion."""
    challenger = min(challenger, 100 - economy)
    view = replace(
        ROLES,
        wanted={role: version for role, version in ROLES.wanted.items() if role in {"champion", *roles}},
        weights={"challenger": challenger, "economy": economy, "shadow": 0},
        ready=ALL if warm else frozenset("1"),
    )
    shares = {role: weight for role, _, weight in one(view).routes}
    assert sum(shares.values()) == 100
    routed = roles if warm else set()
    assert shares.get("challenger") == (challenger if "challenger" in routed else None)
    assert shares.get("economy") == (economy if "economy" in routed else None)
    assert not shares.get("shadow")


def test_an_economy_alias_without_a_tag_takes_a_tenth():
    wanted = {"champion": "1", "economy": "3"}
    shares, _ = weights({}, wanted, None)
    planned = one(replace(ROLES, wanted=wanted, weights=shares))
    assert planned.routes == (("champion", "1", 90), ("economy", "3", 10))


def test_a_role_that_is_not_warm_yet_leaves_its_share_to_the_champion():
    planned = one(replace(ROLES, ready=frozenset("1")))
    assert planned.routes == (("champion", "1", 100),)
    assert planned.versions == ("1", "2", "3", "4")


def test_a_role_that_points_at_the_champion_gets_no_route_of_its_own():
    planned = one(replace(ROLES, wanted={"champion": "1", "challenger": "1"}))
    assert planned.routes == (("champion", "1", 100),)


ROLLED_BACK = ModelView(
    wanted={"champion": "2"},
    usable=ALL,
    ready=frozenset("12"),
    routed={"champion": "2"},
    held=("1", "2"),
    history=("1",),
    override=Override(bad="2", keep="1"),
)


def test_a_rollback_moves_the_route_whatever_is_acknowledged():
    planned = one(replace(ROLLED_BACK, ready=frozenset()))
    assert planned.routes == (("champion", "1", 100),)
    assert planned.override == Override("2", "1")


def test_the_version_rolled_back_from_is_nothing_to_go_back_to():
    assert one(ROLLED_BACK).history == ()


def test_a_rollback_overrides_a_version_that_was_only_on_its_way():
    planned = one(replace(ROLLED_BACK, wanted={"champion": "3"}, override=Override(bad="3", keep="1")))
    assert planned.routes == (("champion", "1", 100),)
    assert planned.history == ()


@pytest.mark.parametrize("champion", ["1", "3"])
def test_an_override_ends_when_the_registry_names_any_other_version(champion):
    planned = one(replace(ROLLED_BACK, wanted={"champion": champion}))
    assert planned.override is None


def test_a_move_brings_no_cold_version_along():
    """Another model's slow load must not hold up a rollback."""
    slow = replace(MOVED, held=("1", "2"))
    plans = plan({"fast": ROLLED_BACK, "slow": slow}, retain=1, moving=False)
    assert plans["fast"].routes == (("champion", "1", 100),)
    assert plans["slow"].versions == ("1",)
    calm = plan({"slow": slow}, retain=1, moving=False)
    assert calm["slow"].versions == ("1", "2")


def test_nothing_is_added_until_a_move_is_acknowledged():
    assert one(MOVED, moving=True).versions == ("1",)


class AnyHistory(RuleBasedStateMachine):
    """A registry, one policy and three servers that come, go, answer late, or refuse; in any order.

    The model of the control plane around the policy is the plainest there is:
    a published snapshot, and for each server the snapshot it acknowledged last.
    """

    def __init__(self):
        super().__init__()
        self.wanted: dict[str, str] = {}
        self.usable: set[str] = set()
        self.refused: set[str] = set()
        self.published: ModelPlan | None = None
        self.history: tuple[str, ...] = ()
        self.override: Override | None = None
        #: Server to the versions it holds warm.
        self.servers: dict[int, frozenset[str]] = {}
        self.waiting: set[int] = set()
        self.moving = False

    def view(self) -> ModelView:
        routed = {r: v for r, v, _ in self.published.routes} if self.published else {}
        held = self.published.versions if self.published else ()
        usable = frozenset((self.usable | set(held)) - self.refused)
        ready = frozenset(v for v in usable if v in held and all(v in warm for warm in self.servers.values()))
        return ModelView(self.wanted, {}, usable, ready, routed, held, self.history, self.override)

    def step(self):
        """Steps as the loop does, until nothing changes; it must come to rest, and stay there."""
        for _ in range(6):
            if not self.changed():
                break
        else:
            raise AssertionError("the policy does not come to rest")
        assert not self.changed()

    def changed(self) -> bool:
        self.moving = self.moving and bool(self.waiting)
        view = self.view()
        planned = plan({"m": view}, retain=1, moving=self.moving).get("m")
        if planned is not None:
            self.check(view, planned)
            self.history, self.override = planned.history, planned.override
        before, self.published = self.published, planned
        same = (planned and (planned.routes, planned.versions)) == (
            before and (before.routes, before.versions)
        )
        if not same:
            self.moving = dict(self.view().routed) != dict(view.routed)
            self.waiting = set(self.servers)
        return not same

    def check(self, view: ModelView, planned: ModelPlan):
        routes = {role: version for role, version, _ in planned.routes}
        assert set(routes.values()) <= set(planned.versions)
        assert sum(weight for _, _, weight in planned.routes) == (100 if routes else 0)
        if "champion" in view.routed:
            assert "champion" in routes
        moved = {version for role, version in routes.items() if view.routed.get(role) != version}
        rolled_back = {planned.override.keep} if planned.override else set()
        fallback = set(view.history) if view.routed.get("champion") in self.refused else set()
        assert moved - rolled_back - fallback <= view.ready
        if moved:
            cold = (
                set(planned.versions)
                - view.ready
                - set(view.routed.values())
                - set(view.history)
                - rolled_back
            )
            assert not cold

    roles = st.sampled_from(["champion", "challenger", "economy", "shadow"])
    numbers = st.sampled_from(sorted(ALL))

    @rule(role=roles, version=numbers)
    def alias(self, role, version):
        self.wanted = {**self.wanted, role: version}
        self.step()

    @rule(role=roles)
    def no_alias(self, role):
        self.wanted = {r: v for r, v in self.wanted.items() if r != role}
        self.step()

    @rule(version=numbers)
    def prepared(self, version):
        self.usable.add(version)
        self.step()

    @rule(number=st.integers(0, 2))
    def connect(self, number):
        self.servers[number] = frozenset()
        self.waiting.add(number)
        self.step()

    @rule(number=st.integers(0, 2))
    def disconnect(self, number):
        self.servers.pop(number, None)
        self.waiting.discard(number)
        self.step()

    @rule(number=st.integers(0, 2))
    def acknowledge(self, number):
        if number in self.waiting:
            self.waiting.discard(number)
            self.servers[number] = frozenset(self.published.versions if self.published else ())
        self.step()

    @rule(version=numbers)
    def refuse(self, version):
        held = self.published.versions if self.published else ()
        if version in held and version not in self.history:
            self.refused.add(version)
        self.step()

    @precondition(lambda self: self.published and self.published.routes and self.history)
    @rule()
    def roll_back(self):
        view = self.view()
        champion = view.routed["champion"]
        warm = [v for v in view.history if v in view.usable and v in view.held]
        if warm:
            self.override = Override(champion, warm[0])
            self.step()
            if self.wanted.get("champion") == champion:
                assert dict(self.view().routed)["champion"] == warm[0]

    @invariant()
    def history_is_whole(self):
        assert len(set(self.history)) == len(self.history) <= 8


AnyHistory.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase
