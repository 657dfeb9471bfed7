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
)
from hedgerow_control.registry.watcher import Watcher
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


def test_weights_default_and_are_read_as_whole_percentages():
    assert weights({}) == ({"challenger": 0, "economy": 10, "shadow": 0}, ())
    read, problems = weights(
        {"hedgerow.weight.challenger": "25", "hedgerow.weight.economy": "0", "team": "x"}
    )
    assert read == {"challenger": 25, "economy": 0, "shadow": 0}
    assert problems == ()


@pytest.mark.parametrize("text", ["lots", "-1", "101", "1e1", "5.5", "", "٣", "9" * 5000])
def test_a_weight_that_is_no_percentage_leaves_the_default_and_says_so(text):
    read, problems = weights({"hedgerow.weight.economy": text})
    assert read["economy"] == 10
    assert len(problems) == 1
    assert len(problems[0]) < 200


def test_weights_that_sum_to_more_than_everything_leave_the_defaults():
    read, (problem,) = weights({"hedgerow.weight.challenger": "60", "hedgerow.weight.economy": "41"})
    assert read == {"challenger": 0, "economy": 10, "shadow": 0}
    assert "101 %" in problem


@pytest.mark.parametrize("role", ["champion", "canary"])
def test_a_weight_of_no_use_is_reported(role):
    assert role in weights({f"hedgerow.weight.{role}": "5"})[1][0]


class FakeRegistry:
    """A registry in memory that counts what it is asked."""

    def __init__(self):
        self.models: dict[str, ListedModel] = {}
        self.gone: set[tuple[str, str]] = set()
        self.error: Exception | None = None
        self.calls = 0
        self.seconds = 0.0
        self.asked: list[tuple[str, str]] = []

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
        return DesiredVersion(version, f"store:/{name}/{version}", {})

    def alias(self, name, alias):
        return self.models[name].aliases.get(alias)

    def move_alias(self, name, alias, version):
        self.models[name].aliases[alias] = version

    def put(self, name, tags=None, newest="", **aliases):
        self.models[name] = ListedModel(name, aliases, tags or {}, newest)


@contextlib.asynccontextmanager
async def watching(registry):
    readings: list[DesiredState] = []
    watcher = Watcher(
        registry,
        poll_seconds=3600.0,
        on_change=readings.append,
        random=lambda: 0.5,
        clock=itertools.count().__next__,
    )
    task = asyncio.create_task(watcher.run())
    try:
        await watcher.refresh()
        yield watcher, readings
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_unchanged_registry_is_one_call_a_poll_and_no_reading():
    registry = FakeRegistry()
    registry.put("m", champion="1")
    async with watching(registry) as (watcher, readings):
        assert readings[0].models["m"].aliases == {"champion": "1"}
        before = registry.calls
        for _ in range(5):
            await watcher.refresh()
        assert registry.calls == before + 5
        assert len(readings) == 1


async def test_versions_are_looked_up_only_when_their_models_aliases_change():
    registry = FakeRegistry()
    registry.put("m", champion="1")
    registry.put("n", champion="7")
    async with watching(registry) as (watcher, readings):
        registry.asked.clear()
        registry.put("m", tags={"hedgerow.weight.economy": "5"}, champion="1")
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
