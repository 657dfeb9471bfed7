"""Which connection takes the next call."""

from __future__ import annotations

from collections import Counter

import hedgerow
import pytest
from hedgerow.connection import DatatypeCache, Settings, Tls
from hedgerow.lanes import Lanes


class Channel:
    """A channel that is never called; the stub only asks it for callables."""

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
