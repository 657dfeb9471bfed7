"""The metrics page: read back by Prometheus' own parser, and no counter ever goes back."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hedgerow_server.engine.statistics import LATENCY_BOUNDS, VersionStatistics
from hedgerow_server.gate.admission import REASONS
from hedgerow_server.telemetry import metrics, page
from hedgerow_server.telemetry.overload_metrics import Limit, OverloadSums
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families


def counted(*durations_ns: int, code: int = 0) -> VersionStatistics:
    statistics = VersionStatistics()
    for ns in durations_ns:
        statistics.answered(code, ns)
    return statistics


def dumped(*versions, retired=None, **more) -> metrics.Dump:
    more = {"in_flight": 0, "queue_depth": 0, **more}
    text = metrics.dump(versions=versions, retired=retired or metrics.Retired(), **more)
    found = metrics.parse(text)
    assert found is not None
    return found


def samples(live, ended=None, restarts=None) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = page.render(
        live, ended or {}, restarts=restarts or {}, supervisor=metrics.Process(1, 2, 3)
    ).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found, name: str, **labels: str) -> float:
    return found["hedgerow_" + name, frozenset(labels.items())]


def test_the_page_parses_and_has_help_and_type_for_all():
    text = page.render({"0": dumped()}, {}, restarts={"0": 0}, supervisor=metrics.Process()).decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.name.startswith("hedgerow_") and family.documentation for family in families)
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}


def test_workers_are_added_up():
    one = dumped(("m", "1", counted(1000, 2000)), in_flight=2, queue_depth=1, swaps=1, log_lines_dropped=5)
    two = dumped(("m", "1", counted(3000)), ("m", "2", counted(1, code=3)), in_flight=3, swaps=1)
    found = samples({"0": one, "1": two})
    assert value(found, "requests_total", model="m", version="1", code="OK") == 3
    assert value(found, "requests_total", model="m", version="2", code="INVALID_ARGUMENT") == 1
    assert value(found, "request_seconds_sum", model="m", version="1") == pytest.approx(6e-6)
    assert value(found, "in_flight") == 5
    assert value(found, "queue_depth") == 1
    assert value(found, "swaps_total") == 2
    assert value(found, "log_lines_dropped_total") == 5


def test_a_request_lands_in_the_bucket_that_prometheus_expects():
    """`le` is inclusive, and the coarse buckets end where every fourth fine one does."""
    statistics = VersionStatistics()
    for index in range(len(LATENCY_BOUNDS) + 1):
        statistics.latency[index] = 1
    found = samples({"0": dumped(("m", "1", statistics))})
    for index, bound in enumerate(metrics.REQUEST_BOUNDS):
        label = {"model": "m", "version": "1", "le": repr(bound)}
        assert value(found, "request_seconds_bucket", **label) == 4 * index + 1
    infinite = {"model": "m", "version": "1", "le": "+Inf"}
    assert value(found, "request_seconds_bucket", **infinite) == len(LATENCY_BOUNDS) + 1
    assert value(found, "request_seconds_count", model="m", version="1") == len(LATENCY_BOUNDS) + 1


@given(st.lists(st.integers(min_value=0, max_value=10**11), max_size=50))
def test_histograms_agree_with_counting_by_hand(durations_ns):
    sums = metrics.sums_of("m", "1", counted(*durations_ns))
    for index, bound in enumerate(metrics.REQUEST_BOUNDS):
        assert sum(sums.request_buckets[: index + 1]) == sum(ns * 1e-9 <= bound for ns in durations_ns)
    assert sum(sums.request_buckets) == len(durations_ns)


def test_batches_and_stages():
    statistics = VersionStatistics()
    statistics.ran(3, 1_000_000_000, 2_000_000_000, 3_000_000_000)
    statistics.ran(5000, 0, 0, 0)
    statistics.queue_ns = 4_000_000_000
    found = samples({"0": dumped(("m", "1", statistics))})
    version = {"model": "m", "version": "1"}
    assert value(found, "batch_rows_bucket", le="2", **version) == 0
    assert value(found, "batch_rows_bucket", le="4", **version) == 1
    assert value(found, "batch_rows_bucket", le="1024", **version) == 1
    assert value(found, "batch_rows_bucket", le="+Inf", **version) == 2
    assert value(found, "batch_rows_sum", **version) == 5003
    seconds = [
        value(found, "stage_seconds_total", stage=s, **version) for s in ("queue", "input", "run", "output")
    ]
    assert seconds == pytest.approx([4, 1, 2, 3])


def test_what_a_dead_worker_counted_stays():
    dead = dumped(("m", "1", counted(1000, 1000)), swaps=3)
    ended = metrics.Dump()
    ended.add_counters(dead)
    ended.add_counters(dead)  # and its successor died too
    fresh = dumped(("m", "1", counted(1000)), in_flight=1)
    found = samples({"0": fresh}, {"0": ended}, {"0": 2})
    assert value(found, "requests_total", model="m", version="1", code="OK") == 5
    assert value(found, "swaps_total") == 6
    assert value(found, "in_flight") == 1
    assert value(found, "worker_restarts_total", worker="0") == 2


def test_a_page_while_no_worker_lives_keeps_the_counters():
    ended = metrics.Dump()
    ended.add_counters(dumped(("m", "1", counted(1000))))
    assert value(samples({}, {"0": ended}), "requests_total", model="m", version="1", code="OK") == 1


def test_a_dropped_version_keeps_its_counters():
    retired = metrics.Retired()
    retired.add("m", "1", counted(1000))
    found = samples({"0": dumped(("m", "1", counted(1000)), retired=retired)})  # loaded again since
    assert value(found, "requests_total", model="m", version="1", code="OK") == 2


def test_dropped_versions_are_bounded_and_none_of_their_requests_is_lost():
    retired = metrics.Retired(keep=3)
    for number in range(1000):
        retired.add("ab"[number % 2], str(number), counted(1000))
    found = list(retired.sums())
    assert len(found) == 3 + 2
    assert Counter(sums.version for sums in found)[metrics.OLDER_VERSIONS] == 2
    assert sum(sums.requests[0] for sums in found) == 1000


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123456"), st.booleans()), max_size=60))
def test_no_sum_over_a_model_ever_goes_back(steps):
    """Whatever is counted, dropped and loaded again, in any order."""
    live: dict[tuple[str, str], VersionStatistics] = {}
    retired = metrics.Retired(keep=2)
    totals = []
    for model, version, is_drop in steps:
        if is_drop:
            if (model, version) in live:
                retired.add(model, version, live.pop((model, version)))
        else:
            live.setdefault((model, version), VersionStatistics()).answered(0, 1000)
        dump = dumped(*((*key, statistics) for key, statistics in live.items()), retired=retired)
        totals.append(Counter())
        for sums in dump.versions:
            totals[-1][sums.model] += sums.requests.get(0, 0)
    assert all(later[m] >= earlier[m] for earlier, later in pairwise(totals) for m in "ab")


def test_routes_are_those_of_the_newest_snapshot():
    old = dumped(snapshot_version=1, routes=[metrics.RouteWeight("m", "1", "champion", 100)])
    new = dumped(snapshot_version=2, routes=[metrics.RouteWeight("m", "2", "champion", 100)])
    found = samples({"0": old, "1": new})
    routes = [dict(labels)["version"] for name, labels in found if name == "hedgerow_route_weight"]
    assert routes == ["2"]
    assert value(found, "snapshot_version", worker="0") == 1


def test_strange_label_values_cannot_break_the_page():
    found = samples({"0": dumped(('a"b\\c\n', "1", counted(1000)))})
    assert value(found, "requests_total", model='a"b\\c\n', version="1", code="OK") == 1


def test_what_was_refused_is_told_by_model_and_reason_and_outlives_its_worker():
    """All reasons are there from the start, so that a rate sees the first refusal."""
    first, second = counted(), counted()
    first.sheds.update({"limit": 3, "hedge": 1})
    first.moved_to_economy = 2
    second.sheds["limit"] = 4
    full = OverloadSums([Limit("m", "1", 30), Limit("m", "2", 4096)], utilization=1.25)
    found = samples(
        {"0": dumped(("m", "1", first), ("m", "2", second), overload=full), "1": dumped(overload=full)},
        ended={"0": dumped(("m", "1", first))},
    )
    assert value(found, "sheds_total", model="m", reason="limit") == 10
    assert value(found, "sheds_total", model="m", reason="hedge") == 2
    assert {value(found, "sheds_total", model="m", reason=reason) for reason in REASONS} == {10, 2, 0}
    assert value(found, "moved_to_economy_total", model="m", version="1") == 4
    assert value(found, "concurrency_limit", model="m", version="1") == 60
    assert value(found, "utilization", worker="1") == 1.25
