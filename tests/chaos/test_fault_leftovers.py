"""Whenever a connection or the fault proxy itself ends, no task, socket or timer is left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from fault_bench import MIB, SOON, Bench, Target, sockets, until
from fault_proxy import BLACK_HOLE, FaultProxy, Faults


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
