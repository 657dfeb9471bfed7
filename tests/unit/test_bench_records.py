"""What is kept of a run, and what is computed from it."""

import numpy as np
import pytest
from hedgerow_bench.asking import Questions
from hedgerow_bench.records import OK, OVERFLOW, Log, Records, percentiles_ms


@pytest.fixture
def records():
    log = Log()
    log.add(2.0, 0.0, 0.5, "2", OK)
    log.add(1.0, 0.001, 0.010, "1", OK)
    log.add(3.0, 0.0, 2.0, "", OVERFLOW)
    log.add(4.0, 0.0, 0.020, "", "UNAVAILABLE")
    return log.records()


def test_records_are_in_the_order_of_their_due_times(records):
    assert records.scheduled.tolist() == [1, 2, 3, 4]
    assert records.version.tolist() == ["1", "2", "", ""]


def test_everything_but_ok_is_a_failure(records):
    assert records.failed == 2
    summary = records.summary()
    assert summary["statuses"] == {OK: 2, OVERFLOW: 1, "UNAVAILABLE": 1}
    assert summary["versions"] == {"1": 1, "2": 1}


def test_a_window_takes_requests_by_due_time(records):
    assert records.window(2.0, 4.0).scheduled.tolist() == [2, 3]


def test_replies_of_a_version_are_dated_by_their_arrival(records):
    assert records.answered_by("2").tolist() == [2.5]


def test_records_survive_the_file(records, tmp_path):
    records.save(tmp_path / "records.npz")
    again = Records.read(tmp_path / "records.npz")
    assert again.summary() == records.summary()
    assert again.latency.tolist() == records.latency.tolist()


def test_percentiles_are_those_of_the_values():
    """Within the histogram's three digits."""
    found = percentiles_ms(np.arange(1, 10_001) / 1000)
    assert found["p50"] == pytest.approx(5000, rel=1e-3)
    assert found["p99"] == pytest.approx(9900, rel=1e-3)
    assert found["max"] == pytest.approx(10_000, rel=1e-3)
    assert percentiles_ms(np.array([])) == {}


def test_an_answer_is_held_against_the_version_that_claims_it():
    """Another row's answer, or another version's, is wrong; an unknown version cannot be judged."""
    rows = {"x": np.array([[1.0], [2.0]], np.float32)}
    questions = Questions(
        rows, {"expected:1:y": np.array([[10.0], [20.0]]), "expected:2:y": np.array([[0.0], [1.0]])}
    )
    assert questions.inputs(3)["x"].tolist() == [[2.0]]
    assert questions.right(3, "1", {"y": np.array([[20.0001]])})
    assert not questions.right(2, "1", {"y": np.array([[20.0]])})
    assert not questions.right(3, "2", {"y": np.array([[20.0]])})
    assert questions.right(3, "9", {"y": np.array([[7.0]])})
