"""The demo as `make demo` plays it."""

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(420)
def test_the_demo_swaps_rolls_back_and_outlives_its_feature_store_without_losing_a_request(tmp_path):
    """Everything the README promises, by the demo's own report."""
    played = subprocess.run(
        [sys.executable, "-m", "hedgerow_local.demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert played.returncode == 0, played.stdout + played.stderr
    report = json.loads((tmp_path / "var/demo/report.json").read_text())
    assert report["failed"] == 0
    assert report["requests"] > 300 * 20
    assert report["versions_seen"] == ["1", "2"]
    assert 0 < report["swap"]["alias_to_served_ms"] < 60_000
    assert report["swap"]["p99_ms_before"] > 0
    assert report["swap"]["p99_ms_during"] > 0
    assert report["swap"]["failed_during"] == 0
    assert report["rollback"]["complete"]
    assert 0 <= report["rollback"]["ms"] < 10_000
    assert report["rollback"]["sent_later_answered_by_bad_version"] == 0
    outage = report["features"]["outage"]
    assert outage["too_old"] == 0
    assert outage["failed_during"] == 0
    assert outage["during"]["stale"] > 0
    assert outage["during"]["default"] > 0
    assert report["features"]["answers"]["fresh"] > 300 * 20
    assert report["features"]["loaded"]["airport_hour@1"]["rows"] > 20_000
    first, second = report["model"]["versions"]
    assert second["mae"] < first["mae"] < report["model"]["baseline"]["mae"]
    assert all(scene["ok"] for scene in report["scenes"])
    hedging = report["hedging"]
    assert hedging["as_long_as_a_stall"]["with"] < hedging["as_long_as_a_stall"]["without"]
    assert 0 < hedging["hedges_at_backup"] <= 0.02 * hedging["requests"] + 10
    fallback = report["fallback"]
    assert sum(fallback["outcomes"].values()) == fallback["requests"] == 300
    assert set(fallback["outcomes"]) == {"fallback: late_day", "fallback: usual"}
    assert set(fallback["outcomes_after_rollback"]) <= {"primary", "hedge"}
    for plot in ("latency.png", "features.png", "hedging.png"):
        assert (tmp_path / "var/demo" / plot).read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["var"]
