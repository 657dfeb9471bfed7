"""The fault proxy on real sockets: each fault as the caller and as the server see it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from fault_proxy import BLACK_HOLE, FaultProxy, Faults

MIB = 1 << 20
#: Generous: on a busy machine a millisecond may take a hundred.
SOON = 10.0
#: In which something that happens would have happened.
QUIET = 0.1


class Peer:
    """One end of a TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hears(self, count: int) -> bytes:
        async with asyncio.timeout(SOON):
            return await self.reader.readexactly(count)

    async def hears_end(self) -> bytes:
        """All that is left, up to an orderly end."""
        async with asyncio.timeout(SOON):
            return await self.reader.read()

    async def hears_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            await self.hears_end()

    async def hears_nothing(self) -> None:
        """No byte, no end, no reset."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET):
                await self.reader.read(1)

    def reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Target:
    """A TCP server whose connections are handed to the test."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self.peers: list[Peer] = []

    @contextlib.asynccontextmanager
    async def listening(self, limit: int = 2**16) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=limit)
        host, port = server.sockets[0].getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            server.close()
            for peer in self.peers:
                peer.writer.transport.abort()
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(Peer(reader, writer))
        self.accepted.put_nowait(self.peers[-1])

    async def next(self) -> Peer:
        async with asyncio.timeout(SOON):
            return await self.accepted.get()


class Bench:
    """A target, the proxy in front of it, and callers."""

    def __init__(self, target: Target, proxy: FaultProxy) -> None:
        self.target, self.proxy = target, proxy
        self.callers: list[Peer] = []

    async def call(self) -> Peer:
        host, port = self.proxy.address.split(":")
        self.callers.append(Peer(*await asyncio.open_connection(host, int(port))))
        return self.callers[-1]

    async def pair(self) -> tuple[Peer, Peer]:
        """A caller and its peer at the server, which have spoken to each other."""
        caller = await self.call()
        caller.say(b"?")
        server = await self.target.next()
        assert await server.hears(1) == b"?"
        server.say(b"!")
        assert await caller.hears(1) == b"!"
        return caller, server

    async def is_refused(self) -> bool:
        try:
            await self.call()
        except ConnectionRefusedError:
            return True
        return False

    async def until(self, name: str, count: int = 1) -> None:
        """Waits until the proxy has counted so many."""
        await until(lambda: self.proxy.counts[name] >= count)


async def until(holds: Callable[[], bool]) -> None:
    """Waits; fails if it takes too long."""
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


def sockets() -> int:
    """Of this process."""
    found = 0
    for open_file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(open_file.readlink()).startswith("socket:")
    return found


@contextlib.asynccontextmanager
async def running(**options) -> AsyncIterator[Bench]:
    """A bench; the proxy leaves nothing behind, and nothing raised where nobody would see it."""
    target = Target()
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    async with target.listening() as address:
        before = asyncio.all_tasks()
        async with FaultProxy(address, **options) as proxy:
            bench = Bench(target, proxy)
            try:
                yield bench
            finally:
                for caller in bench.callers:
                    caller.writer.transport.abort()
        assert raised == []
        assert proxy.status().split("; ")[1] == "0 open"
        await until(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()})


@pytest.fixture
async def bench():
    async with running() as one:
        yield one


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


@contextlib.contextmanager
def full_target() -> Iterator[str]:
    """A server that does not accept and whose backlog is full: who connects waits."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("then", ["close", "half_open", "reset", "caller"])
async def test_while_it_connects_everything_may_end(then):
    tasks = asyncio.all_tasks()
    with full_target() as address:
        before = sockets()
        async with FaultProxy(address) as proxy:
            caller = await Bench(Target(), proxy).call()
            caller.say(b"hello?")
            await until(lambda: proxy.counts["upstream_bytes"] > 0)
            assert len(asyncio.all_tasks() - tasks) == 1
            if then != "close":
                caller.reset() if then == "caller" else getattr(proxy, then)()
                await until(lambda: asyncio.all_tasks() <= tasks)
        assert asyncio.all_tasks() <= tasks
        caller.writer.transport.abort()
        await until(lambda: sockets() == before)


@pytest.mark.parametrize("turns", range(6))
async def test_half_open_closes_who_is_still_in_the_door_too(bench, turns):
    host, port = bench.proxy.address.split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.setblocking(False)
        while bench.proxy.counts["connections"] == 0:  # noqa: ASYNC110 - turn by turn
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        bench.proxy.half_open(closed="caller")
        async with asyncio.timeout(SOON):
            assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("then", ["close", "refuse"])
async def test_a_caller_in_the_door_when_it_shuts_leaves_nothing(then, turns):
    """The kernel has the connection, the event loop is some turns into accepting it."""
    tasks, target = asyncio.all_tasks(), Target()
    async with target.listening() as address:
        before = sockets()
        async with asyncio.timeout(SOON), FaultProxy(address) as proxy:
            host, port = proxy.address.split(":")
            caller = socket.create_connection((host, int(port)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if then == "refuse":
                proxy.refuse()
                proxy.accept()
                (await Bench(target, proxy).call()).reset()
                await until(lambda: proxy.counts["connections"] > 0)
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()
            if then == "refuse":
                await until(lambda: "; 0 open" in proxy.status())

        def is_clean() -> bool:
            for peer in target.peers:
                peer.writer.transport.abort()
            return asyncio.all_tasks() <= tasks and sockets() == before

        await until(is_clean)


async def test_a_caller_that_leaves_before_the_server_is_reached_leaves_nothing(bench):
    for _ in range(20):
        (await bench.call()).reset()
    await bench.until("connections", 20)
    await until(lambda: "; 0 open" in bench.proxy.status())


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


@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(latency=60),
        Faults(stall=1, stall_for=float("inf")),
        BLACK_HOLE,
        Faults(timeout=60),
        Faults(bandwidth=0.1),
    ],
    ids=str,
)
async def test_closing_leaves_no_task_socket_or_timer_whatever_is_under_way(faults):
    """Bytes on their way, a socket that is full, a connection just made."""
    target = Target()
    async with target.listening() as address:
        before, tasks = sockets(), asyncio.all_tasks()
        proxy = FaultProxy(address)
        async with proxy:
            bench = Bench(target, proxy)
            caller, server = await bench.pair()
            await bench.pair()
            proxy.faults = faults
            caller.say(bytes(10 * MIB))
            server.say(bytes(MIB))
            caller.writer.write_eof()
            bench.callers[1].writer.close()
            await asyncio.sleep(0.02)
            await bench.call()
        loop = asyncio.get_running_loop()
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []

        def is_clean() -> bool:
            # What is not the proxy's goes; the target may still be accepting.
            for peer in (*bench.callers, *target.peers):
                peer.writer.transport.abort()
            return asyncio.all_tasks() <= tasks and sockets() == before

        await until(is_clean)


async def test_a_port_in_use_is_an_error_and_leaves_nothing(bench):
    before = sockets()
    with pytest.raises(OSError, match="in use"):
        async with FaultProxy("127.0.0.1:1", listen=bench.proxy.address):
            pass
    assert sockets() == before


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
