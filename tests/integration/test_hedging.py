"""Two regions as real processes: slow and failed requests of one are answered by the other."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
import zoo
from fakes_engine import framed, request, tensors
from hedgerow_protos.hedging import LOAD, REGION, write_previous_attempts
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import HANG_SECONDS, Serve, ServerProcess

HERE, THERE = 1.0, 2.0
STALL = 0.4
#: A budget that these few requests cannot use up.
PLENTY = {"hedge__burst": 1000, "hedge__budget_percent": 5}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of both regions' models."""
    directory = tmp_path_factory.mktemp("models")
    zoo.constant(directory / "here.onnx", HERE)
    zoo.constant(directory / "there.onnx", THERE)
    zoo.identity(directory / "text.onnx", "BYTES", ("batch", 2))
    zoo.identity(directory / "large.onnx", "FP32", ("batch", 1024))
    zoo.lookup(directory / "small_table.onnx", rows=10)
    zoo.lookup(directory / "large_table.onnx", rows=100)
    zoo.slow(directory / "slow.onnx", milliseconds=60)
    zoo.slow(directory / "slower.onnx", milliseconds=600)
    return directory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def said(reply: ModelInferResponse) -> dict[str, str]:
    return {name: value.string_param for name, value in reply.parameters.items()}


def four(**options: Any) -> ModelInferRequest:
    return request({"x": [[0.0] * 4]}, **options)


async def line_of(of: ServerProcess, **wanted: str) -> dict[str, Any]:
    """The one line of a region's log that has these values; it is written a moment after the reply."""
    async with asyncio.timeout(HANG_SECONDS):
        while not (found := [line for line in of.log_lines() if wanted.items() <= line.items()]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    (line,) = found
    return line


def page(of: ServerProcess) -> dict[str, float]:
    """A region's metrics, by name with labels."""
    with urllib.request.urlopen(f"http://{of.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def dependencies(of: ServerProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{of.http}/health/dependencies") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


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
    after = page(here)
    won = 'hedgerow_hedges_total{outcome="won"}'
    assert after[won] == before[won] + 1
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
    assert page(regions[0])['hedgerow_failovers_total{outcome="won"}'] >= 1


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
    """The run, ten times as long, is terminated; what waits behind it never begins; the runner is free."""
    one = {"engine__max_batch_size": 1, "engine__runners": 1, "transport": transport}
    there = server({"slow": models / "slower.onnx"}, **one)
    here = server(
        {"slow": models / "slow.onnx"},
        **{**one, "engine__runners": 5},
        hedge__backups=there.grpc,
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
    metrics = page(there)
    assert metrics['hedgerow_requests_total{code="CANCELLED",model="slow",version="1"}'] == 3
    assert metrics['hedgerow_batch_rows_count{model="slow",version="1"}'] == 1
    assert page(here)['hedgerow_hedges_total{outcome="superseded"}'] == 3


async def _is_answered_here(call: grpc.aio.UnaryUnaryCall[Any, ModelInferResponse]) -> None:
    assert said(await call) == {}


# ---------------------------------------------------------------- odd backups

Answer = Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Any]


class Odd:
    """A gRPC server that answers as the test says, and keeps what it was asked."""

    def __init__(self, infer: Answer | None, ready: bytes = b"\x08\x01") -> None:
        self._infer_answer = infer
        self._ready_answer = ready
        self.asked: list[float] = []
        self._server = grpc.aio.server()
        methods = {"ServerReady": grpc.unary_unary_rpc_method_handler(self._ready)}
        if infer is not None:
            methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def _ready(self, payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return self._ready_answer

    async def _infer(self, payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self.asked.append(time.monotonic())
        assert self._infer_answer is not None
        answer = self._infer_answer(payload, context)
        return bytes(await answer if asyncio.iscoroutine(answer) else answer)

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


def right(value: float) -> ModelInferResponse:
    """A right reply of `m`, as another vendor's server would give it."""
    reply = ModelInferResponse(model_name="m", model_version="3")
    reply.outputs.add(name="y", datatype="FP32", shape=[1, 1])
    reply.raw_output_contents.append(np.float32([[value]]).tobytes())
    return reply


async def ask_m(of: ServerProcess, **options: Any) -> ModelInferResponse:
    async with of.channel() as channel:
        reply: ModelInferResponse = await GRPCInferenceServiceStub(channel).ModelInfer(
            four(name="m", **options), timeout=20
        )
        return reply


@pytest.fixture(scope="module")
def http_backup(server: Serve, models: Path) -> str:
    """A port that speaks HTTP/1.1: another server's health face."""
    return server({"m": models / "there.onnx"}, transport="grpcio", server__region="west").http


async def test_backups_that_are_nothing_of_the_kind_are_passed_over_and_shut_out(
    server: Serve, models: Path, http_backup: str
) -> None:
    """No name, nobody there, HTTP, another service, bytes that are no reply, a reply of another model.

    The request goes on to the next at once; in a moment their breakers are open and the last, which is one,
    is asked first.
    """
    other = right(THERE)
    other.model_name = "another"
    west = server({"m": models / "there.onnx"}, server__region="west")
    async with (
        Odd(None) as other_service,
        Odd(lambda *_: b"\xff\xff no reply", ready=b"\xff\xff") as garbage,
        Odd(lambda *_: other.SerializeToString()) as another,
    ):
        odd = [
            "nowhere.invalid:8001",
            f"127.0.0.1:{free_port()}",
            http_backup,
            other_service.address,
            garbage.address,
            another.address,
        ]
        here = server(
            {"m": models / "here.onnx"},
            hedge__backups=",".join([*odd, west.grpc]),
            fault__delay_percent=100,
            fault__delay_ms=3000,
            **PLENTY,
        )
        async with asyncio.timeout(HANG_SECONDS):
            for _ in range(8):
                reply = await ask_m(here)
                assert said(reply) == {"hedgerow_outcome": "hedge", "hedgerow_region": "west"}
                await asyncio.sleep(0.2)
            while not all(dependencies(here)[f"backup {address}"]["trips"] for address in odd[:5]):
                await ask_m(here)
                await asyncio.sleep(0.2)
        assert dependencies(here)[f"backup {west.grpc}"]["state"] == "closed"
        assert "Traceback" not in here.messages()
        assert page(here)['hedgerow_worker_restarts_total{worker="0"}'] == 0
        for address in odd[:5]:
            assert here.messages().count(f"backup {address}: not used") == 1
        assert "skipping fork() handlers" not in here.messages()


async def test_a_backup_that_accepts_and_says_nothing_holds_up_nobody(server: Serve, models: Path) -> None:
    """A black hole: the answer comes from here in its own time, and soon nothing is sent there."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        here = server(
            {"m": models / "here.onnx"},
            hedge__backups=address,
            fault__delay_percent=100,
            fault__delay_ms=STALL * 1000,
            **PLENTY,
        )
        async with asyncio.timeout(HANG_SECONDS):
            while not dependencies(here)[f"backup {address}"]["trips"]:
                assert said(await ask_m(here)) == {}
        metrics = page(here)
        assert metrics['hedgerow_hedges_total{outcome="won"}'] == 0
        assert metrics['hedgerow_hedge_budget_tokens{worker="0"}'] > 0


async def test_another_version_is_used_and_named_unless_one_was_asked_for(
    server: Serve, models: Path
) -> None:
    """The reply's version is that of the backup; who asks for version 1 gets no other."""
    async with Odd(lambda *_: right(THERE).SerializeToString()) as west:
        here = server(
            {"m": models / "here.onnx"},
            hedge__backups=west.address,
            fault__delay_percent=100,
            fault__delay_ms=STALL * 1000,
            **PLENTY,
        )
        reply = await ask_m(here)
        assert (reply.model_version, said(reply)["hedgerow_outcome"]) == ("3", "hedge")
        assert said(reply)["hedgerow_region"] == west.address, "it did not say where it is"
        reply = await ask_m(here, version="1")
        assert (reply.model_version, said(reply)) == ("1", {})
        reply = await ask_m(here, id="mine")
        assert (reply.id, said(reply)) == ("mine", {}), "the reply there had no id"
        assert len(west.asked) == 3


async def test_pushback_is_honoured(server: Serve, models: Path) -> None:
    """A backup that asks for two seconds gets them; afterwards it is asked again."""

    async def refuse(payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "2000"),))
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much at once")
        return b""

    async with Odd(refuse) as west:
        here = server(
            {"m": models / "here.onnx"},
            hedge__backups=west.address,
            fault__delay_percent=100,
            fault__delay_ms=100,
            **PLENTY,
        )
        began = time.monotonic()
        while time.monotonic() < began + 5:
            assert said(await ask_m(here)) == {}
        assert 2 <= len(west.asked) <= 4
        gaps = [later - earlier for earlier, later in zip(west.asked, west.asked[1:], strict=False)]
        assert min(gaps) >= 1.99
        assert page(here)['hedgerow_hedges_suppressed_total{reason="pushback"}'] > 5
        assert dependencies(here)[f"backup {west.address}"]["state"] == "closed", "who refuses is well"


async def test_a_backup_that_drains_is_left_alone(server: Serve, transport: str, models: Path) -> None:
    """A call under way there is answered, then no more are sent, and nobody here notices."""
    west = server(
        {"m": models / "there.onnx"}, transport=transport, server__region="west", server__drain_seconds=5
    )
    here = server(
        {"m": models / "here.onnx"},
        transport=transport,
        hedge__backups=west.grpc,
        fault__delay_percent=100,
        fault__delay_ms=STALL * 1000,
        **PLENTY,
    )
    assert said(await ask_m(here))["hedgerow_outcome"] == "hedge"
    west.terminate()
    async with asyncio.timeout(HANG_SECONDS):
        while said(await ask_m(here)):
            pass
        for _ in range(5):
            assert said(await ask_m(here)) == {}
    assert west.wait() == 0
    counts = page(here)
    reasons = ("pushback", "not_ready", "breaker", "no_model")
    assert sum(counts[f'hedgerow_hedges_suppressed_total{{reason="{reason}"}}'] for reason in reasons) >= 4
    assert {line["code"] for line in west.log_lines()} <= {"OK", "UNAVAILABLE", "CANCELLED"}
