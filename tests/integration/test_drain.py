"""SIGTERM: what is under way is answered, what comes later is sent elsewhere, and the process ends."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import zoo
from fakes_engine import request, tensors
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import HANG_SECONDS, Serve


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.slow(tmp_path_factory.mktemp("model") / "slow.onnx", milliseconds=40)


async def test_requests_under_way_are_answered_and_none_is_lost(
    server: Serve, transport: str, slow: Path
) -> None:
    """Each call ends as answered or as UNAVAILABLE, which a client may send again; the log has them all."""
    running = server({"slow": slow}, transport=transport, deadline__default_seconds=30)
    async with running.channel() as channel:
        stub = GRPCInferenceServiceStub(channel)
        await stub.ModelInfer(request({"x": [[0.0]]}, name="slow"), timeout=20)
        calls = [
            asyncio.ensure_future(
                stub.ModelInfer(request({"x": [[float(i)]]}, name="slow"), timeout=HANG_SECONDS)
            )
            for i in range(40)
        ]
        await asyncio.sleep(0.1)
        running.terminate()
        answered = 0
        for i, ended in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
            if isinstance(ended, grpc.aio.AioRpcError):  # it came too late, on a busy machine
                assert ended.code() is grpc.StatusCode.UNAVAILABLE, ended
            else:
                assert tensors(ended)["y"].tolist() == [[float(i)]]
                answered += 1
        assert answered > 0
    assert await asyncio.to_thread(running.wait) == 0
    lines = running.log_lines()
    assert [line["code"] for line in lines].count("OK") == answered + 1
    assert {line["code"] for line in lines} <= {"OK", "UNAVAILABLE"}
    assert "Traceback" not in running.messages()


async def test_readiness_goes_first_and_late_requests_are_told_to_go_elsewhere(
    server: Serve, transport: str, slow: Path
) -> None:
    """While a request is under way after SIGTERM, the HTTP probe says 503 and new calls are UNAVAILABLE."""
    running = server({"slow": slow}, transport=transport)
    async with running.channel() as channel, httpx.AsyncClient(base_url=f"http://{running.http}") as http:
        assert (await http.get("/health/ready")).status_code == 200
        stub = GRPCInferenceServiceStub(channel)
        rows = np.zeros((129, 1), np.float32)  # more than a batch: each runs alone
        under_way = [
            asyncio.ensure_future(stub.ModelInfer(request({"x": rows}, name="slow"), timeout=HANG_SECONDS))
            for _ in range(24)
        ]
        await asyncio.sleep(0.1)
        running.terminate()
        statuses = []
        while not all(call.done() for call in under_way):
            try:
                statuses.append((await http.get("/health/ready")).status_code)
            except httpx.TransportError:
                break
            await asyncio.sleep(0.01)
        assert 503 in statuses
        answered = 0
        for ended in await asyncio.gather(*under_way, return_exceptions=True):
            if isinstance(ended, grpc.aio.AioRpcError):  # it came too late, on a busy machine
                assert ended.code() is grpc.StatusCode.UNAVAILABLE, ended
            else:
                assert tensors(ended)["y"].shape == (129, 1)
                answered += 1
        assert answered > 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request({"x": [[1.0]]}, name="slow"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_steady_stream_of_callers_sees_answers_or_unavailable_and_nothing_else(
    server: Serve, transport: str, slow: Path, tmp_path: Path
) -> None:
    """No reset, no INTERNAL, no hang, whatever the moment at which a call meets the drain."""
    running = server({"m": zoo.several(tmp_path / "several.onnx"), "slow": slow}, transport=transport)
    answered = 0
    failures: list[grpc.aio.AioRpcError] = []
    ends = asyncio.Event()

    async def ask(name: str) -> None:
        nonlocal answered
        inputs = {"x": [[1.0]]} if name == "slow" else {"a": [[1, 2]], "b": [[3, 4]]}
        async with running.channel() as channel:
            stub = GRPCInferenceServiceStub(channel)
            while not ends.is_set():
                try:
                    await stub.ModelInfer(request(inputs, name=name), timeout=HANG_SECONDS)
                except grpc.aio.AioRpcError as error:
                    failures.append(error)
                    return
                answered += 1

    async with asyncio.TaskGroup() as group:
        for i in range(12):
            group.create_task(ask("slow" if i % 4 == 0 else "m"))
        await asyncio.sleep(0.5)
        running.terminate()
        await asyncio.to_thread(running.wait)
        ends.set()
    assert answered > 20
    assert {error.code() for error in failures} == {grpc.StatusCode.UNAVAILABLE}, failures
    assert running.process.returncode == 0


async def test_an_idle_server_ends_at_once_even_while_somebody_watches(
    server: Serve, transport: str, slow: Path
) -> None:
    """A client that watches its health does not hold up the end for the whole grace."""
    running = server({"slow": slow}, transport=transport, server__drain_seconds=35)
    async with running.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        running.terminate()
        began = time.monotonic()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await asyncio.to_thread(running.wait) == 0
        assert time.monotonic() - began < 20


async def test_what_outlasts_the_drain_is_told_to_go_elsewhere(
    server: Serve, transport: str, slow: Path
) -> None:
    """Whatever runs or waits when the time is over gets UNAVAILABLE and its log line; no defect is noted."""
    running = server({"slow": slow}, transport=transport, server__drain_seconds=0.3)
    async with running.channel() as channel:
        stub = GRPCInferenceServiceStub(channel)
        rows = np.zeros((129, 1), np.float32)  # more than a batch: each runs alone
        calls = [
            asyncio.ensure_future(stub.ModelInfer(request({"x": rows}, name="slow"), timeout=HANG_SECONDS))
            for _ in range(120)
        ]
        await asyncio.sleep(0.1)
        running.terminate()
        ended = await asyncio.gather(*calls, return_exceptions=True)
    failures = [one for one in ended if isinstance(one, grpc.aio.AioRpcError)]
    assert failures
    assert {failure.code() for failure in failures} == {grpc.StatusCode.UNAVAILABLE}, failures
    assert await asyncio.to_thread(running.wait) == 0
    codes = Counter(line["code"] for line in running.log_lines())
    assert (codes["OK"], codes["UNAVAILABLE"]) == (len(calls) - len(failures), len(failures)), codes
    assert "ERROR" not in running.messages()
