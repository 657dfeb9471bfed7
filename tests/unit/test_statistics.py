"""What a version counts stays small whatever it is asked."""

from __future__ import annotations

from hedgerow_server.engine.statistics import EXACT_ROWS, VersionStatistics


def test_runs_are_told_apart_by_rows_up_to_a_bound() -> None:
    """A caller that sends every number of rows must not make the counters grow with them."""
    statistics = VersionStatistics()
    for rows in range(1, 10_000):
        statistics.ran(rows, 1, 2, 3)
    assert len(statistics.batches) == EXACT_ROWS + 4
    assert statistics.batches[EXACT_ROWS] == [1, 1, 2, 3]
    assert statistics.batches[2048][0] == 1024
    assert sum(runs for runs, *_ in statistics.batches.values()) == statistics.runs
    assert statistics.rows == sum(range(1, 10_000))
