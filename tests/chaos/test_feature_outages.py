"""PostgreSQL and Valkey die under load: no request fails, no value is older than its view allows.

Each reply is judged by the number in it; see feature_outages.py.
"""

from __future__ import annotations

import asyncio

import pytest
from feature_outages import flap, running

pytestmark = pytest.mark.timeout(180)

#: Six times the default: what is slow on a busy machine is not the outage that is tested.
BUDGET = {"features__budget_ms": 300}


def assert_clean(rig):
    """No failed request, and no reply of a value too old."""
    assert rig.errors() == {}
    assert rig.wrong() == []
    assert len(rig.replies) > 100


async def test_postgres_dies_and_answers_turn_stale_then_default_then_fresh(
    tmp_path, own_postgres, own_valkey
):
    """In replies and in the metric."""
    async with running(tmp_path, own_postgres, own_valkey, **BUDGET) as rig:
        before = await asyncio.to_thread(rig.metric, "stale")
        killed = await rig.kill(own_postgres)
        await rig.until(lambda reply: reply.features == "stale", since=killed)
        await rig.metric_grows("stale", before)
        # The longest that may pass, then nothing is young enough.
        await rig.until(lambda reply: reply.features == "default", since=killed, last=20)
        await rig.until_fresh(await rig.start(own_postgres))
    assert_clean(rig)


async def test_valkey_dies_and_postgres_answers_alone(tmp_path, own_postgres, own_valkey):
    """Nothing is lost but time: the store has what the cache had."""
    async with running(tmp_path, own_postgres, own_valkey, **BUDGET) as rig:
        killed = await rig.kill(own_valkey)
        await rig.until_fresh(killed)
        await rig.until_fresh(await rig.start(own_valkey))
    assert_clean(rig)
    assert "default" not in rig.ages(killed)


async def test_both_die_and_the_process_itself_remembers_for_a_while(tmp_path, own_postgres, own_valkey):
    async with running(tmp_path, own_postgres, own_valkey, **BUDGET) as rig:
        killed = max(await asyncio.gather(rig.kill(own_postgres), rig.kill(own_valkey)))
        await rig.until(lambda reply: reply.features == "stale", since=killed)
        await rig.until(lambda reply: reply.features == "default", since=killed, last=20)
        ready = max(await asyncio.gather(rig.start(own_postgres), rig.start(own_valkey)))
        await rig.until_fresh(ready)
    assert_clean(rig)


@pytest.mark.parametrize("which", ["postgres", "valkey"])
async def test_a_part_that_hangs_is_not_waited_for(which, tmp_path, own_postgres, own_valkey):
    """Worse than a dead one: it takes connections and says nothing."""
    part = {"postgres": own_postgres, "valkey": own_valkey}[which]
    async with running(tmp_path, own_postgres, own_valkey, **BUDGET) as rig:
        part.pause()
        paused = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(1.5)
        finally:
            part.resume()
        await rig.until_fresh(asyncio.get_running_loop().time())
    assert_clean(rig)
    if which == "postgres":
        assert rig.ages(paused).get("stale", 0) > 0


async def test_parts_that_come_and_go(tmp_path, own_postgres, own_valkey):
    """Every half second; the command in feature_outages.py does it for a minute."""
    async with running(tmp_path, own_postgres, own_valkey, **BUDGET) as rig:
        ready = await flap(rig, [own_postgres, own_valkey], 5.0, every=0.5)
        await rig.until_fresh(ready)
    assert_clean(rig)
