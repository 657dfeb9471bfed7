"""What is read from the registry, when it is read again, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from hedgerow_control.registry import webhook
from hedgerow_control.registry.client import NoSuchVersion, RegistryError
from hedgerow_control.registry.desired import (
    DesiredState,
    DesiredVersion,
    ListedModel,
    fingerprint,
    weights,
    with_good_cost,
)
from hedgerow_control.registry.reader import TURN_READINGS
from hedgerow_control.registry.watcher import Watcher
from hedgerow_protos.names import model_name_problem
from hedgerow_protos.registry_tags import cost_of, parse_cost
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


ROLES = ("champion", "challenger", "economy", "shadow")
GOOD = {"challenger": 20, "economy": 5, "shadow": 0}


def tags(**by_role: str) -> dict[str, str]:
    return {f"hedgerow.weight.{role}": text for role, text in by_role.items()}


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


class FakeRegistry:
    """A registry in memory that counts what it is asked."""

    def __init__(self):
        self.models: dict[str, ListedModel] = {}
        self.gone: set[tuple[str, str]] = set()
        self.error: Exception | None = None
        self.calls = 0
        self.seconds = 0.0
        self.asked: list[tuple[str, str]] = []
        #: Tags of versions, by model and number.
        self.tags: dict[tuple[str, str], dict[str, str]] = {}

    def served_models(self):
        self.calls += 1
        if self.error:
            raise self.error
        return list(self.models.values())

    def version(self, name, version):
        self.calls += 1
        self.asked.append((name, version))
        if (name, version) in self.gone:
            raise NoSuchVersion
        return DesiredVersion(version, f"store:/{name}/{version}", dict(self.tags.get((name, version), {})))

    def alias(self, name, alias):
        return self.models[name].aliases.get(alias)

    def move_alias(self, name, alias, version):
        self.models[name].aliases[alias] = version

    def put(self, name, tags=None, newest="", **aliases):
        self.models[name] = ListedModel(name, aliases, tags or {}, newest)


@contextlib.asynccontextmanager
async def watching(registry, before=None):
    readings: list[DesiredState] = []
    watcher = Watcher(
        registry,
        poll_seconds=3600.0,
        on_change=readings.append,
        random=lambda: 0.5,
        clock=itertools.count().__next__,
        before=before,
    )
    task = asyncio.create_task(watcher.run())
    try:
        await watcher.refresh()
        yield watcher, readings
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


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


SECRET = b"s3cret"
BODY = b'{"entity": "registered_model_alias"}'


def headers(timestamp="1000", body=BODY, secret=SECRET, delivery="d1"):
    return {
        "x-mlflow-signature": webhook.signature(secret, delivery, timestamp, body),
        "x-mlflow-delivery-id": delivery,
        "x-mlflow-timestamp": timestamp,
    }


def test_the_signature_is_what_mlflow_itself_computes():
    from mlflow.webhooks.delivery import _generate_hmac_signature

    theirs = _generate_hmac_signature(SECRET.decode(), "d1", "1000", BODY.decode())
    assert webhook.signature(SECRET, "d1", "1000", BODY) == theirs


def test_a_signed_and_recent_webhook_is_believed():
    assert webhook.problem(SECRET, headers(), BODY, now=1000.0 + 299) is None


@pytest.mark.parametrize(
    ("given", "body", "now"),
    [
        (headers(secret=b"other"), BODY, 1000.0),
        (headers(), BODY + b" ", 1000.0),
        (headers() | {"x-mlflow-delivery-id": "d2"}, BODY, 1000.0),
        (headers() | {"x-mlflow-timestamp": "1001"}, BODY, 1000.0),
        (headers() | {"x-mlflow-signature": "v1,é"}, BODY, 1000.0),
        ({}, BODY, 1000.0),
        (headers(), BODY, 1301.0),
        (headers(), BODY, 699.0),
        (headers(timestamp="nan"), BODY, 1000.0),
        (headers(timestamp="soon"), BODY, 1000.0),
    ],
)
def test_a_webhook_that_is_forged_changed_or_old_is_not(given, body, now):
    assert webhook.problem(SECRET, given, body, now=now)
