"""The fault proxy on real sockets: bytes under each fault as the caller and as the server see them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import pytest
from fault_bench import MIB, Peer, Target, running, until
from fault_proxy import FaultProxy, Faults


async def test_without_faults_it_is_not_there(bench):
    """Bytes both ways, and each side may end its half alone."""
    caller, server = await bench.pair()
    caller.say(b"question")
    caller.writer.write_eof()
    assert await server.hears_end() == b"question"
    server.say(b"answer")
    server.writer.close()
    assert await caller.hears_end() == b"answer"
    assert bench.proxy.counts["upstream_bytes"] == len(b"?question")
    await until(lambda: "; 0 open" in bench.proxy.status())


async def test_latency_is_added_each_way_and_chunks_under_way_do_not_wait_for_each_other(bench):
    caller, server = await bench.pair()
    bench.proxy.upstream = Faults(latency=0.3)
    began = time.monotonic()
    for _ in range(20):
        caller.say(b"x")
        await asyncio.sleep(0.01)
    await server.hears(1)
    assert time.monotonic() - began >= 0.3
    await server.hears(19)
    # One after the other they would take 6 s.
    assert time.monotonic() - began < 3
    server.say(b"y")
    began = time.monotonic()
    await caller.hears(1)
    assert time.monotonic() - began < 0.25, "the other way has none"


async def test_latency_does_not_limit_the_throughput(bench):
    """4 MiB while each byte takes 0.1 s: a chunk after the other would take 1.6 s or more."""
    caller, server = await bench.pair()
    bench.proxy.faults = Faults(latency=0.1)
    began = time.monotonic()
    caller.say(bytes(4 * MIB))
    await server.hears(4 * MIB)
    assert 0.1 <= time.monotonic() - began < 1.5


async def test_jitter_spreads_delays_and_keeps_the_order(bench):
    caller, server = await bench.pair()
    bench.proxy.upstream = Faults(latency=0.05, jitter=0.05)
    delays = []
    for number in range(10):
        began = time.monotonic()
        caller.say(bytes([number]))
        assert await server.hears(1) == bytes([number])
        delays.append(time.monotonic() - began)
    assert max(delays) - min(delays) > 0.03
    caller.say(bytes(range(200)))
    assert await server.hears(200) == bytes(range(200))


async def test_a_stall_holds_all_behind_it_until_it_is_over(bench):
    caller, server = await bench.pair()
    bench.proxy.upstream = Faults(stall=1, stall_for=0.4)
    began = time.monotonic()
    caller.say(b"stalled")
    await bench.until("stalls")
    bench.proxy.downstream = Faults(latency=0.001)  # the other way: this one stalls on
    caller.say(b" and behind")
    assert await server.hears(18) == b"stalled and behind"
    assert time.monotonic() - began >= 0.4


async def test_an_endless_stall_is_a_partition_that_tcp_survives(bench):
    caller, server = await bench.pair()
    bench.proxy.faults = Faults(stall=1, stall_for=float("inf"))
    caller.say(b"held")
    server.say(b"held too")
    await asyncio.gather(caller.hears_nothing(), server.hears_nothing())
    bench.proxy.heal()
    assert await server.hears(4) == b"held"
    assert await caller.hears(8) == b"held too"


async def test_a_seed_brings_the_same_stalls_and_another_one_others():
    async def stalled(seed: int) -> list[int]:
        found = []
        async with running(seed=seed) as bench:
            caller, server = await bench.pair()
            bench.proxy.upstream = Faults(stall=0.3, stall_for=0.001)
            for number in range(60):
                caller.say(b"x")
                await server.hears(1)
                found += [number] * (bench.proxy.counts["stalls"] > len(found))
        return found

    first, again, other = await stalled(1), await stalled(1), await stalled(2)
    assert first == again != other
    assert 5 < len(first) < 40


async def test_bandwidth_is_each_connections_own(bench):
    (caller, server), (other, other_server) = await bench.pair(), await bench.pair()
    bench.proxy.upstream = Faults(bandwidth=500)
    began = time.monotonic()
    caller.say(bytes(200_000))
    other.say(bytes(200_000))
    await server.hears(50_000)
    assert time.monotonic() - began < 0.35, "it comes in pieces"
    await asyncio.gather(server.hears(150_000), other_server.hears(200_000))
    assert 0.37 <= time.monotonic() - began < 2


async def test_limit_data_closes_both_sides_after_so_many_bytes(bench):
    caller, server = await bench.pair()
    bench.proxy.downstream = Faults(limit_data=100_000)
    server.say(random.Random(1).randbytes(150_000))
    assert await caller.hears_end() == random.Random(1).randbytes(150_000)[:100_000]
    with contextlib.suppress(ConnectionResetError):
        assert await server.hears_end() == b""


async def test_slow_close_passes_an_end_on_late(bench):
    caller, server = await bench.pair()
    bench.proxy.upstream = Faults(slow_close=0.3)
    began = time.monotonic()
    caller.say(b"bye")
    caller.writer.close()
    assert await server.hears(3) == b"bye"
    said = time.monotonic() - began
    assert await server.hears_end() == b""
    assert said < 0.25
    assert time.monotonic() - began >= 0.3


async def test_a_mebibyte_each_way_arrives_byte_for_byte_through_everything(bench):
    caller, server = await bench.pair()
    bench.proxy.upstream = Faults(latency=0.03, jitter=0.03, bandwidth=2000, stall=0.05, stall_for=0.05)
    bench.proxy.downstream = Faults(latency=0.01, jitter=0.02, bandwidth=3000)
    up, down = random.Random(1).randbytes(MIB), random.Random(2).randbytes(MIB)

    async def speak(peer: Peer, data: bytes) -> None:
        source, place = random.Random(3), 0
        while place < len(data):
            size = source.choice((1, 100, 5_000, 60_000))
            peer.say(data[place : place + size])
            await peer.writer.drain()
            place += size
        peer.writer.write_eof()

    heard = await asyncio.gather(
        server.hears_end(), caller.hears_end(), speak(caller, up), speak(server, down)
    )
    assert heard[0] == up
    assert heard[1] == down


async def test_faults_that_change_all_the_time_damage_nothing(bench):
    caller, server = await bench.pair()
    data, source = random.Random(1).randbytes(4 * MIB), random.Random(2)

    async def change() -> None:
        while True:
            bench.proxy.upstream = Faults(
                latency=source.choice((0, 0.01, 0.05)),
                jitter=source.choice((0, 0.02)),
                stall=source.choice((0, 0.2, 1)),
                stall_for=source.choice((0.1, float("inf"))),
                bandwidth=source.choice((None, 20_000)),
            )
            await asyncio.sleep(source.choice((0, 0.01, 0.03)))

    changing = asyncio.create_task(change())
    caller.say(data)
    caller.writer.write_eof()
    heard = asyncio.create_task(server.hears_end())
    await asyncio.wait((heard,), timeout=1)
    changing.cancel()
    await asyncio.wait((changing,))
    assert changing.cancelled()
    bench.proxy.heal()
    assert await heard == data


async def test_a_reader_that_does_not_read_makes_the_writer_wait():
    """The proxy holds no more than its buffer and a read; and nothing is lost once there is reading again."""
    async with running(buffer=64 * 1024) as bench:
        caller, server = await bench.pair()
        bench.proxy.upstream = Faults(stall=1, stall_for=float("inf"))
        total = 48 * MIB
        caller.say(bytes(total))
        await asyncio.sleep(0.2)
        assert bench.proxy.counts["upstream_bytes"] <= (64 + 256) * 1024 + 1
        bench.proxy.upstream = Faults()
        await asyncio.sleep(0.5)
        # The kernel takes some, of which it never says how much.
        assert bench.proxy.counts["upstream_bytes"] < 24 * MIB
        assert await server.hears(total) == bytes(total)


async def test_everything_at_once_in_any_order_and_it_still_works(bench):
    """Callers that ask, leave and reset; faults, resets, refusals and half-open connections meanwhile."""
    source = random.Random(0)

    async def caller() -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                peer = await bench.call()
                for _ in range(source.randint(1, 5)):
                    size = source.choice((1, 1000, 300_000))
                    peer.say(bytes(size))
                    async with asyncio.timeout(0.05):
                        await peer.reader.readexactly(size)
                source.choice((peer.writer.write_eof, peer.reset, peer.writer.close))()
            await asyncio.sleep(0)

    async def server() -> None:
        while True:
            peer = await bench.target.accepted.get()
            answering.create_task(answer(peer))

    async def answer(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            while data := await peer.reader.read(65536):
                peer.say(data)
                if source.random() < 0.02:
                    peer.reset()
            peer.writer.close()

    proxy = bench.proxy
    async with asyncio.TaskGroup() as answering:
        work = [answering.create_task(one) for one in (server(), *(caller() for _ in range(8)))]
        for _ in range(80):
            choice = source.randrange(8)
            if choice == 0:
                source.choice((proxy.refuse, proxy.down, proxy.reset, proxy.half_open))()
            elif choice == 1:
                source.choice((proxy.accept, proxy.heal))()
            elif choice == 2:
                proxy.half_open(closed="caller")
            else:
                setattr(
                    proxy,
                    source.choice(("faults", "upstream", "downstream")),
                    Faults(
                        latency=source.choice((0, 0.01)),
                        stall=source.choice((0, 0, 0.1)),
                        stall_for=0.01,
                        bandwidth=source.choice((None, None, 100)),
                        limit_data=source.choice((None, None, 5000)),
                        reset_peer=source.choice((0, 0, 0.1)),
                        timeout=source.choice((None, None, None, 0, 0.01)),
                    ),
                )
            await asyncio.sleep(0.01)
        for task in work:
            task.cancel()
        proxy.heal()
        proxy.reset()
        for peer in (*bench.callers, *bench.target.peers):
            peer.writer.transport.abort()
    assert proxy.counts["connections"] > 20
    bench.target = Target()
    async with bench.target.listening() as proxy.target:
        await bench.pair()


@pytest.mark.parametrize("address", ["", "127.0.0.1", ":80", "localhost:http", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        FaultProxy(address)
    with pytest.raises(ValueError, match="HOST:PORT"):
        FaultProxy("127.0.0.1:1", listen=address)


async def test_another_target_is_for_new_connections(bench):
    """A server that comes back at another port."""
    caller, server = await bench.pair()
    moved = Target()
    async with moved.listening() as address:
        bench.proxy.target = address
        (await bench.call()).say(b"new")
        assert await (await moved.next()).hears(3) == b"new"
        caller.say(b"old")
        assert await server.hears(3) == b"old"
