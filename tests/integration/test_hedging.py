"""Two regions as real processes: slow and failed requests of one are answered by the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fakes_engine import framed, request, tensors
from hedgerow_protos.hedging import LOAD, REGION, write_previous_attempts
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from hedging_peers import (
    PLENTY,
    STALL,
    THERE,
    counted,
    dependencies,
    four,
    free_port,
    line_of,
    page,
    said,
    write_models,
)
from server_process import HANG_SECONDS, Serve, ServerProcess


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of both regions' models."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def regions(server: Serve, transport: str, models: Path) -> tuple[ServerProcess, ServerProcess]:
    """East and west, each the other's backup; both stall every request for a while."""
    east_port = free_port()
    shared = {"text": models / "text.onnx", "large": models / "large.onnx"}
    stalls = {"fault__delay_percent": 100, "fault__delay_ms": STALL * 1000}
    west = server(
        {"m": models / "there.onnx", "table": models / "large_table.onnx", "only_west": models / "there.onnx"}
        | shared,
        transport=transport,
        server__region="west",
        hedge__backups=f"127.0.0.1:{east_port}",
        hedge__after_ms=20,
        fault__delay_percent=100,
        fault__delay_ms=60,
        **PLENTY,
    )
    east = server(
        {"m": models / "here.onnx", "table": models / "small_table.onnx"} | shared,
        transport=transport,
        grpc_port=east_port,
        server__region="east",
        hedge__backups=west.grpc,
        **stalls,
        **PLENTY,
    )
    return east, west


@pytest.fixture
async def east(regions: tuple[ServerProcess, ServerProcess]) -> AsyncIterator[GRPCInferenceServiceStub]:
    async with regions[0].channel() as channel:
        yield GRPCInferenceServiceStub(channel)


# ------------------------------------------------------------- hedged, joined


async def test_a_stalled_request_is_answered_by_the_other_region_under_one_trace(
    regions: tuple[ServerProcess, ServerProcess], east: GRPCInferenceServiceStub
) -> None:
    """And the other, which stalls too and has the first as its backup, does not hedge it back."""
    here, there = regions
    before = page(here)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    began = time.monotonic()
    call = east.ModelInfer(
        four(name="m", id="one"),
        timeout=20,
        metadata=(
            ("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),
            ("x-request-id", "joined"),
            ("hedgerow-route-key", "caller 1"),
        ),
    )
    reply = await call
    assert time.monotonic() - began < STALL
    assert tensors(reply)["y"].tolist() == [[THERE]]
    assert said(reply) == {"hedgerow_outcome": "hedge", "hedgerow_region": "west"}
    assert (reply.id, reply.model_name, reply.model_version) == ("one", "m", "1")
    trailing = dict(await call.trailing_metadata())
    assert trailing["x-request-id"] == "joined"
    assert REGION not in trailing, "that is for other regions"
    one = await line_of(here, request_id="joined")
    other = await line_of(there, request_id="joined")
    assert (one["outcome"], one["code"], other["outcome"], other["code"]) == ("hedge", "OK", "primary", "OK")
    assert one["trace_id"] == other["trace_id"] == trace
    assert one["user"] == other["user"] == "caller 1"
    won = 'hedgerow_hedges_total{outcome="won"}'
    assert await counted(here, won, before[won] + 1) == before[won] + 1
    assert page(there)['hedgerow_hedges_suppressed_total{reason="budget"}'] == 0
    assert all(page(there)[f'hedgerow_hedges_total{{outcome="{end}"}}'] == 0 for end in ("won", "failed"))


async def test_who_asks_as_another_region_is_told_where_this_is_and_how_busy(
    regions: tuple[ServerProcess, ServerProcess],
) -> None:
    """On answers and on refusals, over either transport."""
    async with regions[1].channel() as channel:
        stub = GRPCInferenceServiceStub(channel)
        metadata = write_previous_attempts(1)
        call = stub.ModelInfer(four(name="m"), timeout=20, metadata=metadata)
        await call
        good = dict(await call.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(four(name="nobody"), timeout=20, metadata=metadata)
        bad = dict(caught.value.trailing_metadata())
    for trailing in (good, bad):
        assert trailing[REGION] == "west"
        assert str(trailing[LOAD]).startswith("TEXT application_utilization=")


async def test_texts_and_large_tensors_come_back_whole(east: GRPCInferenceServiceStub) -> None:
    content = framed([b"", "名前".encode(), b"x" * 100_000, b"\0"])
    made = ModelInferRequest(model_name="text", id="näme")
    made.inputs.add(name="x", datatype="BYTES", shape=[2, 2])
    made.raw_input_contents.append(content)
    reply = await east.ModelInfer(made, timeout=20)
    assert said(reply)["hedgerow_outcome"] == "hedge"
    assert reply.raw_output_contents == [content]
    assert reply.id == "näme"

    values = np.random.default_rng(0).standard_normal((2000, 1024), np.float32)  # 8 MB
    reply = await east.ModelInfer(request({"x": values}, name="large"), timeout=20)
    np.testing.assert_array_equal(tensors(reply)["y"], values)
    assert said(reply)["hedgerow_outcome"] in {"hedge", ""}, (
        "this machine may take longer to send it than it stalls"
    )


async def test_requests_of_a_stream_are_hedged_each_with_its_id(east: GRPCInferenceServiceStub) -> None:
    async def requests() -> AsyncIterator[ModelInferRequest]:
        for i in range(30):
            yield four(name="m" if i % 3 else "nobody", id=str(i))

    replies = [reply async for reply in east.ModelStreamInfer(requests(), timeout=HANG_SECONDS)]
    assert sorted(int(reply.infer_response.id) for reply in replies) == list(range(30))
    for reply in replies:
        if int(reply.infer_response.id) % 3:
            assert tensors(reply.infer_response)["y"].tolist() == [[THERE]]
            assert said(reply.infer_response)["hedgerow_outcome"] == "hedge"
        else:
            assert reply.error_message.startswith("[NOT_FOUND]")


async def test_many_at_once_get_each_its_own_answer(east: GRPCInferenceServiceStub) -> None:
    """Through real sockets, some given up at random moments; nobody gets another's answer."""

    async def ask(i: int) -> None:
        values = np.full((1, 1024), i, np.float32)
        call = east.ModelInfer(request({"x": values}, name="large", id=str(i)), timeout=HANG_SECONDS)
        if i % 4 == 0:
            await asyncio.sleep(0.001 * (i % 100))
            call.cancel()
            return
        reply = await call
        assert reply.id == str(i)
        np.testing.assert_array_equal(tensors(reply)["y"], values)

    await asyncio.gather(*[ask(i) for i in range(200)])


# --------------------------------------------------------------------- failover


async def test_what_fails_or_is_not_loaded_here_is_answered_there(
    regions: tuple[ServerProcess, ServerProcess], east: GRPCInferenceServiceStub
) -> None:
    reply = await east.ModelInfer(four(name="only_west"), timeout=20)
    assert said(reply) == {"hedgerow_outcome": "failover", "hedgerow_region": "west"}
    assert tensors(reply)["y"].tolist() == [[THERE]]

    ask = request({"index": np.array([50], np.int64)}, name="table", id="behind the small table's end")
    for _ in range(3):
        reply = await east.ModelInfer(ask, timeout=20)
        assert tensors(reply)["y"].tolist() == [[100.0, 101.0]]
        assert said(reply)["hedgerow_outcome"] in {"failover", "hedge"}

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await east.ModelInfer(four(name="nowhere"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await east.ModelInfer(four(name="m", version="7"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    reply = await east.ModelInfer(four(name="m"), timeout=20)
    assert said(reply)["hedgerow_outcome"] == "hedge", "a version that nobody has takes it from nobody"
    assert await counted(regions[0], 'hedgerow_failovers_total{outcome="won"}', 1)


async def test_health_and_metrics_tell_how_the_backup_fares(
    regions: tuple[ServerProcess, ServerProcess],
) -> None:
    here, there = regions
    async with asyncio.timeout(HANG_SECONDS):
        while (found := dependencies(here)[f"backup {there.grpc}"])["region"] != "west":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (found["state"], found["ready"], found["trips"]) == ("closed", True, 0)
    assert 0 <= found["utilization"] <= 1
    metrics = page(here)
    assert metrics[f'hedgerow_breaker_state{{dependency="backup {there.grpc}",worker="0"}}'] == 0
    assert metrics['hedgerow_hedge_budget_tokens{worker="0"}'] > 100


# ------------------------------------------------------- cancelled, end to end


async def test_the_attempt_that_lost_is_stopped_at_the_backup_also_in_its_queue(
    server: Serve, transport: str, models: Path
) -> None:
    """A run that takes longer is terminated; what waits behind it never begins; the runner is free."""
    one = {"engine__max_batch_size": 1, "engine__runners": 1, "transport": transport}
    there = server({"slow": models / "slow.onnx"}, **one)
    here = server(
        {"slow": models / "quick.onnx"},
        **one,
        hedge__backups=there.grpc,
        fault__delay_percent=100,
        fault__delay_ms=45,
        **PLENTY,
    )
    async with here.channel() as channel:
        stub = GRPCInferenceServiceStub(channel)
        async with asyncio.TaskGroup() as group:
            for i in range(3):
                call = stub.ModelInfer(request({"x": [[float(i)]]}, name="slow", id=str(i)), timeout=20)
                group.create_task(_is_answered_here(call))
    lines = there.log_lines_when(3)
    assert [line["code"] for line in lines] == ["CANCELLED"] * 3
    assert sum(line["run_ms"] > 0 for line in lines) == 0, "no run came to its end"
    async with there.channel() as channel:
        await GRPCInferenceServiceStub(channel).ModelInfer(
            request({"x": [[7.0]]}, name="slow"), timeout=20, metadata=[("x-request-id", "after")]
        )
    after = await line_of(there, request_id="after")
    assert after["queue_ms"] < after["run_ms"] / 2, "it need not wait for a run that nobody wanted"
    assert await counted(there, 'hedgerow_batch_rows_count{model="slow",version="1"}', 1) == 1
    assert page(there)['hedgerow_requests_total{code="CANCELLED",model="slow",version="1"}'] == 3
    assert await counted(here, 'hedgerow_hedges_total{outcome="superseded"}', 3) == 3


async def _is_answered_here(call: grpc.aio.UnaryUnaryCall[Any, ModelInferResponse]) -> None:
    assert said(await call) == {}
