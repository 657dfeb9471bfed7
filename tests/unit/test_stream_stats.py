"""What goes to the control plane besides acknowledgements: statistics, reports, and the pace of tries."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hedgerow_protos.hedgerow_control_pb2 import (
    VERSION_STATE_DROPPED,
    VERSION_STATE_FAILED,
    VERSION_STATE_READY,
    VERSION_STATE_SERVING,
)
from hedgerow_server.engine.statistics import VersionStatistics
from hedgerow_server.routing.backoff import Backoff
from hedgerow_server.routing.reports import MAX_FAILED, Reports
from hedgerow_server.routing.stream_stats import MAX_DROPPED, StreamStats
from hypothesis import given
from hypothesis import strategies as st


@dataclass
class Version:
    """A version with its counters."""

    version: str = "1"
    name: str = "m"
    statistics: VersionStatistics = field(default_factory=VersionStatistics)


def test_what_was_before_the_stream_does_not_count():
    one = Version()
    one.statistics.answered(0, 1000)
    stats = StreamStats([one])
    one.statistics.answered(0, 1000)
    one.statistics.answered(3, 1000)
    (told,) = stats.read([one]).versions
    assert (told.succeeded, told.failed, sum(told.latency_buckets)) == (1, 1, 2)


def test_new_counters_of_the_same_version_go_on_from_the_old_sum():
    """It was dropped and loaded again."""
    stats = StreamStats([])
    for _ in range(3):
        again = Version()
        again.statistics.answered(0, 1000)
        told = stats.read([again])
        assert not stats.read([]).versions
    assert told.versions[0].succeeded == 3


def test_two_digests_under_one_name_are_told_as_one_sum():
    old, new = Version(), Version()
    old.statistics.answered(0, 1)
    new.statistics.answered(0, 1)
    (told,) = StreamStats([]).read([new, old]).versions
    assert told.succeeded == 2


def test_the_sums_of_dropped_versions_are_bounded():
    stats = StreamStats([])
    for number in range(MAX_DROPPED + 100):
        stats.read([Version(str(number))])
    assert len(stats._sums) == MAX_DROPPED + 1


@given(st.lists(st.tuples(st.sampled_from(["answer", "reload", "read"]), st.integers(0, 2)), max_size=60))
def test_sums_never_go_back_while_a_stream_lasts(steps):
    present = {number: Version(str(number)) for number in range(3)}
    stats = StreamStats(present.values())
    readings = [stats.read(present.values())]
    for step, number in steps:
        if step == "answer":
            present[number].statistics.answered(0, 1000)
        elif step == "reload":
            present[number] = Version(str(number))
        else:
            readings.append(stats.read(present.values()))
    for before, after in pairwise(readings):
        for old, new in zip(before.versions, after.versions, strict=True):
            assert new.succeeded >= old.succeeded
            assert all(b >= a for a, b in zip(old.latency_buckets, new.latency_buckets, strict=True))


def test_reports_hold_the_latest_state_and_forget_what_was_dropped():
    heard = []
    reports = Reports()
    reports.listen(heard.append)
    reports.record("m", "1", VERSION_STATE_READY, "")
    reports.record("m", "1", VERSION_STATE_SERVING, "")
    reports.record("m", "2", VERSION_STATE_READY, "")
    reports.record("m", "2", VERSION_STATE_DROPPED, "")
    assert [(one.model_version, one.state) for one in reports.current()] == [("1", VERSION_STATE_SERVING)]
    assert len(heard) == 4


def test_of_failed_versions_the_latest_are_remembered():
    reports = Reports()
    reports.record("m", "9999", VERSION_STATE_SERVING, "")
    for number in range(MAX_FAILED + 10):
        reports.record("m", str(number), VERSION_STATE_FAILED, "truncated")
    left = [one.model_version for one in reports.current()]
    assert len(left) == MAX_FAILED + 1
    assert left[:2] == ["9999", "10"]


def test_waits_double_to_the_cap_and_are_spread_from_nothing_to_the_bound():
    longest = Backoff(first=0.1, cap=5.0, uniform=lambda: 1.0)
    assert [round(longest.wait(), 3) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    longest.reset()
    assert longest.wait() == 0.1
    assert Backoff(uniform=lambda: 0.0).wait() == 0.0
