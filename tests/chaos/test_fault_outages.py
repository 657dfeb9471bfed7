"""Black holes, refusals, resets and half-open connections of the fault proxy: who is told, who never."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from fault_bench import Bench, Target, until
from fault_proxy import BLACK_HOLE, FaultProxy, Faults


async def test_a_black_hole_swallows_both_ways_and_still_accepts(bench):
    caller, server = await bench.pair()
    bench.proxy.faults = BLACK_HOLE
    caller.say(b"lost")
    server.say(b"lost too")
    newcomer = await bench.call()
    newcomer.say(b"hello?")
    await bench.until("vanished_bytes", len(b"lostlost toohello?"))
    await asyncio.gather(*(peer.hears_nothing() for peer in (caller, server, newcomer)))
    assert bench.target.accepted.empty(), "a SYN would not get there either"


async def test_after_a_black_hole_no_byte_stands_in_the_place_of_a_lost_one(bench):
    """A connection that missed something is reset; one that missed nothing goes on."""
    caller, server = await bench.pair()
    quiet, quiet_server = await bench.pair()
    with bench.proxy.under(upstream=BLACK_HOLE, downstream=BLACK_HOLE):
        patient = await bench.call()
        caller.say(b"lost")
        await bench.until("vanished_bytes", 4)
    await asyncio.gather(caller.hears_reset(), server.hears_reset())
    quiet.say(b"still here")
    assert await quiet_server.hears(10) == b"still here"
    patient.say(b"me too")
    assert await (await bench.target.next()).hears(6) == b"me too"


async def test_half_a_black_hole_loses_replies_and_the_server_does_not_know(bench):
    caller, server = await bench.pair()
    bench.proxy.downstream = BLACK_HOLE
    caller.say(b"ask")
    assert await server.hears(3) == b"ask"
    server.say(b"answer")
    await caller.hears_nothing()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_black_hole_hides_that_the_server_died(bench, how):
    caller, server = await bench.pair()
    bench.proxy.faults = BLACK_HOLE
    server.reset() if how == "reset" else server.writer.close()
    await caller.hears_nothing()
    bench.proxy.heal()
    await caller.hears_reset()


async def test_a_black_hole_before_a_dead_target_still_accepts():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with FaultProxy(f"127.0.0.1:{unused.getsockname()[1]}") as proxy:
            bench = Bench(Target(), proxy)
            proxy.upstream = BLACK_HOLE
            await (await bench.call()).hears_nothing()
            proxy.upstream = Faults()
            await bench.callers[0].hears_reset()
            await (await bench.call()).hears_reset()
            assert proxy.counts["unreachable"] == 2


async def test_timeout_closes_after_its_time_in_silence(bench):
    caller, server = await bench.pair()
    began = time.monotonic()
    bench.proxy.upstream = Faults(timeout=0.3)
    caller.say(b"lost")
    stranger = await bench.call()
    for peer in (caller, server, stranger):
        assert await peer.hears_end() == b""
    assert time.monotonic() - began >= 0.3


async def test_refused_and_accepted_again_on_the_same_port(bench):
    caller, server = await bench.pair()
    address = bench.proxy.address
    for _ in range(2):
        bench.proxy.refuse()
        assert await bench.is_refused()
        caller.say(b"goes on")
        assert await server.hears(7) == b"goes on"
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", int(address.split(":")[1])))
        bench.proxy.accept()
        await bench.pair()
    assert bench.proxy.address == address


async def test_down_resets_what_exists_and_refuses_what_comes_until_heal(bench):
    caller, server = await bench.pair()
    bench.proxy.down()
    assert await bench.is_refused()
    await asyncio.gather(caller.hears_reset(), server.hears_reset())
    bench.proxy.heal()
    await bench.pair()


async def test_reset_tells_both_sides_at_once(bench):
    caller, server = await bench.pair()
    bench.proxy.faults = Faults(latency=60)
    bench.proxy.reset()
    await asyncio.gather(caller.hears_reset(), server.hears_reset())


async def test_reset_peer_resets_the_connection_of_an_unlucky_chunk(bench):
    (caller, server), (other, other_server) = await bench.pair(), await bench.pair()
    bench.proxy.upstream = Faults(reset_peer=1)
    caller.say(b"unlucky")
    await asyncio.gather(caller.hears_reset(), server.hears_reset())
    other_server.say(b"another way")
    assert await other.hears(11) == b"another way"


async def test_a_peers_own_reset_is_passed_on(bench):
    caller, server = await bench.pair()
    caller.reset()
    await server.hears_reset()
    caller, server = await bench.pair()
    server.reset()
    await caller.hears_reset()


@pytest.mark.parametrize("closed", ["server", "caller"])
async def test_half_open_closes_one_side_and_never_tells_the_other(bench, closed):
    caller, server = await bench.pair()
    told, untold = (server, caller) if closed == "server" else (caller, server)
    bench.proxy.half_open(closed=closed)
    assert await told.hears_end() == b""
    untold.say(b"anybody there?")
    await bench.until("vanished_bytes", 14)
    await untold.hears_nothing()
    bench.proxy.faults = Faults(latency=0.001)
    await untold.hears_nothing()
    bench.proxy.heal()
    await untold.hears_reset()
    assert await bench.pair()


async def test_a_side_that_half_open_closed_before_it_was_there_stays_closed(bench):
    bench.proxy.upstream = BLACK_HOLE
    caller = await bench.call()
    await bench.until("connections")
    bench.proxy.half_open()
    bench.proxy.upstream = Faults()
    await caller.hears_nothing()
    assert bench.target.accepted.empty()


async def test_half_open_connections_end_when_the_other_side_ends_them(bench):
    caller, _ = await bench.pair()
    bench.proxy.half_open()
    caller.writer.close()
    await until(lambda: "; 0 open" in bench.proxy.status())
