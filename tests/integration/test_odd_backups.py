"""Backups that are none, are full, drain, or have other models: the request is answered all the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import grpc
import pytest
from fakes_engine import request
from hedgerow_protos.hedging import ATTEMPT, OWN_PUSHBACK, REGION
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from hedging_peers import (
    PLENTY,
    STALL,
    THERE,
    Odd,
    ask_m,
    counted,
    dependencies,
    free_port,
    page,
    right,
    said,
    write_models,
)
from server_process import HANG_SECONDS, Serve


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of both regions' models."""
    return write_models(tmp_path_factory.mktemp("models"))


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
        here = await asyncio.to_thread(
            server,
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
        here = await asyncio.to_thread(
            server,
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
        here = await asyncio.to_thread(
            server,
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
        assert await counted(here, 'hedgerow_hedges_suppressed_total{reason="pushback"}', 5)
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
    async with asyncio.timeout(HANG_SECONDS):
        while not any(
            page(here)[f'hedgerow_hedges_suppressed_total{{reason="{reason}"}}']
            for reason in ("pushback", "not_ready", "breaker", "no_model")
        ):
            await ask_m(here)
    assert {line["code"] for line in west.log_lines()} <= {"OK", "UNAVAILABLE", "CANCELLED"}


async def test_a_full_region_refuses_other_regions_hedges_and_is_left_alone_for_a_while(
    server: Serve, transport: str, models: Path
) -> None:
    """It says so over either transport; the answers come from here, which hears it and stops hedging."""
    one = {"engine__max_batch_size": 1, "engine__runners": 1, "transport": transport}
    west = server(
        {"slow": models / "slow.onnx"},
        server__region="west",
        admission__min_limit=1,
        admission__max_limit=1,
        **one,
    )
    here = server(
        {"slow": models / "quick.onnx"},
        hedge__backups=west.grpc,
        fault__delay_percent=100,
        fault__delay_ms=60,
        **one,
        **PLENTY,
    )
    ask = request({"x": [[1.0]]}, name="slow")
    async with west.channel() as to_west, here.channel() as to_here:
        there, stub = GRPCInferenceServiceStub(to_west), GRPCInferenceServiceStub(to_here)

        async def keep_it_full() -> None:
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await there.ModelInfer(ask, timeout=20)

        holding = asyncio.create_task(keep_it_full())
        try:
            async with asyncio.timeout(HANG_SECONDS):
                refused = None
                while refused is None:
                    try:
                        await there.ModelInfer(ask, timeout=20, metadata=((ATTEMPT, "hedge"),))
                    except grpc.aio.AioRpcError as error:
                        refused = error
                assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                trailing = dict(refused.trailing_metadata())
                assert trailing[OWN_PUSHBACK] == "-1", "this attempt is not wanted here later either"
                assert trailing[REGION] == "west"
                while not page(here)['hedgerow_hedges_suppressed_total{reason="pushback"}']:
                    assert said(await stub.ModelInfer(ask, timeout=20)) == {}
        finally:
            holding.cancel()
            await asyncio.wait([holding])
    assert await counted(here, 'hedgerow_hedges_total{outcome="failed"}', 1)
    assert dependencies(here)[f"backup {west.grpc}"]["trips"] == 0, "who refuses is well"
