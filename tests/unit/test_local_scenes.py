"""How the demo plays its scenes and computes its numbers."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from io import StringIO

import numpy as np
import pytest
from hedgerow_bench.records import OK, Log
from hedgerow_bench.swap import alias_to_served
from hedgerow_local.demo.account import rollback_numbers, swap_numbers
from hedgerow_local.demo.outage import outage_numbers
from hedgerow_local.demo.prepare import STALE_TTL
from hedgerow_local.demo.stage import SceneFailed, Stage, merge, play
from rich.console import Console


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, Console(file=StringIO()), AsyncExitStack())


@dataclass
class Says:
    """A scene that contributes to the report and may complain."""

    contribution: dict
    name: str = "says"
    title: str = "A scene"
    complaint: str = ""

    async def run(self, stage):
        stage.expect(not self.complaint, self.complaint)
        return self.contribution


class Fails(Says):
    """A scene after which the demo cannot go on."""

    async def run(self, stage):
        raise SceneFailed("no server")


async def test_scenes_report_in_turn_and_deeply(stage):
    await play([Says({"swap": {"a": 1}, "requests": 1}), Says({"swap": {"b": 2}, "requests": 2})], stage)
    assert stage.report["swap"] == {"a": 1, "b": 2}
    assert stage.report["requests"] == 2
    assert [scene["ok"] for scene in stage.report["scenes"]] == [True, True]


async def test_a_complaint_marks_its_scene_and_the_play_goes_on(stage):
    await play([Says({}, complaint="3 requests failed"), Says({})], stage)
    assert [scene["ok"] for scene in stage.report["scenes"]] == [False, True]
    assert stage.complaints == ["3 requests failed"]


async def test_a_failed_scene_ends_the_play_and_is_listed_as_failed(stage):
    with pytest.raises(SceneFailed, match="no server"):
        await play([Says({}), Fails({}), Says({})], stage)
    assert [scene["ok"] for scene in stage.report["scenes"]] == [True, False]


def test_merging_replaces_values_and_joins_mappings():
    report = {"a": {"x": 1, "y": 1}, "b": 1}
    merge(report, {"a": {"y": 2}, "b": [2]})
    assert report == {"a": {"x": 1, "y": 2}, "b": [2]}


MARKS = {
    "load_started": 100.0,
    "publish_started": 110.0,
    "alias_moved": 112.0,
    "rollback": 120.0,
    "rollback_acknowledged": 120.03,
}


def told(*replies):
    """Records of (due, milliseconds, version)."""
    log = Log()
    for due, milliseconds, version in replies:
        log.add(due, 0.0, milliseconds / 1000, version, OK)
    return log.records()


def test_the_swap_is_counted_from_the_alias_move_to_the_first_reply_of_the_new_version():
    records = told(
        *((100 + 0.1 * n, 5, "1") for n in range(100)),
        (112.5, 50, "1"),
        (112.9, 100, "2"),
        (112.95, 10, "1"),
        (115.0, 5, "2"),
        (121.0, 500, "1"),
    )
    numbers = swap_numbers(records, MARKS)
    assert numbers["alias_to_served_ms"] == 1000.0
    assert numbers["last_reply_of_old_version_ms"] == 960.0
    assert numbers["p99_ms_before"] == pytest.approx(5, rel=1e-3)
    assert numbers["p99_ms_during"] == pytest.approx(100, rel=1e-3)


def test_the_rollback_lasts_until_the_last_reply_of_the_bad_version():
    records = told((119.0, 5, "2"), (120.0, 40, "2"), (120.02, 5, "2"), (120.1, 5, "1"))
    numbers = rollback_numbers(records, MARKS)
    assert numbers["ms"] == 40.0
    assert numbers["sent_later_answered_by_bad_version"] == 0


def test_a_request_sent_after_the_acknowledgement_and_answered_by_the_bad_version_is_found():
    numbers = rollback_numbers(told((120.0, 5, "2"), (120.5, 5, "2")), MARKS)
    assert numbers["sent_later_answered_by_bad_version"] == 1


def test_a_move_that_is_never_served_waits_forever():
    """Replies after the next move belong to that one."""
    records = told((1.5, 100, "2"), (2.5, 100, "1"), (3.9, 100, "1"))
    waits = alias_to_served(records, [("2", 1.0), ("1", 2.0), ("2", 3.0)])
    assert waits == pytest.approx(np.array([0.6, 0.6, np.inf]))


OUTAGE = {
    "postgres_killed": 200.0,
    "valkey_killed": 204.0,
    "restarted": 200.0 + STALE_TTL + 4,
    "restored": 200.0 + STALE_TTL + 5,
}


def aged(*replies):
    """Records of (due, how old the features were), each answered after a millisecond."""
    log = Log()
    for due, age in replies:
        log.add(due, 0.0, 0.001, "1", OK, age)
    return log.records()


def test_an_outage_is_counted_from_the_kill_to_the_first_second_as_fresh_as_before():
    back = OUTAGE["restored"]
    before = [(196.0 + 0.1 * n, "stale" if n == 7 else "fresh") for n in range(40)]
    during = [(200.4, "stale"), (200.5, "fresh"), (209.0, "stale"), (212.0, "default")]
    after = [(back + 0.05 + 0.1 * n, "default" if n < 6 else "fresh") for n in range(40)]
    numbers = outage_numbers(aged(*before, *during, *after), OUTAGE)
    assert numbers["first_stale_seconds"] == pytest.approx(0.401)
    assert numbers["during"] == {"stale": 2, "fresh": 1, "default": 1}
    assert numbers["too_old"] == 0
    assert numbers["fresh_again_seconds"] == pytest.approx(0.65)


@pytest.mark.parametrize("age", ["fresh", "stale"])
def test_a_value_served_past_its_time_is_found(age):
    """Nobody can have asked the store since it died."""
    late = 200.0 + STALE_TTL + 0.1
    assert outage_numbers(aged((199.0, "fresh"), (late, age), (late, "default")), OUTAGE)["too_old"] == 1
