"""The HTTP health face over a real socket."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from hedgerow_server.ports import listen
from hedgerow_server.rpc.http import health_app
from hedgerow_server.rpc.http_server import HttpServer


class Patient:
    """Health as the test sets it."""

    def __init__(self) -> None:
        self.is_live = True
        self.reasons: list[str] = []

    def live(self) -> bool:
        return self.is_live

    def ready(self) -> tuple[bool, list[str]]:
        return not self.reasons, self.reasons

    def dependencies(self) -> dict[str, object]:
        return {"control": {"connected": False}}


@pytest.fixture
def patient():
    return Patient()


@pytest.fixture
def listener():
    found = listen("127.0.0.1", 0)
    yield found
    found.close()


@pytest.fixture
async def client(patient, listener):
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with HttpServer(health_app(patient), listener), httpx.AsyncClient(base_url=url) as client:
        yield client


async def test_live_and_ready_answer_200_and_503(client, patient):
    assert (await client.get("/health/live")).status_code == 200
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": []})
    patient.reasons = ["draining"]
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "reasons": ["draining"]})
    assert (await client.get("/health/live")).status_code == 200
    patient.is_live = False
    assert (await client.get("/health/live")).status_code == 503


async def test_a_dependency_that_is_down_is_told_and_does_not_make_it_unready(client):
    answer = await client.get("/health/dependencies")
    assert (answer.status_code, answer.json()) == (200, {"control": {"connected": False}})
    assert (await client.get("/health/ready")).status_code == 200


async def test_other_paths_and_methods_are_refused(client):
    assert (await client.get("/docs")).status_code == 404
    assert (await client.post("/health/live")).status_code == 405


async def test_it_stops_although_a_connection_is_open(patient, listener):
    """A probe's kept-alive or silent connection must not hold up the drain."""
    port = listener.getsockname()[1]
    async with asyncio.timeout(30):
        async with HttpServer(health_app(patient), listener):
            silent = socket.create_connection(("127.0.0.1", port))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    writer.close()
    silent.close()
