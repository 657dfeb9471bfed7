"""Which connection takes the next call, and which worker it leads to."""

from __future__ import annotations

import itertools
from collections import Counter

import hedgerow
import pytest
from hedgerow.connection import DatatypeCache, Settings, Tls
from hedgerow.lanes import LONGEST_PAUSE, MOST, WORKER, Lanes
from hypothesis import given
from hypothesis import strategies as st


class Channel:
    """A channel that is never called; the stub only asks it for callables."""

    worker = 0

    def unary_unary(self, *args, **kwargs):
        return None

    stream_stream = unary_unary


def lanes(count: int) -> Lanes[Channel]:
    return Lanes(Channel, lambda channel: None, count)


def test_calls_that_end_at_once_take_turns():
    some = lanes(3)
    used = Counter()
    for _ in range(30):
        lane = some.acquire()
        used[lane] += 1
        some.release(lane)
    assert sorted(used.values()) == [10, 10, 10]


def test_calls_under_way_spread_evenly():
    some = lanes(3)
    held = Counter(some.acquire() for _ in range(9))
    assert sorted(held.values()) == [3, 3, 3]


def test_a_connection_that_hangs_gets_no_more_calls():
    some = lanes(2)
    stuck = some.acquire()
    for _ in range(10):
        lane = some.acquire()
        assert lane is not stuck
        some.release(lane)


def test_released_lanes_count_as_free_again():
    some = lanes(2)
    first, second = some.acquire(), some.acquire()
    some.release(first)
    assert some.acquire() is first
    assert (first.outstanding, second.outstanding) == (1, 1)


class Kernel:
    """Gives each new connection to a worker, as it likes, of a server with several; time stands still."""

    def __init__(self, leads_to, workers: int, channels: int = 2) -> None:
        self.leads_to = iter(leads_to)
        self.workers = workers
        self.closed: list[Channel] = []
        self.opened = 0
        self.now = 0.0
        self.lanes = Lanes(self._connect, self.closed.append, channels, clock=lambda: self.now)

    def _connect(self) -> Channel:
        self.opened += 1
        channel = Channel()
        channel.worker = next(self.leads_to)
        return channel

    def reply(self, lane) -> None:
        """A call on `lane` is answered by the worker that it leads to."""
        self.lanes.release(lane, {WORKER: f"{lane.channel.worker}/{self.workers}"})

    def calls(self, count: int, seconds: float = 1.0) -> Counter[int]:
        """So many calls, one after the other and `seconds` apart; who answered."""
        answered: Counter[int] = Counter()
        for _ in range(count):
            lane = self.lanes.acquire()
            answered[lane.channel.worker] += 1
            self.reply(lane)
            self.now += seconds
        return answered

    def shares(self, callers: int, calls: int) -> Counter[int]:
        """Who answers when `callers` always have a call under way."""
        under_way = [self.lanes.acquire() for _ in range(callers)]
        answered: Counter[int] = Counter()
        for number in range(calls):
            lane = under_way[number % callers]
            answered[lane.channel.worker] += 1
            self.reply(lane)
            under_way[number % callers] = self.lanes.acquire()
        for lane in under_way:
            self.reply(lane)
        return answered


def test_a_worker_without_a_connection_gets_one_in_exchange_for_a_spare_one():
    kernel = Kernel([0, 0, 0, 1], workers=2)
    kernel.calls(10)
    assert {lane.worker for lane in kernel.lanes.all} == {0, 1}
    assert (kernel.opened, len(kernel.closed)) == (4, 2)
    assert kernel.calls(100) == {0: 50, 1: 50}
    assert kernel.opened == 4


def test_workers_share_alike_however_many_connections_lead_to_each():
    kernel = Kernel([0, 0, 0, 1], workers=2, channels=4)
    kernel.calls(4)
    shares = kernel.shares(callers=64, calls=6400)
    assert max(shares.values()) - min(shares.values()) <= 64, shares


def test_there_are_as_many_connections_as_workers_up_to_a_limit():
    kernel = Kernel(itertools.cycle(range(40)), workers=40)
    kernel.calls(100)
    assert len(kernel.lanes.all) == MOST
    few = Kernel(itertools.cycle(range(5)), workers=5)
    few.calls(100)
    assert sorted(lane.worker for lane in few.lanes.all) == [0, 1, 2, 3, 4]


def test_a_worker_that_was_restarted_is_found_again():
    """Its connection is by then to another worker: gRPC dials anew by itself."""
    kernel = Kernel([0, 1, 0, 0, 1], workers=2)
    kernel.calls(10)
    orphan = next(lane for lane in kernel.lanes.all if lane.worker == 1)
    orphan.channel.worker = 0
    kernel.calls(40)
    assert {lane.worker for lane in kernel.lanes.all} == {0, 1}
    assert kernel.calls(100) == {0: 50, 1: 50}


def test_attempts_to_find_a_worker_that_is_not_there_grow_rare():
    kernel = Kernel(itertools.repeat(0), workers=2)
    kernel.calls(100_000, seconds=0.001)
    first = kernel.opened
    assert 5 < first < 30
    kernel.calls(100_000, seconds=0.001)
    assert kernel.opened - first <= 100 / LONGEST_PAUSE + 1
    assert len(kernel.lanes.all) == 2
    assert len(kernel.closed) == kernel.opened - 2


def test_a_spare_connection_ends_its_calls_before_it_is_closed():
    kernel = Kernel([0, 0, 1], workers=2)
    first, second = kernel.lanes.acquire(), kernel.lanes.acquire()
    kernel.reply(first)
    held = kernel.lanes.acquire()  # on the first again: it has no call under way
    kernel.reply(second)
    assert not kernel.closed
    assert {first, second} < set(kernel.lanes.open)
    assert kernel.lanes.outstanding == 1
    kernel.reply(held)
    assert len(kernel.closed) == 1
    assert kernel.lanes.outstanding == 0


def test_behind_a_proxy_no_connection_stands_for_a_worker():
    """Where every call on one connection may meet another worker, only the calls under way count."""
    kernel = Kernel(itertools.repeat(0), workers=3)
    for number in range(1000):
        lane = kernel.lanes.acquire()
        lane.channel.worker = number * 7 // 3 % 3
        kernel.reply(lane)
        kernel.now += 1
    opened = kernel.opened
    assert opened < 20
    kernel.calls(1000)
    assert kernel.opened == opened
    assert all(lane.worker is None for lane in kernel.lanes.all)


@pytest.mark.parametrize("said", ["", "1", "x/2", "1/x", "/", "-1/2", "1/2/3", b"1/2"])
def test_a_worker_that_cannot_be_read_is_none(said):
    some = lanes(2)
    for _ in range(4):
        some.release(some.acquire(), {WORKER: said})
    assert [lane.worker for lane in some.all] == [None, None]


@given(st.data())
def test_whatever_happens_calls_and_channels_are_counted_right(data):
    """No lane that has calls is closed, none is closed twice, and nothing is left behind."""
    workers = data.draw(st.integers(1, 5))
    kernel = Kernel(
        (data.draw(st.integers(0, workers - 1)) for _ in itertools.count()),
        workers,
        channels=data.draw(st.integers(1, 4)),
    )
    under_way = []
    for _ in range(data.draw(st.integers(0, 60))):
        if under_way and data.draw(st.booleans()):
            kernel.reply(under_way.pop(data.draw(st.integers(0, len(under_way) - 1))))
        else:
            under_way.append(kernel.lanes.acquire())
        kernel.now += data.draw(st.sampled_from([0.0, 0.02, 20.0]))
        assert kernel.lanes.outstanding == len(under_way)
        assert not {lane.channel for lane in under_way} & set(kernel.closed)
        assert not {lane.channel for lane in kernel.lanes.all} & set(kernel.closed)
        assert 1 <= len(kernel.lanes.all) <= MOST
    for lane in under_way:
        kernel.reply(lane)
    assert len(kernel.closed) == len(set(kernel.closed))
    assert kernel.opened - len(kernel.closed) == len(kernel.lanes.all) == len(kernel.lanes.open)


def test_the_datatype_cache_is_bounded():
    cache = DatatypeCache()
    for number in range(cache.LIMIT * 2 + 10):
        cache.put("m", str(number), {"x": "FP32"})
    assert len(cache._known) <= cache.LIMIT
    assert cache.get("m", str(number)) == {"x": "FP32"}


def test_a_tls_file_that_is_not_there_is_told_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ca\.pem"):
        hedgerow.Client("localhost:1", tls=Tls(ca=tmp_path / "ca.pem"))


def test_retries_are_a_policy_only_where_asked_for():
    def names(retries):
        settings = Settings("t", 1, 1, 1, 30, retries, None, ())
        return dict(settings.options())

    assert "grpc.service_config" in names(2)
    assert names(0)["grpc.enable_retries"] == 0
    assert '"maxAttempts": 5' in names(99)["grpc.service_config"], "gRPC refuses more"
