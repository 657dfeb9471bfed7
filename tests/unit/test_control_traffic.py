"""Shares and costs of variants, from what servers say to what `hedgerow status` is told."""

from __future__ import annotations

import math

import pytest
from hedgerow_control.snapshots.node import MAX_VERSIONS, Node
from hedgerow_control.snapshots.traffic import Ledger, variants
from hedgerow_protos import hedgerow_control_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

COSTS = {"1": 2.0, "2": 0.5}


def published(economy: int = 10, champion: str = "1", version: int = 1) -> pb.Snapshot:
    routes = [
        pb.Route(variant="champion", version=champion, weight=100 - economy),
        pb.Route(variant="economy", version="2", weight=economy),
    ]
    return pb.Snapshot(version=version, models=[pb.Model(name="m", routes=routes)])


def stats(*variants: tuple[str, str, int], cost: float = 0.0, saved: float = 0.0) -> pb.Stats:
    """(version, variant, requests) since the stream opened; each request has two rows."""
    told: dict[str, pb.VersionStats] = {}
    for version, variant, requests in variants:
        told.setdefault(version, pb.VersionStats(model="m", model_version=version)).variants.add(
            variant=variant, requests=requests, predictions=2 * requests, cost_units=cost, saved_units=saved
        )
    return pb.Stats(versions=told.values())


class Server:
    """A node with what it says."""

    def __init__(self, name: str = "n/0") -> None:
        self.node = Node(name)
        self.node.hello(pb.Hello(node=name), now=0.0)

    def takes_up(self, snapshot: pb.Snapshot) -> None:
        sent = self.node.sending(snapshot, now=0.0)
        self.node.ack(pb.Ack(nonce=sent.nonce, snapshot_version=snapshot.version))

    def reconnects(self) -> None:
        self.node.goodbye(0.0)
        self.node.hello(pb.Hello(node=self.node.name), now=0.0)


def seen(snapshot: pb.Snapshot, *servers: Server) -> dict[str, pb.VariantStatus]:
    ledgers = [Ledger(s.node.answered().get("m", {}), s.node.marks.get("m")) for s in servers]
    return {one.variant: one for one in variants(snapshot.models[0], ledgers, COSTS)}


def share(found: dict[str, pb.VariantStatus], variant: str) -> float | None:
    return found[variant].served_share if found[variant].HasField("served_share") else None


def test_a_share_is_of_what_was_answered_since_the_routes_were_taken_up():
    """A weight that was changed an hour ago must not hide behind the day before."""
    server = Server()
    server.takes_up(published(0))
    server.node.stats(stats(("1", "champion", 1000)))
    server.takes_up(published(50, version=2))
    assert share(seen(published(50), server), "economy") is None
    server.node.stats(stats(("1", "champion", 1040), ("2", "economy", 60)))
    found = seen(published(50), server)
    assert share(found, "economy") == pytest.approx(0.6)
    assert share(found, "champion") == pytest.approx(0.4)
    assert (found["champion"].requests, found["champion"].predictions) == (1040, 2080)
    # The same routes in another snapshot are no new beginning.
    server.takes_up(published(50, version=3))
    assert share(seen(published(50), server), "economy") == pytest.approx(0.6)


def test_a_server_that_has_not_taken_the_routes_up_says_nothing_of_their_shares():
    late, prompt = Server("a/0"), Server("b/0")
    late.takes_up(published(0))
    late.node.stats(stats(("1", "champion", 1000)))
    prompt.takes_up(published(50))
    prompt.node.stats(stats(("1", "champion", 5), ("2", "economy", 5)))
    found = seen(published(50), late, prompt, Server("silent/0"))
    assert share(found, "economy") == 0.5
    assert found["champion"].requests == 1005, "but it counts in the sums"


def test_requests_for_a_version_by_number_are_no_part_of_the_shares():
    server = Server()
    server.takes_up(published(10))
    server.node.stats(stats(("1", "champion", 9), ("2", "economy", 1), ("2", "asked", 90), cost=1.0))
    found = seen(published(10), server)
    assert share(found, "economy") == pytest.approx(0.1)
    assert share(found, "asked") is None
    assert (found["asked"].version, found["asked"].weight, found["asked"].requests) == ("", 0, 90)
    assert found["asked"].cost_units == 1.0
    assert list(found) == ["champion", "economy", "asked"], "those with a route first"


def test_a_variant_has_what_all_its_versions_cost_and_the_price_of_the_present_one():
    server = Server()
    server.node.stats(stats(("7", "champion", 10), ("1", "champion", 20), cost=3.0, saved=-1.0))
    found = seen(published(10), server)["champion"]
    assert (found.requests, found.cost_units, found.saved_units) == (30, 6.0, -2.0)
    assert (found.version, found.cost_per_1k) == ("1", 2.0)
    unpriced = seen(published(10, champion="9"), server)["champion"]
    assert not unpriced.HasField("cost_per_1k")


def test_a_version_that_a_server_dropped_keeps_what_it_cost():
    """Its last count came with the report of its drop."""
    server = Server()
    server.node.stats(stats(("1", "champion", 10), ("2", "economy", 4), cost=1.0))
    server.node.stats(stats(("1", "champion", 11), cost=1.5))
    assert seen(published(), server)["economy"].cost_units == 1.0
    # Loaded again, its sums go on from there.
    server.node.stats(stats(("1", "champion", 11), ("2", "economy", 5), cost=1.5))
    assert seen(published(), server)["economy"].requests == 5


def test_a_reconnect_adds_to_what_was_counted_and_shares_go_on():
    server = Server()
    for _ in range(3):
        server.takes_up(published(50))
        server.node.stats(stats(("1", "champion", 3), ("2", "economy", 1), cost=1.0, saved=0.5))
        server.reconnects()
    found = seen(published(50), server)
    assert (found["economy"].requests, found["economy"].cost_units, found["economy"].saved_units) == (
        3,
        3,
        1.5,
    )
    assert share(found, "economy") == 0.25


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_server_that_counts_nonsense_spoils_no_sum(number):
    server, other = Server(), Server("b/0")
    server.node.stats(stats(("2", "economy", 1), cost=number, saved=number))
    other.node.stats(stats(("2", "economy", 1), cost=1.0, saved=1.0))
    found = seen(published(), server, other)["economy"]
    assert (found.cost_units, found.saved_units) == (1.0, 1.0)


def test_what_one_server_can_make_us_remember_of_variants_is_bounded():
    server = Server()
    for number in range(3):
        server.node.stats(
            pb.Stats(
                versions=[
                    pb.VersionStats(
                        model=f"m{i}",
                        model_version=str(number),
                        variants=[pb.VariantStats(variant=f"v{j}") for j in range(100)],
                    )
                    for i in range(MAX_VERSIONS)
                ]
            )
        )
    assert len(server.node.present) == MAX_VERSIONS
    assert {version for _, version in server.node.present} == {"2"}, "the latest are kept"
    assert all(len(counts.variants) <= 8 for counts in server.node.present.values())
    assert len(server.node.answered()) <= MAX_VERSIONS


def test_of_many_versions_that_come_and_go_the_one_that_stays_is_not_forgotten():
    server = Server()
    for number in range(MAX_VERSIONS + 10):
        server.node.stats(stats(("1", "champion", number), (str(1000 + number), "asked", 1)))
        assert server.node.present["m", "1"].variants["champion"].requests == number
    assert len(server.node.present) == MAX_VERSIONS


steps = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.sampled_from(["champion", "economy"]), st.integers(1, 50)),
        st.tuples(st.just("route"), st.integers(0, 100), st.none()),
        st.tuples(st.just("reconnect"), st.none(), st.none()),
    ),
    max_size=25,
)


@given(steps)
def test_whatever_happens_shares_are_those_since_the_last_change_of_routes(history):
    server = Server()
    snapshot = published(10)
    server.takes_up(snapshot)
    stream = {"champion": 0, "economy": 0}
    total, since = dict(stream), dict(stream)
    for kind, one, count in history:
        if kind == "answer":
            for sums in (stream, total, since):
                sums[one] += count
            server.node.stats(
                stats(("1", "champion", stream["champion"]), ("2", "economy", stream["economy"]))
            )
        elif kind == "route":
            changed, snapshot = published(one), published(one)
            if changed.models[0].routes != server_routes(server):
                since = dict.fromkeys(since, 0)
            server.takes_up(snapshot)
        else:
            server.reconnects()
            stream = dict.fromkeys(stream, 0)
            server.takes_up(snapshot)
    found = seen(snapshot, server)
    for variant in ("champion", "economy"):
        assert found[variant].requests == total[variant]
        routed = sum(since.values())
        assert share(found, variant) == (pytest.approx(since[variant] / routed) if routed else None)


def server_routes(server: Server) -> list[pb.Route]:
    return [pb.Route(variant=v, version=n, weight=w) for v, n, w in server.node.marks["m"].routes]
