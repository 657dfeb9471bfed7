"""The regions of outage tests, without hedging: what is done to one shows in the records, and only that."""

from __future__ import annotations

import contextlib

import hedgerow
import numpy as np
import pytest
from asker import Questions, asking, client_of, codes, outcomes, percentile, perceptron_questions
from regions import two_regions

#: What a shut connection or a closed port looks like.
DEAD = {"UNAVAILABLE"}


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    with two_regions(tmp_path_factory.mktemp("regions")) as both:
        yield both


@pytest.fixture
def east(regions):
    """Up and whole again after each test."""
    yield regions[0]
    regions[0].proxy.do("heal")
    if not regions[0].is_up:
        regions[0].start()


def failed(records):
    return [record for record in records if record.code != "OK"]


def test_every_request_is_asked_when_it_was_due_and_judged_by_its_numbers(regions):
    """All of the schedule, no more; the regions say who they are."""
    for region in regions:
        with asking(client_of(region.address), rate=100, seconds=1.5, seed=1) as load:
            pass
        assert codes(load.records) == {"OK": load.due}
        assert outcomes(load.records) == {"primary": load.due}
        assert 100 < load.due < 200
        assert np.allclose([record.due for record in load.records], load._due)
        assert region.count("hedgerow_requests_total") >= load.due


def test_wrong_numbers_are_no_answer(regions):
    questions = perceptron_questions()
    swapped = Questions(questions.model, questions.inputs, questions.outputs[1:] + questions.outputs[:1])
    with asking(client_of(regions[1].address), swapped, rate=50, seconds=0.5) as load:
        pass
    assert codes(load.records) == {"WRONG": load.due}


def test_a_killed_region_fails_its_callers_until_it_is_back_and_nobody_elses(regions, east):
    west = regions[1]
    with (
        asking(client_of(east.address), rate=100, seconds=6) as load,
        asking(client_of(west.address), rate=50, seconds=6) as elsewhere,
    ):
        killed = load.wait_until(1.5)
        east.kill()
        load.wait_until(2.5)
        east.start()
        back = load.now()
    before, during = load.between(0, killed - 0.2), load.between(killed + 0.2, 2.5)
    assert failed(before) == []
    assert set(codes(during)) == DEAD
    assert all(record.details for record in during)
    # gRPC looks for a server that is back every two seconds at most.
    assert failed(load.between(back + 2.5, 6)) == []
    assert failed(elsewhere.records) == []


def test_a_slow_way_shows_in_the_latency_of_what_was_due_meanwhile(east):
    with asking(client_of(east.address), rate=100, seconds=3) as load:
        slowed = load.wait_until(1)
        east.proxy.do("latency 60")
        healed = load.wait_until(2)
        east.proxy.do("heal")
    assert failed(load.records) == []
    during = load.between(slowed + 0.1, healed - 0.2)
    assert min(record.latency for record in during) >= 0.12
    assert percentile(load.between(0, slowed - 0.1), 50) < 0.06
    assert percentile(load.between(healed + 0.2, 3), 50) < 0.06


@pytest.mark.parametrize("how", ["blackhole", "frozen"])
def test_silence_does_not_slow_the_asking(how, east):
    """All that was due is asked, and waited for as long as its timeout: no coordinated omission."""
    with asking(client_of(east.address, timeout=0.4), rate=100, seconds=2.5, timeout=0.4) as load:
        silent = load.wait_until(0.8)
        east.proxy.do("blackhole") if how == "blackhole" else east.pause()
        over = load.wait_until(1.6)
        east.proxy.do("heal") if how == "blackhole" else east.resume()
    during = load.between(silent + 0.1, over - 0.5)
    assert len(load.records) == load.due
    assert len(during) > 10
    assert set(codes(during)) == {"DEADLINE_EXCEEDED"}
    assert min(record.latency for record in during) >= 0.39
    assert failed(load.between(0, silent - 0.1)) == []


def test_whoever_asks_can_be_a_tests_own_and_what_it_raises_is_not_lost(regions):
    @contextlib.asynccontextmanager
    async def opened():
        async def ask(number):
            if number == 3:
                raise ZeroDivisionError("a mistake in the test")
            raise hedgerow.Unavailable("nobody")

        yield ask

    with pytest.raises(ZeroDivisionError), asking(opened(), rate=200, seconds=60) as load:
        pass
    assert codes(load.records)["UNAVAILABLE"] >= 3


def test_a_test_that_fails_does_not_wait_for_the_schedule(regions):
    def fails():
        with asking(client_of(regions[1].address), rate=20, seconds=3600) as load:
            load.wait_until(0.2)
            raise LookupError

    with pytest.raises(LookupError):
        fails()


def test_settings_name_a_region_by_where_it_is_reached(tmp_path):
    """Servers start one after the other, and either may be told of both: here the first of the second."""
    slow = {"fault__delay_percent": 100, "fault__delay_ms": 700, "hedge__backups": "{west}"}
    with two_regions(tmp_path, east=slow) as (east, west):
        # With retries: a connection that was just made to a server that was just started may break.
        opened = client_of(east.address, timeout=5, retries=3)
        with asking(opened, rate=10, seconds=1, timeout=5) as load:
            pass
        assert codes(load.records) == {"OK": load.due}, [record.details for record in load.records]
        hedged = [record for record in load.records if record.outcome == "hedge"]
        assert {record.parameters["hedgerow_region"] for record in hedged} == {"west"}
        assert west.count("hedgerow_requests_total") >= len(hedged) > 0
        assert west.drain() == 0
        assert not west.is_up
