"""What answers cost: sums that fit the prices of their time, and that never go back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from fakes_engine import model
from hedgerow_protos.hedgerow_control_pb2 import Route
from hedgerow_server.engine.costs import Spent, Tally
from hedgerow_server.engine.statistics import VersionStatistics
from hedgerow_server.routing.stream_stats import StreamStats
from hedgerow_server.routing.table import RouteTable
from hedgerow_server.telemetry import metrics, page
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

prices = st.none() | st.floats(0, 1e6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.integers(1, 500), st.integers(0, 10_000)),
        st.tuples(st.just("price"), prices, prices),
    ),
    max_size=30,
)


def answer(tally: Tally, requests: int = 1, predictions: int = 1) -> None:
    """As the request path counts."""
    tally.requests += requests
    tally.predictions += predictions


@given(steps)
def test_each_prediction_costs_what_it_cost_when_it_was_made(history):
    """And no sum ever goes back, whatever prices do: they are Prometheus counters."""
    tally = Tally()
    price = champion = None
    cost = net = 0.0
    readings = [tally.spent()]
    for kind, one, other in history:
        if kind == "price":
            price, champion = one, other
            tally.reprice(price, champion)
        else:
            answer(tally, one, other)
            cost += other / 1000 * (price or 0.0)
            net += other / 1000 * (champion - price) if None not in (price, champion) else 0.0
        readings.append(tally.spent())
    last = readings[-1]
    assert (last.cost or 0.0) == pytest.approx(cost)
    assert last.saved - last.extra == pytest.approx(net, abs=1e-6 * max(1.0, cost + last.saved + last.extra))
    for before, after in pairwise(readings):
        for old, new in zip(numbers(before), numbers(after), strict=True):
            assert new >= old


def numbers(spent: Spent) -> tuple[float, ...]:
    return (spent.requests, spent.predictions, spent.cost or 0.0, spent.saved, spent.extra)


@given(steps, steps)
def test_growth_and_sum_are_each_others_contrary(first, second):
    tally = Tally()
    readings = []
    for history in (first, second):
        for kind, one, other in history:
            if kind == "price":
                tally.reprice(one, other)
            else:
                answer(tally, one, other)
        readings.append(tally.spent())
    early, late = readings
    assert numbers(early + late.growth(early)) == pytest.approx(numbers(late))


def test_a_version_without_a_price_costs_nothing_that_is_known():
    tally = Tally()
    answer(tally, 1, 10)
    assert tally.spent() == Spent(1, 10, None, 0.0, 0.0)
    tally.reprice(0.0, None)
    assert tally.spent().cost == 0.0


#: Cost units of 1,000 predictions; what version 4 costs nobody knows.
COSTS = {"1": 2.0, "2": 0.5, "3": 5.0}


def made_table(**weights: int) -> tuple[RouteTable, dict[str, VersionStatistics]]:
    models = {version: model("several", version=version) for version in "1234"}
    roles = {"champion": "1", "economy": "2", "challenger": "3"}
    routes = [Route(variant=r, version=v, weight=weights.get(r, 10)) for r, v in roles.items()]
    table = RouteTable.build(1, {"m": models}, {"m": routes}, {"m": COSTS})
    table.reprice()
    return table, {version: one.statistics for version, one in models.items()}


def count(table: RouteTable, variant: str, predictions: int, version: str = "") -> None:
    routes = table.models["m"]
    answer((routes.versions[version] if version else routes.variants[variant]).tally, 1, predictions)


def test_saving_is_counted_against_the_champion_and_only_where_a_route_chose():
    table, statistics = made_table()
    for variant in ("champion", "economy", "challenger"):
        count(table, variant, 1000)
    count(table, "asked", 1000, version="2")
    count(table, "asked", 1000, version="4")
    spent = {(v, variant): t.spent() for v, s in statistics.items() for variant, t in s.variants.items()}
    assert (spent["1", "champion"].cost, spent["1", "champion"].saved) == (2.0, 0.0)
    assert (spent["2", "economy"].cost, spent["2", "economy"].saved) == (0.5, 1.5)
    assert (spent["3", "challenger"].saved, spent["3", "challenger"].extra) == (0.0, 3.0)
    assert (spent["2", "asked"].cost, spent["2", "asked"].saved) == (0.5, 0.0)
    assert spent["4", "asked"].cost is None


def test_the_champions_price_counts_whatever_its_weight():
    table, statistics = made_table(champion=0)
    count(table, "economy", 1000)
    assert statistics["2"].variants["economy"].spent().saved == 1.5


def shown(*versions: tuple[str, VersionStatistics]) -> dict[str, dict[tuple[str, ...], float]]:
    """Family -> (model, version, variant) -> value, on the page of two workers that counted the same."""
    text = metrics.dump(
        versions=[("m", version, statistics) for version, statistics in versions],
        retired=metrics.Retired(),
        in_flight=0,
        queue_depth=0,
    )
    dumps = {}
    for worker in "01":
        dump = metrics.parse(text)
        assert dump is not None
        dumps[worker] = dump
    rendered = page.render(dumps, {}, restarts={}, supervisor=metrics.Process()).decode()
    return {
        family.name.removeprefix("hedgerow_"): {
            tuple(s.labels[key] for key in ("model", "version", "variant") if key in s.labels): s.value
            for s in family.samples
        }
        for family in text_string_to_metric_families(rendered)
    }


def test_the_page_has_what_was_counted_summed_over_workers():
    table, statistics = made_table()
    count(table, "champion", 1000)
    count(table, "economy", 1000)
    count(table, "challenger", 2000)
    count(table, "asked", 500, version="4")
    found = shown(*statistics.items())
    assert found["variant_requests"]["m", "2", "economy"] == 2
    assert found["variant_requests"]["m", "4", "asked"] == 2
    assert found["cost_units"]["m", "1", "champion"] == 4.0
    assert found["cost_units"]["m", "2", "economy"] == 1.0
    assert ("m", "4", "asked") not in found["cost_units"], "its price is not known"
    assert found["cost_saved_units"] == {("m",): 3.0}
    assert found["cost_extra_units"] == {("m",): 12.0}


def test_a_dropped_version_keeps_its_costs_and_old_ones_are_added_up():
    retired = metrics.Retired(keep=1)
    for version in ("1", "2", "3"):
        statistics = VersionStatistics()
        tally = statistics.tally("economy")
        tally.reprice(1.0, 2.0)
        answer(tally, 1, 1000)
        retired.add("m", version, statistics)
    spent = {sums.version: sums.variants["economy"] for sums in retired.sums()}
    assert spent == {
        "3": Spent(1, 1000, 1.0, 1.0, 0.0),
        metrics.OLDER_VERSIONS: Spent(2, 2000, 2.0, 2.0, 0.0),
    }


class Version:
    """A version with its counters."""

    name, version = "m", "2"

    def __init__(self) -> None:
        self.statistics = VersionStatistics()


def test_the_control_plane_is_told_what_came_since_the_stream_opened_over_reloads():
    one = Version()
    one.statistics.tally("economy").reprice(0.5, 2.0)
    answer(one.statistics.tally("economy"), 7, 7)
    stats = StreamStats([one])
    for _ in range(2):
        answer(one.statistics.tally("economy"), 1, 1000)
        (told,) = stats.read([one]).versions
        one = Version()  # dropped and loaded again
        one.statistics.tally("economy").reprice(0.5, 2.0)
    (told,) = stats.read([one]).versions
    one.statistics.tally("economy").reprice(0.5, 0.0)
    answer(one.statistics.tally("economy"), 1, 3000)
    (told,) = stats.read([one]).versions
    (variant,) = told.variants
    assert (variant.variant, variant.requests, variant.predictions) == ("economy", 3, 5000)
    assert variant.cost_units == pytest.approx(2.5)
    assert variant.saved_units == pytest.approx(1.5 + 1.5 - 3 * 0.5)
