"""Requests to a server with several workers: how they spread, and how they spread again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import hedgerow
import numpy as np
import pytest
import zoo
from fakes_engine import request
from hedgerow.lanes import WORKER
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import HANG_SECONDS, Serve, ServerProcess

CALLERS = 64
X = {"x": np.zeros((1, 3), np.float32)}
ASK = request({"x": [[1.0, 2.0, 3.0]]})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.identity(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def running(server: Serve, transport: str, model: Path) -> ServerProcess:
    """Two workers, each with a port of its own besides the shared one."""
    return server({"m": model}, transport=transport, workers=2, server__worker_ports=0)


def workers(running: ServerProcess) -> list[dict[str, Any]]:
    """The page that lists them."""
    with urllib.request.urlopen(f"http://{running.metrics}/workers", timeout=HANG_SECONDS) as page:
        return list(json.load(page))


def answered(running: ServerProcess, total: int) -> list[int]:
    """Requests that each of two workers has answered, by its log, once there are `total`."""
    until = time.monotonic() + HANG_SECONDS
    logs = [running.directory / f"requests-{number}.jsonl" for number in range(2)]
    while True:
        counts = [log.read_bytes().count(b"\n") if log.exists() else 0 for log in logs]
        if sum(counts) >= total:
            return counts
        assert time.monotonic() < until, counts
        time.sleep(0.02)


def found(client: hedgerow.Client | hedgerow.AsyncClient) -> set[int | None]:
    """The workers that a client's connections lead to."""
    return {lane.worker for lanes in client._lanes_to[:1] for lane in lanes.all}


def share(before: list[int], after: list[int]) -> float:
    """Of the requests in between, worker 0's."""
    first, second = (b - a for a, b in zip(before, after, strict=True))
    return first / (first + second)


async def test_the_asyncio_client_gives_every_worker_its_share(running: ServerProcess) -> None:
    """64 callers, a client as it comes. Nothing but luck would bring two connections to two workers."""
    async with hedgerow.AsyncClient(running.grpc) as client:
        asked = sum(answered(running, 0))
        async with asyncio.timeout(HANG_SECONDS):
            while found(client) != {0, 1}:
                await client.infer("m", X)
                asked += 1
        before = answered(running, asked)

        async def ask() -> None:
            for _ in range(30):
                await client.infer("m", X)

        await asyncio.gather(*(ask() for _ in range(CALLERS)))
        after = answered(running, asked + CALLERS * 30)
    assert 0.3 < share(before, after) < 0.7


def test_the_blocking_client_gives_every_worker_its_share(running: ServerProcess) -> None:
    """The same with 64 threads."""
    with hedgerow.Client(running.grpc) as client:
        asked = sum(answered(running, 0))
        until = time.monotonic() + HANG_SECONDS
        while found(client) != {0, 1}:
            client.infer("m", X)
            asked += 1
            assert time.monotonic() < until
        before = answered(running, asked)

        def ask() -> None:
            for _ in range(30):
                client.infer("m", X)

        threads = [threading.Thread(target=ask) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = answered(running, asked + CALLERS * 30)
    assert 0.3 < share(before, after) < 0.7


async def test_each_worker_answers_at_its_own_address(running: ServerProcess) -> None:
    """As the ready line and the page of workers name them, and whoever is asked says which it is."""
    listed = workers(running)
    addresses = [one["grpc"] for one in listed]
    assert f"worker_grpc={','.join(addresses)} " in running.ready_line
    assert [(one["worker"], one["ready"], one["restarts"]) for one in listed] == [(0, True, 0), (1, True, 0)]
    for number, address in enumerate(addresses):
        async with grpc.aio.insecure_channel(address) as channel:
            call = GRPCInferenceServiceStub(channel).ModelInfer(ASK, timeout=20)
            await call
            assert dict(await call.trailing_metadata())[WORKER] == f"{number}/2"


async def test_grpcs_own_balancing_over_the_addresses_is_even_to_the_request(running: ServerProcess) -> None:
    """Round robin, as any gRPC client has it; what a proxy does looks the same to the workers."""
    target = "ipv4:" + ",".join(one["grpc"] for one in workers(running))
    options = [
        ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        # Else gRPC makes one of the whole list, which is none that HTTP/2 allows.
        ("grpc.default_authority", "hedgerow"),
    ]
    counted: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(target, options) as channel:
        stub = GRPCInferenceServiceStub(channel)

        async def ask() -> str:
            call = stub.ModelInfer(ASK, timeout=20)
            await call
            return str(dict(await call.trailing_metadata())[WORKER])

        async with asyncio.timeout(HANG_SECONDS):
            while len({await ask() for _ in range(2)}) < 2:  # until both are connected
                pass
        for _ in range(100):
            counted[await ask()] += 1
    assert counted == {"0/2": 50, "1/2": 50}


def test_the_client_takes_turns_over_the_addresses_it_is_given(running: ServerProcess) -> None:
    """Without it, all of gRPC's calls would go to the first."""
    before = answered(running, 0)
    with hedgerow.Client("ipv4:" + ",".join(one["grpc"] for one in workers(running))) as client:
        for _ in range(100):
            client.infer("m", X)
    after = answered(running, sum(before) + 100)
    assert 0.3 < share(before, after) < 0.7


async def test_a_worker_that_was_started_again_gets_its_share_again(running: ServerProcess) -> None:
    """The client's connections are all to the other by then; it finds the new one without being told."""
    async with hedgerow.AsyncClient(running.grpc) as client:
        async with asyncio.timeout(HANG_SECONDS):
            while found(client) != {0, 1}:
                await client.infer("m", X)
        first, _ = workers(running)
        os.kill(int(first["pid"]), signal.SIGKILL)
        async with asyncio.timeout(HANG_SECONDS):
            while found(client) != {1}:
                try:
                    await client.infer("m", X)
                except hedgerow.Unavailable:  # it was under way there
                    await asyncio.sleep(0.01)
            while found(client) != {0, 1}:
                await client.infer("m", X)
                await asyncio.sleep(0.005)
        asked = sum(answered(running, 0))
        before = answered(running, asked)
        for _ in range(200):
            await client.infer("m", X)
        after = answered(running, asked + 200)
    assert workers(running)[0]["restarts"] == 1
    assert 0.3 < share(before, after) < 0.7


@pytest.mark.parametrize("transport", ["grpcio"], indirect=True)
async def test_ageing_moves_a_plain_channel_and_no_request_fails(
    server: Serve, transport: str, model: Path
) -> None:
    """Channels of other clients stay where they are for ever, but for the server's GOAWAY."""
    ageing = server({"m": model}, transport=transport, workers=2, server__connection_age_seconds=0.2)
    seen: list[set[str]] = [set() for _ in range(8)]

    async def keep_asking(mine: set[str]) -> None:
        async with ageing.channel() as channel:
            stub = GRPCInferenceServiceStub(channel)
            while not all(len(one) == 2 for one in seen):
                calls = [stub.ModelInfer(ASK, timeout=HANG_SECONDS) for _ in range(8)]
                await asyncio.gather(*calls)
                mine.update([str(dict(await call.trailing_metadata())[WORKER]) for call in calls])

    async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as callers:
        for mine in seen:
            callers.create_task(keep_asking(mine))


@pytest.mark.parametrize("transport", ["grpcio"], indirect=True)
async def test_a_stream_outlives_its_connections_age(server: Serve, transport: str, model: Path) -> None:
    """GOAWAY asks a client to dial anew for its next call; it cuts nothing."""
    ageing = server({"m": model}, transport=transport, workers=2, server__connection_age_seconds=0.2)

    async def questions():
        for _ in range(20):
            yield hedgerow.InferRequest("m", X)
            await asyncio.sleep(0.05)  # five ages, all together

    async with hedgerow.AsyncClient(ageing.grpc) as client:
        assert len([reply async for reply in client.stream(questions())]) == 20
