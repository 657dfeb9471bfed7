"""One direction of a connection under every fault, in virtual time: what comes out, and when."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from faults import BLACK_HOLE, Ending, Faults, Link
from hypothesis import given
from hypothesis import strategies as st

START = 1000.0
SECONDS = st.floats(0, 2).map(lambda seconds: round(seconds, 4))


@st.composite
def gentle(draw):
    """Faults under which bytes arrive in the end."""
    return Faults(
        latency=draw(SECONDS),
        jitter=draw(SECONDS),
        stall=draw(st.sampled_from([0, 0, 0.3, 1])),
        stall_for=draw(st.sampled_from([0.1, 5.0, math.inf])),
        bandwidth=draw(st.sampled_from([None, None, 1, 1e6])),
        slow_close=draw(SECONDS),
    )


class Wire:
    """A link, a clock, and all that went in and came out, with the time."""

    def __init__(self, faults, seed=0):
        self.now = START
        self.counts = Counter()
        self.link = Link(faults, Random(seed), self.counts, self.now)
        self.taken = b""
        self.sent = []
        self.endings = []

    def take(self, data):
        self.link.take(data, self.now)
        self.taken += data

    def pump(self):
        """Sends what is due now; nothing more must be due then."""
        while (what := self.link.send(self.now)) is not None:
            if isinstance(what, Ending):
                self.endings.append((self.now, what))
            else:
                assert not self.endings, "bytes after the end"
                self.sent.append((self.now, bytes(what)))
        assert self.link.next_at > self.now

    def pass_time(self, seconds):
        """Pumps whenever the link says so."""
        until = self.now + seconds
        while (at := self.link.next_at) <= until:
            assert self.link.send(math.nextafter(at, 0)) is None, "it was due before it said"
            self.now = max(self.now, at)
            before = len(self.sent), len(self.endings)
            self.pump()
            assert before != (len(self.sent), len(self.endings)), "it was not due when it said"
        self.now = until

    @property
    def output(self):
        return b"".join(data for _, data in self.sent)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.binary(min_size=1, max_size=200)),
        st.tuples(st.just("wait"), SECONDS),
        st.tuples(st.just("change"), gentle()),
    ),
    max_size=30,
)


@given(gentle(), ACTIONS, st.booleans())
def test_whatever_changes_bytes_come_out_whole_in_order_and_the_end_last(faults, actions, ends):
    wire = Wire(faults)
    for action, what in actions:
        if action == "take":
            wire.take(what)
            wire.pump()
        elif action == "wait":
            wire.pass_time(what)
        else:
            wire.link.change(what, wire.now)
            wire.pump()
        assert wire.taken.startswith(wire.output)
        assert wire.link.queued == len(wire.taken) - len(wire.output)
    if ends:
        wire.link.end(Ending.EOF, wire.now)
    wire.link.change(Faults(), wire.now)
    wire.pump()
    assert wire.output == wire.taken
    assert [ending for _, ending in wire.endings] == [Ending.EOF] * ends
    assert not wire.link.has_hole
    assert wire.link.next_at == math.inf


@given(SECONDS, SECONDS, st.lists(SECONDS, min_size=1, max_size=30))
def test_a_chunk_is_late_by_the_latency_and_not_for_its_forerunners_sake(latency, jitter, gaps):
    """However many are under way: each counts from when it came itself."""
    wire = Wire(Faults(latency=latency, jitter=jitter))
    came = []
    for gap in gaps:
        wire.pass_time(gap)
        came.append(wire.now)
        wire.take(b"x")
        wire.pump()
    wire.pass_time(10)
    delays = [sent - then for (sent, _), then in zip(wire.sent, came, strict=True)]
    assert min(delays) >= max(0, latency - jitter) - 1e-6
    assert max(delays) <= latency + jitter + 1e-6


@given(st.sampled_from([1, 10, 300]), st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_no_window_carries_more_than_the_bandwidth(rate, milliseconds):
    """Each chunk is as much as the bandwidth carries in some milliseconds."""
    wire = Wire(Faults(bandwidth=rate))
    for number in milliseconds:
        wire.take(bytes(number * rate))
    wire.pump()
    wire.pass_time(sum(milliseconds) / 1000 + 0.03)
    assert wire.link.queued == 0
    for first in range(len(wire.sent)):
        passed = 0
        for at, data in wire.sent[first:]:
            passed += len(data)
            # One piece is on its way at either end of a window.
            assert passed <= (at - wire.sent[first][0] + 0.021) * rate * 1000 + 1


@pytest.mark.parametrize("latency", [0, 2])
def test_a_small_message_takes_its_time_too_however_long_there_was_none(latency):
    """No credit is saved up by silence."""
    wire = Wire(Faults(bandwidth=1, latency=latency))
    for _ in range(3):
        wire.pass_time(10)
        wire.take(bytes(100))
        came = wire.now
        wire.pass_time(3)
        assert wire.sent[-1][0] - came == pytest.approx(latency + 0.1)


def test_timers_that_fire_late_do_not_cost_bandwidth():
    """As they do, by up to a millisecond in asyncio and more on a busy machine."""
    wire = Wire(Faults(bandwidth=100))
    wire.take(bytes(100_000))
    while wire.link.queued:
        wire.pump()
        wire.now = max(wire.now, wire.link.next_at if wire.link.queued else 0) + 0.005
    assert 0.9 < wire.now - START < 1.1


def test_a_stall_holds_all_behind_it_and_a_change_ends_it():
    wire = Wire(Faults(stall=1, stall_for=60))
    wire.take(b"held")
    wire.link.change(Faults(stall=0.5, stall_for=60), wire.now)
    wire.pump()
    assert wire.output == b"held", "a stall that was a matter of luck is over"
    wire.link.change(Faults(stall=1, stall_for=60), wire.now)
    wire.take(b" one")
    wire.link.change(Faults(stall=1, stall_for=60, latency=1), wire.now)
    wire.take(b" two")
    wire.pass_time(59)
    assert wire.output == b"held", "all chunks stall before as after"
    wire.pass_time(3)
    assert wire.output == b"held one two"
    assert wire.counts["stalls"] == 3


def test_each_chunk_has_its_fate_by_seed_and_number_whatever_else_is_set():
    fates = []
    for faults in (
        Faults(stall=0.2, stall_for=1),
        Faults(stall=0.2, stall_for=1, latency=3, jitter=1, bandwidth=1),
    ):
        wire = Wire(faults, seed=7)
        stalled = []
        for _ in range(100):
            before = wire.counts["stalls"]
            wire.take(b"x")
            stalled.append(wire.counts["stalls"] > before)
        fates.append(stalled)
    assert fates[0] == fates[1]
    assert 5 < sum(fates[0]) < 40


@given(st.integers(1, 500), st.lists(st.binary(min_size=1, max_size=200), min_size=1))
def test_limit_data_closes_after_exactly_so_many_bytes(limit, chunks):
    wire = Wire(Faults(limit_data=limit, latency=0.1))
    for chunk in chunks:
        wire.take(chunk)
    wire.pass_time(1)
    assert wire.output == wire.taken[:limit]
    reached = len(wire.taken) >= limit
    assert [ending for _, ending in wire.endings] == [Ending.CLOSE] * reached


def test_a_black_hole_swallows_what_is_under_way_what_comes_and_the_end():
    wire = Wire(Faults(latency=1))
    wire.take(b"under way")
    wire.link.change(BLACK_HOLE, wire.now)
    wire.take(b"comes")
    wire.link.end(Ending.RESET, wire.now)
    wire.pass_time(3600)
    assert (wire.output, wire.endings) == (b"", [])
    assert wire.counts["vanished_bytes"] == len(b"under waycomes")
    assert wire.link.has_hole


def test_timeout_closes_once_after_its_time_also_in_silence():
    wire = Wire(Faults(timeout=2))
    wire.pass_time(1.9)
    assert wire.endings == []
    wire.pass_time(10)
    assert wire.endings == [(START + 2, Ending.CLOSE)]


def test_reset_peer_overtakes_what_waits():
    wire = Wire(Faults(latency=1))
    wire.take(b"waits")
    wire.link.change(Faults(latency=1, reset_peer=1), wire.now)
    wire.take(b"resets")
    wire.pump()
    assert (wire.output, wire.endings) == (b"", [(START, Ending.RESET)])
    assert wire.counts["resets"] == 1


def test_slow_close_delays_the_end_and_nothing_else():
    wire = Wire(Faults(slow_close=1.5))
    wire.take(b"said")
    wire.link.end(Ending.EOF, wire.now)
    wire.pass_time(1.4)
    assert (wire.output, wire.endings) == (b"said", [])
    wire.pass_time(0.2)
    assert wire.endings == [(START + 1.5, Ending.EOF)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency": -1},
        {"latency": math.nan},
        {"latency": math.inf},
        {"jitter": -0.1},
        {"stall": 1.5},
        {"stall": math.nan},
        {"stall_for": -1},
        {"stall_for": math.nan},
        {"reset_peer": -0.1},
        {"bandwidth": 0},
        {"bandwidth": math.inf},
        {"bandwidth": math.nan},
        {"limit_data": 0},
        {"slow_close": -1},
        {"timeout": -1},
    ],
)
def test_faults_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Faults(**wrong)
