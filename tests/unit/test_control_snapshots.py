"""What is remembered of a server, and what is made of its numbers."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from hedgerow_control.snapshots import latency
from hedgerow_control.snapshots.hub import Hub
from hedgerow_control.snapshots.node import MAX_VERSIONS, Node, total, version_keys
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_server.engine.statistics import LATENCY_BOUNDS
from hypothesis import given
from hypothesis import strategies as st


def snapshot(version: int, *numbers: str) -> pb.Snapshot:
    versions = [pb.ModelVersion(version=number, digest=f"sha256:{number}") for number in numbers]
    return pb.Snapshot(version=version, models=[pb.Model(name="m", versions=versions)])


def connected(**hello) -> Node:
    node = Node("n/0")
    node.hello(pb.Hello(node="n/0", **hello), now=0.0)
    return node


def test_a_server_holds_warm_what_it_acknowledged_last():
    node = connected()
    sent = node.sending(snapshot(3, "1", "2"), now=1.0)
    assert node.warm is None
    node.ack(pb.Ack(nonce=sent.nonce, snapshot_version=3))
    assert node.warm == version_keys(sent) == {("m", "1", "sha256:1"), ("m", "2", "sha256:2")}
    assert node.snapshot_version == 3


def test_a_nonce_of_another_stream_means_nothing():
    node = connected()
    node.sending(snapshot(3, "1"), now=1.0)
    node.ack(pb.Ack(nonce="somebody's", snapshot_version=3))
    assert node.warm is None
    assert node.nack(pb.Nack(nonce="somebody's", snapshot_version=3), 1.0) is None


def test_an_answer_to_a_newer_snapshot_settles_the_older_ones():
    node = connected()
    node.sending(snapshot(3, "1"), now=1.0)
    newer = node.sending(snapshot(4, "1"), now=2.0)
    node.ack(pb.Ack(nonce=newer.nonce, snapshot_version=4))
    assert not node.overdue(1000.0, 10.0)


def test_an_unanswered_snapshot_is_overdue_counted_from_the_oldest():
    node = connected()
    node.sending(snapshot(3, "1"), now=1.0)
    node.sending(snapshot(4, "1"), now=9.0)
    assert not node.overdue(10.9, 10.0)
    assert node.overdue(11.0, 10.0)


def test_a_refused_snapshot_is_sent_again_ever_later():
    node = connected()
    waits = []
    for _ in range(8):
        sent = node.sending(snapshot(3, "1"), now=0.0)
        node.nack(pb.Nack(nonce=sent.nonce, reason="no"), now=0.0)
        waits.append(node.resend_at)
    assert waits == sorted(waits)
    assert waits[-1] == 60.0
    assert node.last_nack == "no"


class Told:
    """What the hub tells of servers."""

    def __init__(self):
        self.refused: list[str] = []

    def wake(self):
        pass

    def acked(self, warm):
        pass

    def nacked(self, node, refused, nack):
        self.refused.append(nack.model_version)


def test_a_server_that_cannot_fetch_now_fails_no_version_and_its_late_acknowledgement_counts():
    hub = Hub(clock=lambda: 5.0)
    hub.events = told = Told()
    node = connected(snapshot_version=2)
    sent = node.sending(snapshot(3, "1"), now=1.0)
    nack = pb.Nack(nonce=sent.nonce, reason="UNAVAILABLE", model="m", model_version="1", transient=True)
    hub._hear(pb.SubscribeRequest(nack=nack), node)
    assert told.refused == []
    assert node.last_nack == "UNAVAILABLE"
    assert node.resend_at is None, "it goes on by itself"
    assert node.overdue(11.0, 10.0), "and does not hold the others up for ever"
    hub._hear(pb.SubscribeRequest(ack=pb.Ack(nonce=sent.nonce)), node)
    assert node.warm == version_keys(sent)
    assert node.last_nack == ""
    sent = node.sending(snapshot(4, "2"), now=6.0)
    hub._hear(pb.SubscribeRequest(nack=pb.Nack(nonce=sent.nonce, model="m", model_version="2")), node)
    assert told.refused == ["2"]


@pytest.mark.parametrize(
    ("state", "answers"),
    [
        (pb.VERSION_STATE_SERVING, True),
        (pb.VERSION_STATE_DRAINING, True),
        (pb.VERSION_STATE_READY, False),
        (pb.VERSION_STATE_DROPPED, False),
    ],
)
def test_replies_come_from_a_version_until_it_is_drained(state, answers):
    node = connected()
    node.report(pb.VersionReport(model="m", model_version="1", state=pb.VERSION_STATE_SERVING))
    node.report(pb.VersionReport(model="m", model_version="1", state=state))
    assert node.answers_from("m", "1") is answers


def test_what_one_server_can_make_us_remember_is_bounded():
    node = connected()
    for number in range(MAX_VERSIONS + 50):
        node.report(pb.VersionReport(model="m", model_version=str(number), state=pb.VERSION_STATE_READY))
        node.sending(snapshot(number, "1"), now=0.0)
    node.stats(
        pb.Stats(versions=[pb.VersionStats(model=str(i), latency_buckets=[1] * 500) for i in range(2000)])
    )
    assert len(node.states) == MAX_VERSIONS
    assert len(node.unanswered) == 16
    assert len(node.present) == MAX_VERSIONS
    assert all(len(counts.buckets) == latency.BUCKETS for counts in node.present.values())


def test_counts_go_on_over_a_reconnect_and_add_up_over_servers():
    node, other = connected(), connected()
    for _ in range(2):
        node.stats(
            pb.Stats(
                versions=[pb.VersionStats(model="m", model_version="1", succeeded=5, latency_buckets=[5])]
            )
        )
        node.stats(
            pb.Stats(
                versions=[pb.VersionStats(model="m", model_version="1", succeeded=7, latency_buckets=[7])]
            )
        )
        node.goodbye(1.0)
        node.hello(pb.Hello(node="n/0"), 2.0)
    other.stats(pb.Stats(versions=[pb.VersionStats(model="m", model_version="1", succeeded=1, failed=2)]))
    summed = total({"a": node, "b": other})["m", "1"]
    assert (summed.succeeded, summed.failed, summed.buckets[0]) == (15, 2, 14)


def test_only_a_server_that_serves_and_keeps_up_holds_a_move_up():
    hub = Hub()
    hub.nodes["n/0"] = node = connected()
    key = ("m", "1", "sha256:1")
    assert hub.ready(key), "it serves nothing yet"
    sent = node.sending(snapshot(1), now=0.0)
    node.ack(pb.Ack(nonce=sent.nonce))
    assert not hub.ready(key)
    node.left_behind = True
    assert hub.ready(key)
    node.left_behind = False
    sent = node.sending(snapshot(2, "1"), now=0.0)
    node.ack(pb.Ack(nonce=sent.nonce))
    assert hub.ready(key)
    assert not hub.ready(("m", "1", "sha256:other files"))
    hub.nodes["n/1"] = connected(snapshot_version=7)
    assert not hub.ready(key), "it serves what an earlier control plane told it"
    hub.nodes["n/1"].goodbye(1.0)
    assert hub.ready(key)


def test_the_buckets_are_those_of_the_servers():
    assert len(LATENCY_BOUNDS) + 1 == latency.BUCKETS
    assert [latency.bound(i) for i in range(len(LATENCY_BOUNDS))] == pytest.approx(LATENCY_BOUNDS)


@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_within_one_bucket_of_the_true_one(seed, fraction):
    source = random.Random(seed)
    durations = sorted(source.lognormvariate(-6, 1) for _ in range(500))
    buckets = [0] * latency.BUCKETS
    for duration in durations:
        buckets[bisect_left(LATENCY_BOUNDS, duration)] += 1
    true = durations[round(fraction * 500) - 1]
    assert true / 1.2 <= latency.percentile(buckets, fraction) <= true * 1.2


def test_a_percentile_of_nothing_is_zero():
    assert latency.percentile([], 0.5) == 0.0
    assert latency.percentile([0] * latency.BUCKETS, 0.99) == 0.0
