"""What a client with backups takes from inside grpcio: it is there, is not needed, and nothing leaks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import hedgerow
import pytest
import zoo
from client_backups import CODES, X, at_once, hedger, nothing_is_left, plain
from client_peer import Asyncio, Blocking
from client_region import Does
from hedgerow import Hedging
from hedgerow.hedging import direct
from hedgerow.hedging.direct import DirectCall


def test_grpc_offers_what_the_direct_call_needs(regions):
    """A release of grpcio that does not makes blocking calls with backups slower: one should know."""
    (a,) = regions(Does())
    with hedgerow.Client(a.address, backups=["127.0.0.1:1"]) as client:
        client.infer("m", {"x": X})
        assert all(lane.stub.ModelInfer.is_direct for lane in client._lanes.all)


@pytest.mark.parametrize(
    "does", [Does(), Does(20), Does(code=CODES.UNAVAILABLE)], ids=["plain", "slow", "fails"]
)
def test_without_it_the_client_does_the_same(regions, monkeypatch, does):
    monkeypatch.setattr(DirectCall, "is_direct", False)
    init = DirectCall.__init__

    def without(self, method):
        init(self, method)
        if self._watched is not None:
            method._channel = self._watched._channel
            self._watched = None

    monkeypatch.setattr(DirectCall, "__init__", without)
    a, b = regions(does, Does())
    client = Blocking(a.address, backups=[b.address])
    try:
        outcome = client("infer", "m", {"x": X}).outcome
        assert outcome == {0.0: "primary", 20: "hedge"}[does.seconds] if does.code is CODES.OK else "failover"
        if does.seconds:
            assert a.seen[0].cancelled.wait(10)
        nothing_is_left(client)
    finally:
        client.close()


def resident_kilobytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.parametrize("kind", [Blocking, Asyncio])
def test_losers_leave_nothing_behind_in_grpc(regions, server, tmp_path, kind):
    """GRPC leaks about 1 KB for each asyncio call that is cancelled in its usual way.

    What each loser leaves behind makes every round grow; the allocator's arenas grow in some.
    """
    # Of its own process, so that this one's memory is the client's.
    slow = server(
        {"m": zoo.identity(tmp_path / "m.onnx")},
        fault__delay_percent=100,
        fault__delay_ms=20_000,
        server__drain_seconds=1,
    )
    quick = server({"m": zoo.identity(tmp_path / "m.onnx")})
    client = kind(slow.grpc, backups=[quick.grpc], hedge=Hedging(after=0.001, budget=0.05))
    try:
        client("infer", "m", {"x": X})
        budget = hedger(client).regions.budget
        hedger(client).regions.targets[0].breaker._open = lambda *_: None
        budget.burst = budget.tokens = 1e9
        at_once(client, 1000, plain)
        grown = []
        for _ in range(5):
            before = resident_kilobytes()
            results = at_once(client, 3000, plain)
            assert {result.outcome for result in results} == {"hedge"}
            grown.append(resident_kilobytes() - before)
            if grown[-1] < 1200:
                break
        assert grown[-1] < 1200, f"{grown} KB in rounds of 3,000 losers each"
        nothing_is_left(client)
    finally:
        client.close()


async def test_grpc_offers_what_cancels_without_a_leak(regions):
    (a,) = regions(Does(20))
    async with grpc.aio.insecure_channel(a.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"")
        assert callable(call._cancel)
        direct.cancel(call)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not asyncio.current_task().cancelling()
