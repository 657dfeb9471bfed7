"""How long a run probably takes, learned from made-up runs."""

from __future__ import annotations

import pytest
from hedgerow_server.engine.latency import LatencyModel
from hypothesis import given
from hypothesis import strategies as st


def run(latency: LatencyModel, rows: int, seconds: float) -> None:
    """A run in a runner thread."""
    latency.ran(rows, seconds)
    latency.observe(rows, seconds)


def test_the_first_guess_holds_until_a_run_is_seen() -> None:
    latency = LatencyModel(3e-3)
    assert latency.expect(1) == 3e-3
    latency.observe(1, 2e-3)
    assert 2e-3 < latency.expect(1) < 3e-3


def test_a_run_far_below_the_cold_first_guess_replaces_it_at_once() -> None:
    latency = LatencyModel(50e-3)
    latency.observe(1, 5e-6)
    assert latency.expect(1) == 5e-6


def test_one_run_that_was_descheduled_does_not_send_a_small_model_to_the_threads() -> None:
    latency = LatencyModel(5e-6)
    for _ in range(50):
        latency.observe(1, 5e-6)
    latency.observe(1, 300e-6)
    assert latency.expect(1) < 50e-6


def test_now_and_then_a_run_that_lost_a_whole_time_slice_changes_nothing_either() -> None:
    """One of twenty, as on a core that other processes use too."""
    latency = LatencyModel(5e-6)
    for _ in range(50):
        for _ in range(19):
            latency.observe(1, 5e-6)
        latency.observe(1, 4e-3)
        assert latency.expect(1) < 20e-6


def test_a_model_that_became_slow_is_known_for_it_within_ten_runs() -> None:
    latency = LatencyModel(5e-6)
    runs = 0
    while latency.expect(1) < 100e-6:
        latency.observe(1, 10e-3)
        runs += 1
    assert runs <= 10
    for _ in range(20):
        latency.observe(1, 10e-3)
    assert latency.expect(1) > 5e-3


def test_a_model_that_is_slow_every_other_time_is_known_for_it() -> None:
    """Runs of half of its requests would stop the event loop."""
    latency = LatencyModel(5e-6)
    for _ in range(20):
        latency.observe(1, 5e-6)
        latency.observe(1, 5e-3)
    assert latency.expect(1) > 1e-3


@pytest.mark.parametrize(("rows", "same"), [(1, 1), (2, 2), (3, 4), (4, 3), (5, 8), (128, 65)])
def test_sizes_are_told_apart_by_powers_of_two(rows: int, same: int) -> None:
    latency = LatencyModel(1.0)
    latency.observe(rows, 1e-3)
    assert latency.expect(same) == 1e-3


def test_a_size_never_seen_is_taken_to_cost_as_much_a_row_as_the_next_smaller_one() -> None:
    """Else the first request of 100,000 rows would run on the event loop because one row takes 5 µs."""
    latency = LatencyModel(5e-6)
    latency.observe(1, 5e-6)
    assert latency.expect(100_000) > 0.1
    latency.observe(100_000, 2e-3)
    assert latency.expect(100_000) == 2e-3
    assert latency.expect(1) == 5e-6


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-6, 1)), max_size=50), st.integers(1, 5000))
def test_what_is_expected_lies_within_what_was_seen_or_above(
    runs: list[tuple[int, float]], rows: int
) -> None:
    latency = LatencyModel(0.5)
    for size, seconds in runs:
        latency.observe(size, seconds)
    assert latency.expect(rows) >= min([0.5, *[seconds for _, seconds in runs]]) * (1 - 1e-9)


def test_batches_are_hoped_to_go_on_as_smaller_ones_do() -> None:
    """Judging deadlines: a model that takes 100 ms and 1 ms a row, and one that takes 10 ms a row."""
    cheap, dear = LatencyModel(0.1), LatencyModel(0.01)
    for rows in (1, 2):
        for _ in range(50):
            cheap.observe(rows, 0.1 + 0.001 * rows)
            dear.observe(rows, 0.01 * rows)
    assert cheap.likely(64) == pytest.approx(0.164, rel=0.02)
    assert dear.likely(64) == pytest.approx(0.64, rel=0.02)


def test_twice_the_rows_are_tried_though_they_were_never_seen() -> None:
    """Who has time for one run, and a wait for one, would else never share one with anybody."""
    latency = LatencyModel(0.1)
    assert latency.known(4) == 0.0, "the first guess is no evidence"
    latency.observe(1, 0.1)
    assert latency.likely(2) == pytest.approx(0.1)
    assert latency.likely(4) == pytest.approx(0.2)
    assert latency.expect(4) == pytest.approx(0.4), "the event loop takes no such chance"
    assert latency.known(4) == pytest.approx(0.1), "nobody is refused for what was never seen"


def test_sizes_that_no_longer_occur_are_forgotten() -> None:
    """A machine was slow while large batches ran; now small ones do, and the large may be tried again."""
    latency = LatencyModel(0.01)
    for rows in (1, 2, 8):
        latency.observe(rows, 1.0)
    for _ in range(2 * LatencyModel.RECENT):
        for rows in (1, 2):
            run(latency, rows, 0.01 + 0.001 * rows)
    assert latency.likely(8) == pytest.approx(0.018, rel=0.02)


def test_a_small_size_that_no_longer_occurs_takes_no_longer_than_a_larger_one() -> None:
    latency = LatencyModel(1.0)
    for _ in range(2 * LatencyModel.RECENT):
        run(latency, 8, 0.01)
    assert latency.expect(1) == latency.likely(1) == pytest.approx(0.01)
    assert latency.likely(8) == pytest.approx(0.01)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-6, 1)), max_size=300), st.integers(1, 5000))
def test_what_is_likely_is_never_more_than_caution_expects(runs: list[tuple[int, float]], rows: int) -> None:
    latency = LatencyModel(0.5)
    for size, seconds in runs:
        run(latency, size, seconds)
    assert 0 < latency.likely(rows) <= latency.expect(rows)
    assert 0 <= latency.known(rows) <= latency.expect(rows)


def test_runs_that_are_fast_again_speak_for_all_sizes() -> None:
    """Else every size would have to be tried anew, by requests that are refused because of it."""
    latency = LatencyModel(1.0)
    for rows in (1, 2, 4, 8):
        for _ in range(20):
            run(latency, rows, 1.0)
    for times in (1, 2, 3):
        for _ in range(LatencyModel.FAST_RUNS):
            run(latency, 1, 0.01)
        assert latency.expect(8) == pytest.approx(0.5**times)
        assert latency.expect(1) < 0.5**times


def test_a_fast_run_now_and_then_changes_little() -> None:
    """Some requests leave a model early; that says nothing about the others."""
    latency = LatencyModel(0.01)
    for i in range(100):
        run(latency, 1, 0.001 if i % 3 == 0 else 0.01)
    assert 0.005 < latency.expect(1) < 0.009
