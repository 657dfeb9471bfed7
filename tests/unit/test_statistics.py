"""What a version counts stays small whatever it is asked."""

from __future__ import annotations

from bisect import bisect_left

from hedgerow_server.engine.statistics import EXACT_ROWS, LATENCY_BOUNDS, VersionStatistics
from hypothesis import given
from hypothesis import strategies as st


def test_runs_are_told_apart_by_rows_up_to_a_bound() -> None:
    """A caller that sends every number of rows must not make the counters grow with them."""
    statistics = VersionStatistics()
    for rows in range(1, 10_000):
        statistics.ran(rows, 1, 2, 3)
    assert len(statistics.batches) == EXACT_ROWS + 4
    assert statistics.batches[EXACT_ROWS] == [1, 1, 2, 3, EXACT_ROWS]
    assert statistics.batches[2048][0] == 1024
    assert sum(runs for runs, *_ in statistics.batches.values()) == statistics.runs
    assert statistics.rows == sum(range(1, 10_000))


@given(st.lists(st.tuples(st.integers(1, 3000), *[st.integers(0, 10**9)] * 3, st.integers(1, 64))))
def test_sums_are_those_of_the_runs_one_by_one(runs: list[tuple[int, int, int, int, int]]) -> None:
    """They are worked out from what is kept, and a request waits for the whole of its run."""
    statistics = VersionStatistics()
    for rows, input_ns, run_ns, output_ns, requests in runs:
        statistics.ran(rows, input_ns, run_ns, output_ns, requests=requests)
    assert statistics.runs == len(runs)
    assert statistics.rows == sum(rows for rows, *_ in runs)
    seen = [statistics.input_ns, statistics.run_ns, statistics.output_ns]
    assert seen == [sum(run[part] for run in runs) for part in (1, 2, 3)]
    assert statistics.waited == (
        sum(run[4] for run in runs),
        *(sum(run[part] * run[4] for run in runs) for part in (1, 2, 3)),
    )


@given(st.lists(st.tuples(st.sampled_from([0, 4, 13]), st.lists(st.integers(0, 10**12), min_size=1))))
def test_requests_counted_together_are_those_counted_one_by_one(ends: list[tuple[int, list[int]]]) -> None:
    statistics = VersionStatistics()
    for code, total_ns in ends:
        statistics.answered(code, *total_ns)
    each = [(code, ns) for code, total_ns in ends for ns in total_ns]
    assert statistics.success_ns == sum(ns for code, ns in each if code == 0)
    assert statistics.fail_ns == sum(ns for code, ns in each if code)
    assert statistics.requests == {c: sum(code == c for code, _ in each) for c in {code for code, _ in each}}
    bounds = [int(bound * 1e9) for bound in LATENCY_BOUNDS]
    assert statistics.latency == [
        sum(bisect_left(bounds, ns) == bucket for _, ns in each) for bucket in range(len(bounds) + 1)
    ]
