"""What is read from the registry, when it is read again, and what is refused."""

from __future__ import annotations

import asyncio

import pytest
from fake_registry import FakeRegistry, tags, watching
from hedgerow_control.registry.client import NoSuchVersion, RegistryError
from hedgerow_control.registry.desired import DesiredState, ListedModel, fingerprint
from hedgerow_control.registry.reader import TURN_READINGS
from hedgerow_protos.names import model_name_problem
from hypothesis import given
from hypothesis import strategies as st

listed = st.builds(
    ListedModel,
    name=st.text(max_size=5),
    aliases=st.dictionaries(
        st.sampled_from(["champion", "shadow", "other"]), st.sampled_from("123"), max_size=3
    ),
    tags=st.dictionaries(
        st.sampled_from(["hedgerow.serve", "hedgerow.weight.economy", "team"]), st.text(max_size=3)
    ),
)
listings = st.lists(listed, max_size=4, unique_by=lambda model: model.name)


@given(listings, st.randoms())
def test_the_fingerprint_does_not_depend_on_order(listing, random):
    shuffled = [
        ListedModel(m.name, dict(reversed(m.aliases.items())), dict(reversed(m.tags.items())))
        for m in listing
    ]
    random.shuffle(shuffled)
    assert fingerprint(shuffled) == fingerprint(listing)


@given(listings, listings)
def test_the_fingerprint_changes_with_what_matters_and_only_with_that(one, other):
    def matters(listing):
        return {
            m.name: (
                {k: v for k, v in m.aliases.items() if k != "other"},
                {k: v for k, v in m.tags.items() if k != "team"},
            )
            for m in listing
        }

    assert (fingerprint(one) == fingerprint(other)) == (matters(one) == matters(other))


@pytest.mark.parametrize("name", ["flight-delay", "a.b_c", "x" * 255])
def test_an_ordinary_name_is_served(name):
    assert model_name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 256,
        "a b",
        "a/b",
        "..",
        "a..b",
        ".",
        "a\x00b",
        "a\nb",
        "a\\b",
        "\u202ea",
        "modèle",
        "a@b",
        ".a",
    ],
)
def test_a_name_that_is_unsafe_in_a_path_or_a_url_is_refused(name):
    assert model_name_problem(name)


async def test_an_unchanged_registry_is_two_calls_a_poll_and_no_reading():
    """One search, and one version looked up again."""
    registry = FakeRegistry()
    registry.put("m", champion="1")
    async with watching(registry) as (watcher, readings):
        assert readings[0].models["m"].aliases == {"champion": "1"}
        before = registry.calls
        for _ in range(5):
            await watcher.refresh()
        assert registry.calls == before + 10
        assert len(readings) == 1


async def test_a_registry_without_models_is_one_call_a_poll():
    registry = FakeRegistry()
    async with watching(registry) as (watcher, readings):
        for _ in range(5):
            await watcher.refresh()
        assert registry.calls == 6
        assert readings == [DesiredState()]


@pytest.mark.parametrize("models", [1, 40, 1000])
async def test_a_changed_price_is_noticed_within_a_turn_of_polls(models):
    """No search of the registry shows it; above 480 versions a turn takes longer, not each poll more."""
    registry = FakeRegistry()
    for number in range(models):
        registry.put(f"m{number}", champion="1", economy="2")
    async with watching(registry) as (watcher, readings):
        registry.tags["m0", "2"] = {"cost_per_1k": "0.25"}
        polls = 0
        before = registry.calls
        while len(readings) == 1:
            await watcher.refresh()
            polls += 1
        assert polls <= max(TURN_READINGS, 2 * models / 16)
        assert registry.calls - before <= 17 * polls
        assert readings[-1].models["m0"].versions["2"].tags == {"cost_per_1k": "0.25"}
        assert readings[-1].models["m0"].versions["1"].tags == {}


async def test_what_cannot_be_read_keeps_its_last_good_numbers_also_over_a_restart(caplog):
    registry = FakeRegistry()
    registry.put("m", tags=tags(economy="30"), champion="1", economy="2")
    registry.tags["m", "2"] = {"cost_per_1k": "0.25"}
    async with watching(registry) as (watcher, readings):
        registry.put("m", tags=tags(economy="lots"), champion="1", economy="2")
        await watcher.refresh()
        registry.tags["m", "2"] = {"cost_per_1k": "cheap"}
        for _ in range(4):
            await watcher.refresh()
        first = readings[-1]
    async with watching(registry, before=first) as (_, readings):
        again = readings[-1]
    for reading in (first, again):
        model = reading.models["m"]
        assert model.weights == {"economy": 30}
        assert model.versions["2"].tags == {"cost_per_1k": "0.25"}
        assert "'lots'" in model.problems[0]
        assert "'cheap'" in model.versions["2"].problem
    told = [record.getMessage() for record in caplog.records]
    # Once when it came up, once after the restart; not at every poll.
    assert sum("'lots'" in line for line in told) == 2
    assert sum("'cheap'" in line for line in told) == 2


async def test_a_version_that_goes_between_search_and_look_up_disturbs_nothing():
    registry = FakeRegistry()
    registry.put("m", champion="1")
    async with watching(registry) as (watcher, readings):
        registry.gone.add(("m", "1"))
        await watcher.refresh()
        assert watcher.state.failing == 0
        assert len(readings) == 1


async def test_versions_are_looked_up_only_when_their_models_aliases_change():
    registry = FakeRegistry()
    registry.put("m", champion="1", economy="1")
    registry.put("n", champion="7")
    async with watching(registry) as (watcher, readings):
        registry.asked.clear()
        registry.put("m", tags={"hedgerow.weight.economy": "5"}, champion="1", economy="1")
        await watcher.refresh()
        assert registry.asked == []
        assert readings[-1].models["m"].weights["economy"] == 5
        registry.put("m", champion="2")
        await watcher.refresh()
        assert registry.asked == [("m", "2")]
        assert readings[-1].models["m"].versions["2"].source == "store:/m/2"
        assert readings[-1].models["n"].versions["7"].source == "store:/n/7"


async def test_the_newest_version_is_made_ready_before_an_alias_points_at_it():
    registry = FakeRegistry()
    registry.put("m", champion="1", newest="1")
    async with watching(registry) as (watcher, readings):
        registry.put("m", champion="1", newest="2")
        await watcher.refresh()
        model = readings[-1].models["m"]
        assert model.aliases == {"champion": "1"}
        assert set(model.versions) == {"1", "2"}
        # Registered and deleted again: nobody pointed at it, so nobody is told.
        registry.put("m", champion="1", newest="3")
        registry.gone.add(("m", "3"))
        await watcher.refresh()
        assert set(readings[-1].models["m"].versions) == {"1"}
        assert readings[-1].models["m"].problems == ()


async def test_a_model_without_a_role_is_not_fetched():
    registry = FakeRegistry()
    registry.put("m", newest="1")
    async with watching(registry) as (_, readings):
        assert readings[-1].models["m"].versions == {}


async def test_an_unreachable_registry_leaves_the_last_good_reading_and_is_asked_again():
    registry = FakeRegistry()
    registry.put("m", champion="1")
    async with watching(registry) as (watcher, readings):
        registry.error = RegistryError("connection refused")
        for failing in (1, 2, 3):
            with pytest.raises(RegistryError):
                await watcher.refresh()
            assert watcher.state.failing == failing
        assert watcher.state.error == "connection refused"
        assert watcher.desired is readings[-1]
        registry.error = None
        registry.put("m", champion="2")
        await watcher.refresh()
        assert watcher.state.failing == 0
        assert readings[-1].models["m"].aliases == {"champion": "2"}


@pytest.mark.parametrize("error", [NoSuchVersion("max_results must be at most 100"), ValueError("no number")])
async def test_an_answer_that_nobody_foresaw_is_a_failed_poll_and_not_the_end(error):
    """What answers at the registry's address may be an older release, a proxy or something else."""
    registry = FakeRegistry()
    registry.put("m", champion="1")
    async with watching(registry) as (watcher, readings):
        registry.error = error
        with pytest.raises(RegistryError):
            await asyncio.wait_for(watcher.refresh(), 20)
        assert watcher.state.error
        registry.error = None
        registry.put("m", champion="2")
        await watcher.refresh()
        assert readings[-1].models["m"].aliases == {"champion": "2"}


async def test_an_error_between_search_and_lookup_is_not_taken_for_a_reading():
    registry = FakeRegistry()
    registry.put("m", champion="1")
    async with watching(registry) as (watcher, readings):
        registry.put("m", champion="2")
        lookup = registry.version
        registry.version = lambda *_: (_ for _ in ()).throw(RegistryError("reset"))
        with pytest.raises(RegistryError):
            await watcher.refresh()
        registry.version = lookup
        await watcher.refresh()
        assert readings[-1].models["m"].aliases == {"champion": "2"}


async def test_an_alias_to_a_version_that_is_gone_is_a_problem_of_its_model_alone():
    registry = FakeRegistry()
    registry.gone.add(("m", "9"))
    registry.put("m", champion="9")
    registry.put("bad name", champion="1")
    registry.put("n", champion="1")
    async with watching(registry) as (_, readings):
        state = readings[-1]
        assert state.models["m"].problems == ("alias champion points at version 9, which does not exist",)
        assert state.models["n"].versions["1"].version == "1"
        assert "cannot name a model" in state.refused["bad name"]
