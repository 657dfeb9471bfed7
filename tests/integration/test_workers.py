"""The supervisor with real processes, signals and sockets; its workers are tiny_worker's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from hedgerow_server.ports import PortError, Reservation, listen
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
HANG_SECONDS = 30


class TinyServer:
    """A supervisor and its workers as one subprocess."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid
        self.ready_line = ""
        self.grpc_port = 0
        self.metrics_port = 0

    async def ready(self) -> None:
        assert self.process.stdout is not None
        self.ready_line = (await self.process.stdout.readline()).decode()
        ports = dict(re.findall(r"(\w+)=[^ ]*:(\d+)", self.ready_line))
        self.grpc_port, self.metrics_port = int(ports["grpc"]), int(ports["metrics"])

    async def ask(self, command: bytes = b"p") -> int:
        """The process id of the worker that answered; raises ConnectionError if none did."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.grpc_port)
        try:
            writer.write(command)
            answer = await reader.read()
            if not answer:
                raise ConnectionResetError("the worker went away")
            return int(answer)
        finally:
            writer.close()

    async def workers(self, count: int) -> set[int]:
        """Process ids of `count` workers, once that many answer."""
        found: set[int] = set()
        while len(found) < count:
            with contextlib.suppress(ConnectionError):
                found.add(await self.ask())
        return found

    async def metric(self, name: str, **labels: str) -> float:
        def fetch() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
                return page.read().decode()

        text = await asyncio.to_thread(fetch)
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def ended(self) -> int:
        async with asyncio.timeout(HANG_SECONDS):
            return await self.process.wait()

    async def errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@pytest.fixture
async def start():
    """Starts tiny servers and sees to it that nothing of them is left."""
    servers = []

    async def start_one(*, faults: str = "", times: dict[str, float] | None = None, **server) -> TinyServer:
        server = {"grpc_port": 0, "http_port": 0, "metrics_port": 0, **server}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "tiny_worker.py"),
            json.dumps({"server": server, **(times or {})}),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", ""))),
                "TINY_FAULTS": faults,
            },
        )
        servers.append(TinyServer(process))
        return servers[-1]

    yield start_one
    for server in servers:
        if server.process.returncode is None:
            server.process.kill()
        # To the ends of its pipes: what is open when the loop is closed fails whichever test comes next.
        async with asyncio.timeout(HANG_SECONDS):
            await server.process.communicate()


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def gone(pids: set[int]) -> None:
    """Returns when none of `pids` lives."""
    async with asyncio.timeout(HANG_SECONDS):
        while any(map(is_alive, pids)):  # noqa: ASYNC110 - the kernel sets no asyncio event
            await asyncio.sleep(0.01)


async def test_a_server_serves_from_all_workers_and_drains_on_sigterm(start):
    """Ready line, connections spread over the workers, exit 0 and no process left."""
    server = await start(workers=2, region="north")
    await server.ready()
    assert re.fullmatch(
        r"hedgerow-server ready grpc=127\.0\.0\.1:\d+ http=127\.0\.0\.1:\d+ metrics=127\.0\.0\.1:\d+ "
        rf"transport=native workers=2 region=north pid={server.pid} \(Ctrl-C to stop\)\n",
        server.ready_line,
    )
    workers = await server.workers(2)
    server.process.send_signal(signal.SIGTERM)
    assert await server.ended() == 0
    await gone(workers)


async def test_requests_in_flight_are_answered_during_the_drain(start):
    server = await start()
    await server.ready()
    asking = asyncio.create_task(server.ask(b"s"))
    while await server.metric("hedgerow_in_flight") < 1:
        pass
    server.process.send_signal(signal.SIGINT)
    assert await asking > 0
    assert await server.ended() == 0


async def test_a_request_that_never_ends_is_cut_off_when_the_drain_is_over(start):
    server = await start(drain_seconds=0)
    await server.ready()
    asking = asyncio.create_task(server.ask(b"e"))
    await server.workers(1)
    server.process.send_signal(signal.SIGTERM)
    assert await server.ended() == 0
    with pytest.raises(ConnectionError):
        await asking


async def test_a_second_signal_ends_it_at_once(start):
    """Not after the hour that the drain may take."""
    server = await start(drain_seconds=3600)
    await server.ready()
    asking = asyncio.create_task(server.ask(b"e"))
    await server.workers(1)
    server.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(HANG_SECONDS):
        while True:  # the listener goes when the drain begins
            try:
                await server.ask()
            except ConnectionError:
                break
    server.process.send_signal(signal.SIGINT)
    assert await server.ended() == 0
    with pytest.raises(ConnectionError):
        await asking


async def test_a_killed_worker_is_replaced_and_the_other_goes_on(start):
    server = await start(workers=2)
    await server.ready()
    before = await server.workers(2)
    with pytest.raises(ConnectionError):
        await server.ask(b"k")
    answered = resets = 0
    while answered < 20:  # while the new one starts, no connection is refused or left hanging
        try:
            assert await server.ask() > 0
            answered += 1
        except ConnectionResetError:
            # What the dead worker's listener held when the kernel took it away.
            resets += 1
            assert resets <= 2
    async with asyncio.timeout(HANG_SECONDS):
        while (after := await server.workers(2)) == before:
            pass
    assert len(after & before) == 1
    assert await server.metric("hedgerow_worker_restarts_total") == 1


async def test_counters_do_not_go_back_when_a_worker_dies(start):
    server = await start()
    await server.ready()
    for _ in range(10):
        await server.ask()
    counted = await server.metric("hedgerow_requests_total", model="m", code="OK")
    assert counted == 10
    with pytest.raises(ConnectionError):
        await server.ask(b"k")
    assert await server.metric("hedgerow_requests_total", model="m", code="OK") >= counted
    await server.workers(1)
    assert await server.metric("hedgerow_requests_total", model="m", code="OK") == counted + 1


async def test_a_hung_worker_is_replaced(start):
    """Its listening socket would otherwise take connections for ever."""
    server = await start(times={"beat_seconds": 0.1, "hung_seconds": 0.5})
    await server.ready()
    hung = await server.workers(1)
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(HANG_SECONDS):
            await server.ask(b"h")
    async with asyncio.timeout(HANG_SECONDS):
        assert await server.workers(1) != hung


async def test_a_page_comes_although_a_worker_hangs(start):
    server = await start(times={"beat_seconds": 3600, "hung_seconds": 3600})
    await server.ready()
    await server.workers(1)
    asking = asyncio.create_task(server.ask(b"h"))
    async with asyncio.timeout(HANG_SECONDS):
        await server.metric("hedgerow_requests_total")
        await server.metric("hedgerow_requests_total")
    assert not asking.done()
    asking.cancel()


async def test_workers_do_not_outlive_a_killed_supervisor(start):
    """Not even one that hangs: the kernel sees to it."""
    server = await start(workers=2)
    await server.ready()
    workers = await server.workers(2)
    asking = asyncio.create_task(server.ask(b"h"))
    await server.metric("hedgerow_in_flight")  # by now one of them hangs, or this would come at once
    server.process.kill()
    await gone(workers)
    with pytest.raises(ConnectionError):
        await asking


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("refuse", "hedgerow-server: model iris was refused: it is no model\n"),
        ("raise", "hedgerow-server: RuntimeError: a defect\n"),
    ],
)
async def test_a_server_that_cannot_start_says_why_and_exits_with_1(start, fault, reason):
    server = await start(faults=fault)
    errors = await server.errors()
    assert await server.ended() == 1
    assert errors.endswith(reason)


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("killed", "was killed by SIGKILL"),
        ("killed-oddly", "was killed by signal 40"),
        ("exits", "exited with code 3"),
    ],
)
async def test_a_worker_that_ends_while_it_starts_is_named_with_how_and_what_is_tried_next(start, fault, how):
    server = await start(faults=f"{fault}-at-start")
    *lives, last = (await server.errors()).splitlines()
    assert await server.ended() == 1
    told = [re.sub(r".*: worker", "worker", line) for line in lives]
    ended = f"worker 0 {how} before it was ready"
    assert told == [f"{ended}; starting it again in {delay} s" for delay in (0.1, 0.2, 0.4, 0.8)]
    assert last == f"hedgerow-server: {ended}, 5 times in a row; giving up"


async def test_a_port_in_use_is_refused_with_what_to_do(start):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = await start(grpc_port=port)
        errors = await server.errors()
        assert await server.ended() == 1
    assert errors == (
        f"hedgerow-server: port {port} on 127.0.0.1 is in use; "
        "name another with --grpc-port, or 0 for a free one\n"
    )


async def test_a_second_server_on_the_same_port_is_refused(start):
    """SO_REUSEPORT alone would let it start and take half of the connections."""
    first = await start()
    await first.ready()
    second = await start(grpc_port=first.grpc_port)
    assert "is in use" in await second.errors()
    assert await second.ended() == 1


async def test_a_server_can_restart_on_its_port_at_once(start):
    """Connections that the first one closed linger in TIME_WAIT."""
    first = await start()
    await first.ready()
    await first.ask()
    first.process.send_signal(signal.SIGTERM)
    assert await first.ended() == 0
    second = await start(grpc_port=first.grpc_port)
    await second.ready()
    assert await second.ask() > 0


def test_a_reservation_gets_no_connection():
    """All go to the sockets that listen; without any, callers are refused and not left waiting."""
    with Reservation("127.0.0.1", 0, flag="--grpc-port") as reserved:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", reserved.port))
        listeners = [listen("127.0.0.1", reserved.port) for _ in range(2)]
        callers = [socket.create_connection(("127.0.0.1", reserved.port)) for _ in range(200)]
        accepted = Counter[int]()
        for index, listener in enumerate(listeners):
            with contextlib.suppress(BlockingIOError):
                while True:
                    callers.append(listener.accept()[0])
                    accepted[index] += 1
        assert accepted.total() == 200
        assert min(accepted[0], accepted[1]) > 0
        for each in (*callers, *listeners):
            each.close()


def test_a_host_that_is_none_is_refused():
    with pytest.raises(PortError, match="no address of this machine"):
        Reservation("no.such.host.invalid", 0, flag="--grpc-port")
    with pytest.raises(PortError, match="cannot listen on 192"):
        Reservation("192.0.2.1", 0, flag="--grpc-port")
