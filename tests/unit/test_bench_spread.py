"""What several rounds say together, and on which cores they run."""

import pytest
from hedgerow_bench.cores import divide
from hedgerow_bench.spread import interleaved, ratios, spread
from hedgerow_bench.throughput import split


def test_a_spread_is_the_median_and_both_ends():
    assert spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "lowest": 1.0,
        "highest": 3.0,
        "rounds": [3.0, 1.0, 2.0],
    }
    with pytest.raises(ValueError, match="no round"):
        spread([])


def test_ratios_compare_round_by_round():
    """A machine that is half as fast in one round slows both, and the ratio stays."""
    assert ratios([100.0, 50.0], [10.0, 5.0])["rounds"] == [10.0, 10.0]
    with pytest.raises(ValueError, match="no pairs"):
        ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no pairs"):
        ratios([1.0], [0.0])


def test_rounds_go_forwards_and_backwards():
    assert list(interleaved(2, ["a", "b"])) == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]


@pytest.mark.parametrize(
    ("concurrency", "wanted", "found"),
    [(1, 4, (1, 1)), (16, 4, (4, 4)), (64, 4, (4, 16)), (6, 4, (3, 2)), (7, 4, (1, 7)), (64, 100, (64, 1))],
)
def test_connections_divide_the_requests_evenly(concurrency, wanted, found):
    assert split(concurrency, wanted) == found


def test_servers_and_load_are_apart_if_they_can_be():
    assert divide((0, 1)).server == (0,)
    assert divide((0, 1)).load == (1,)
    assert divide((0, 1)).note == ""
    assert divide((2, 3, 5), servers=2).load == (5,)
    assert "One core only" in divide((0,)).note
    assert "share 2 cores" in divide((0, 1), servers=2).note
    assert divide(()).note == ""
