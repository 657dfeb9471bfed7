"""Real servers for the tests that need one: ours, with models from the zoo, and regions that do as told."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from client_peer import Asyncio, Blocking
from client_region import Region
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import Serve, ServerProcess, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts servers: `server({"name": path_of_model}, transport="native", workers=1, ...)`.

    A keyword is a flag (`grpc_port=0`), or with two underscores any setting
    (`deadline__default_seconds=1`). They are stopped at the end of the module,
    and must then drain in peace.
    """
    started: list[ServerProcess] = []

    def start(models: Mapping[str, Path], **flags: Any) -> ServerProcess:
        one = start_server(tmp_path_factory.mktemp("server"), models, flags)
        started.append(one)
        return one

    yield start
    codes = []
    for one in started:
        if one.process.poll() is None:
            one.terminate()
    for one in started:
        try:
            codes.append(one.wait())
        except subprocess.TimeoutExpired:
            one.process.kill()
            codes.append(one.process.wait())
        assert one.process.stdout is not None
        one.process.stdout.close()
    assert not any(codes), [one.messages() for one, code in zip(started, codes, strict=True) if code]


@pytest.fixture(scope="module", params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both transports pass the same tests."""
    return str(request.param)


@pytest.fixture
async def stub(running: ServerProcess) -> AsyncIterator[GRPCInferenceServiceStub]:
    """A stub of the module's `running` server, on a connection of its own."""
    async with running.channel() as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture
def regions():
    """Starts regions that do as told, named a, b, ..."""
    started = []

    def start(*does):
        some = [Region("abcdef"[len(started) + number], one) for number, one in enumerate(does)]
        started.extend(some)
        return some

    yield start
    for region in started:
        region.stop()


@pytest.fixture(params=[Blocking, Asyncio])
def connect(request):
    """Makes clients of either kind: `connect(a, b, timeout=2)`."""
    with contextlib.ExitStack() as opened:

        def make(primary, *backups, **kwargs):
            primary, *backups = [getattr(one, "address", one) for one in (primary, *backups)]
            client = request.param(primary, backups=backups, **{"timeout": 10.0, **kwargs})
            opened.callback(client.close)
            return client

        yield make
