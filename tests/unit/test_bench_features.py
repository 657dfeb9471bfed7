"""What `hedgerow bench features` asks for, and how its answers become a report."""

import json
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hedgerow_bench import charts, features, features_data, reports, tables
from hedgerow_bench.peers import catalog
from hedgerow_protos.feature_row import CacheCodec, RowLayout


def run(milliseconds, failed=0):
    return {"latency": [each / 1e3 for each in milliseconds], "failed": failed, "cpu": 0.5}


def feast(milliseconds):
    return run(milliseconds) | {"before_dict": [each / 2e3 for each in milliseconds]}


READ = features.in_turn_row(
    100, {"hedgerow": [run([1, 1, 2]), run([2, 2, 2], failed=1)], "feast": [feast([10, 10]), feast([30, 30])]}
)
JOIN = features.open_loop_row(1, 500.0, run([1] * 99 + [9]) | {"lag": [1e-4] * 100})
SERVER = {
    "what": "server",
    "sent": "ids",
    "entities": 1,
    "rate": 500.0,
    "requests": 9,
    "failed": 0,
    "latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99_9": 4.0, "max": 5.0},
}


def test_the_ratio_is_taken_within_a_round():
    assert READ["times_faster"]["rounds"] == pytest.approx([10, 15])
    assert READ["times_faster_before_dict"]["rounds"] == pytest.approx([5, 7.5])
    assert READ["readers"]["hedgerow"]["requests"] == 6
    assert READ["failed"] == 1


def test_without_feast_there_is_a_row_and_no_ratio():
    row = features.in_turn_row(1, {"hedgerow": [run([1])]})
    assert row["readers"]["hedgerow"]["p50_ms"]["median"] == pytest.approx(1)
    assert "times_faster" not in row


def test_the_open_loop_is_held_against_its_target():
    assert JOIN["latency_ms"]["max"] == pytest.approx(9, rel=0.01)
    assert JOIN["target_p99_ms"] == 1.5
    assert not JOIN["generator_was_the_limit"]
    late = features.open_loop_row(1, 500.0, run([1] * 100) | {"lag": [9e-4] * 100})
    assert late["generator_was_the_limit"]


@pytest.mark.parametrize("read", [READ, features.in_turn_row(1, {"hedgerow": [run([1])]})])
def test_the_report_is_three_tables_and_with_feast_a_chart(read):
    report = {"measurement": "features", "rows": [read, JOIN, SERVER]}
    found = tables.tables(report)
    assert [len(table.rows) for table in found] == [1, 1, 1]
    for table in found:
        assert all(len(row) == len(table.headings) for row in table.rows)
    assert len(charts.charts(report)) == len(read["readers"]) - 1


def test_questions_ask_for_each_entity_once_and_repeat_with_their_seed():
    asked = features_data.questions(100, 5, seed=1)
    assert asked.shape == (5, 100)
    assert all(len(set(ids)) == 100 for ids in asked.tolist())
    np.testing.assert_array_equal(asked, features_data.questions(100, 5, seed=1))


def test_the_cache_is_filled_as_a_server_fills_it():
    numbers = features_data.values()[:3]
    (view,) = features_data.serving().features.views
    entries = features_data.cached(numbers)
    assert [key for key, _ in entries] == [
        b"hedgerow:features:customers@1:%d" % entity for entity in range(3)
    ]
    found = CacheCodec(view).unpack(entries[2][1])
    assert list(RowLayout(view).unpack(found.row).values()) == numbers[2].tolist()


def test_the_pacer_writes_at_each_moment_and_not_before():
    due = [time.monotonic() + 0.01 * number for number in range(5)]
    command = [sys.executable, "-I", "-S", str(features_data.PACER)]
    done = subprocess.run(
        command, input=json.dumps(due).encode(), capture_output=True, check=True, timeout=60
    )
    written = [moment for (moment,) in struct.iter_unpack("<d", done.stdout)]
    assert len(written) == 5
    assert all(moment >= planned for moment, planned in zip(written, due, strict=True))


async def test_feast_that_cannot_be_installed_is_one_line_of_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "pins", lambda: {"feast": [str(tmp_path / "no-such-package.whl")]})
    report = reports.Report()
    assert await features._feast(tmp_path, report) is None
    (line,) = report.notes
    assert line.startswith("Feast is left out: cannot be installed")
    assert "\n" not in line
