"""Both clients with backups, against real servers on real sockets that are slow, away, or talk nonsense."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
import hedgerow
import numpy as np
import pytest
import zoo
from client_peer import Asyncio, Blocking
from client_region import Does, Region
from hedgerow import Hedging
from hedgerow.cli import main
from hedgerow.hedging import direct
from hedgerow.hedging.direct import DirectCall
from hedgerow_protos.breaker import State

CODES = grpc.StatusCode
X = np.arange(6, dtype=np.float32).reshape(2, 3)
#: For tests in which nobody should be hurried by a busy machine.
LATE = Hedging(after=5.0)


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


def hedger(client):
    return client.client._hedger


def nothing_is_left(client):
    """All lanes are free, and no request is under way; losers may take a moment."""
    until = time.monotonic() + 10
    while "0 calls" not in repr(client.client) and time.monotonic() < until:
        if isinstance(client, Asyncio):
            client.runner.run(asyncio.sleep(0.01))
        else:
            time.sleep(0.01)
    assert "0 calls" in repr(client.client)
    assert not hedger(client).calls
    if isinstance(client, Asyncio):
        client.runner.run(asyncio.sleep(0))
        assert len(asyncio.all_tasks(client.runner.get_loop())) == 0


def at_once(client, count, ask):
    """The results of so many calls, 64 under way together; `ask(n)` gives the arguments of `infer`."""
    if isinstance(client, Blocking):

        def one(number):
            args, kwargs = ask(number)
            try:
                return client.client.infer(*args, **kwargs)
            except hedgerow.HedgerowError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            return list(pool.map(one, range(count)))

    async def both():
        limit = asyncio.Semaphore(64)

        async def one(number):
            args, kwargs = ask(number)
            async with limit:
                try:
                    return await client.client.infer(*args, **kwargs)
                except hedgerow.HedgerowError as error:
                    return error

        return await asyncio.gather(*(one(number) for number in range(count)))

    return client.runner.run(both())


def plain(number):
    return ("m", {"x": X}), {}


# Which attempt answers.


def test_an_answer_in_time_is_the_primarys(regions, connect):
    a, b = regions(Does(), Does())
    client = connect(a, b, hedge=LATE)
    result = client("infer", "m", {"x": X})
    assert (result.outcome, result.target, result.region) == ("primary", a.address, "a")
    assert result["x"].tolist() == X.tolist()
    assert not b.seen
    assert "hedgerow-attempt" not in a.seen[0].metadata
    nothing_is_left(client)


def test_a_slow_primary_is_hedged_and_its_call_cancelled(regions, connect):
    a, b = regions(Does(20), Does())
    client = connect(a, b)
    result = client("infer", "m", {"x": X}, metadata={"x-mine": "1"}, route_key="me")
    assert (result.outcome, result.target, result.region) == ("hedge", b.address, "b")
    assert result["x"].tolist() == X.tolist()
    assert a.seen[0].cancelled.wait(10), "really"
    first, hedge = a.seen[0], b.seen[0]
    assert hedge.metadata["hedgerow-attempt"] == "hedge"
    assert hedge.metadata["hedgerow-previous-attempts"] == "1"
    assert first.metadata["traceparent"] == hedge.metadata["traceparent"]
    assert len(first.metadata["traceparent"]) == 55
    for one in (first, hedge):
        assert (one.metadata["x-mine"], one.metadata["hedgerow-route-key"]) == ("1", "me")
    assert first.request == hedge.request
    assert abs((first.at + first.remaining) - (hedge.at + hedge.remaining)) < 0.1, "one deadline"
    nothing_is_left(client)
    assert hedger(client).regions.budget.tokens < 9.5


def test_a_hedge_that_loses_is_cancelled(regions, connect):
    a, b = regions(Does(0.4), Does(20))
    client = connect(a, b)
    assert client("infer", "m", {"x": X}).outcome == "primary"
    assert b.seen[0].cancelled.wait(10)
    nothing_is_left(client)


def test_a_callers_trace_is_kept(regions, connect):
    a, b = regions(Does(20), Does())
    mine = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    connect(a, b)("infer", "m", {"x": X}, metadata={"traceparent": mine})
    assert {one.metadata["traceparent"] for one in (*a.seen, *b.seen)} == {mine}


@pytest.mark.parametrize("code", [CODES.UNAVAILABLE, CODES.INTERNAL, CODES.NOT_FOUND])
def test_a_failed_primary_is_replaced_at_once(regions, connect, code):
    a, b = regions(Does(code=code), Does())
    client = connect(a, b, hedge=LATE)
    result = client("infer", "m", {"x": X})
    assert (result.outcome, result.region) == ("failover", "b")
    assert "hedgerow-attempt" not in b.seen[0].metadata, "its rules may answer"
    assert b.seen[0].metadata["hedgerow-previous-attempts"] == "1"
    assert hedger(client).regions.budget.tokens == pytest.approx(10)
    nothing_is_left(client)


@pytest.mark.parametrize("code", [CODES.INVALID_ARGUMENT, CODES.UNAUTHENTICATED, CODES.PERMISSION_DENIED])
def test_what_the_caller_did_wrong_is_not_tried_elsewhere(regions, connect, code):
    a, b = regions(Does(code=code), Does())
    with pytest.raises(hedgerow.HedgerowError) as caught:
        connect(a, b)("infer", "m", {"x": X})
    assert caught.value.code is code
    assert not b.seen


def test_what_the_server_calls_its_answer_stands(regions, connect):
    a, b = regions(Does(code=CODES.UNAVAILABLE), Does())
    reply = pb_reply(outcome="fallback")
    b.does = Does(garbage=reply)
    assert connect(a, b)("infer", "m", {"x": X}).outcome == "fallback"


def pb_reply(model="m", version="7", outcome="", x=X):
    from hedgerow_protos import open_inference_pb2 as pb

    reply = pb.ModelInferResponse(model_name=model, model_version=version)
    reply.outputs.add(name="x", datatype="FP32", shape=x.shape)
    reply.raw_output_contents.append(x.tobytes())
    if outcome:
        reply.parameters["hedgerow_outcome"].string_param = outcome
    return reply.SerializeToString()


GARBAGE = {
    "no message": b"\xff\xff\xff",
    "nothing": b"",
    "another model": pb_reply(model="other"),
    "another version": pb_reply(version="9"),
    "torn": pb_reply()[:-5],
    "wrong size": pb_reply(x=X)[:-24] + pb_reply(x=X[:1])[-12:],
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_garbled_answer_is_none(regions, connect, garbage):
    """Whoever gives it: the other region's counts."""
    a, b = regions(Does(garbage=GARBAGE[garbage]), Does())
    result = connect(a, b, hedge=LATE)("infer", "m", {"x": X}, version=7)
    assert (result.outcome, result.region) == ("failover", "b")
    a, b = regions(Does(0.3), Does(garbage=GARBAGE[garbage]))
    assert connect(a, b)("infer", "m", {"x": X}, version=7).outcome == "primary"
    assert len(b.seen) == 1


def test_garbled_everywhere_is_an_invalid_reply(regions, connect):
    a, b = regions(Does(garbage=b"\xff"), Does(garbage=b"\xff"))
    with pytest.raises(hedgerow.InvalidReply) as caught:
        connect(a, b)("infer", "m", {"x": X})
    assert "also tried" in caught.value.__notes__[0]


# Backups and primaries that are no servers.


@contextlib.contextmanager
def talker(says):
    """A port that accepts, says something that is no HTTP/2 and then no more; None: says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        done = threading.Event()
        taken = []

        def work():
            while not done.is_set():
                with contextlib.suppress(OSError):
                    one, _ = server.accept()
                    taken.append(one)
                    if says is not None:
                        one.sendall(says)
                        one.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            done.set()
            thread.join()
            for one in taken:
                one.close()


TALK = {
    "http/1": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "noise": bytes(range(256)),
}


@pytest.mark.parametrize("says", TALK)
def test_a_primary_that_speaks_something_else_is_replaced(regions, connect, says):
    (b,) = regions(Does())
    with talker(TALK[says]) as address:
        result = connect(address, b, hedge=LATE)("infer", "m", {"x": X})
    assert (result.outcome, result.target) == ("failover", b.address)


@pytest.mark.parametrize("away", ["refuses", "resolves to nothing", *TALK, "black hole"])
def test_a_backup_that_is_none_leaves_the_primary_alone(regions, connect, away):
    """It costs nobody their answer; and it is told not to be ready, so that soon it costs no token either."""
    (a,) = regions(Does(0.15))
    with contextlib.ExitStack() as opened:
        address = "127.0.0.1:1" if away == "refuses" else "nowhere.invalid:8001"
        if away in TALK:
            address = opened.enter_context(talker(TALK[away]))
        elif away == "black hole":
            address = opened.enter_context(talker(None))
        client = connect(a, address)
        assert {client("infer", "m", {"x": X}).outcome for _ in range(20)} == {"primary"}
        target = hedger(client).regions.targets[1]
        until = time.monotonic() + 10
        while target.is_ready and time.monotonic() < until:
            client("infer", "m", {"x": X})
        assert not target.is_ready
        before = hedger(client).regions.budget.tokens
        client("infer", "m", {"x": X})
        assert hedger(client).regions.budget.tokens >= before, "no token for somebody who is away"


def test_everybody_away_is_unavailable_and_says_who(connect):
    client = connect("127.0.0.1:1", "127.0.0.1:2", hedge=None)
    with pytest.raises(hedgerow.Unavailable, match=r"127\.0\.0\.1:1:") as caught:
        client("infer", "m", {"x": X})
    assert any("also tried 127.0.0.1:2" in note for note in caught.value.__notes__)
    nothing_is_left(client)


def test_a_primary_that_accepts_and_says_nothing_is_left_within_the_deadlines(regions, connect):
    """A black hole: hedges while there are tokens, then the breaker."""
    (b,) = regions(Does())
    with talker(None) as address:
        client = connect(address, b, timeout=2.0)
        results = [client("infer", "m", {"x": X}) for _ in range(40)]
    assert {result.outcome for result in results} <= {"hedge", "failover"}
    assert results[-1].outcome == "failover"
    assert hedger(client).regions.targets[0].breaker.state is not State.CLOSED
    nothing_is_left(client)


def test_a_region_that_went_away_is_asked_again_when_it_is_back(regions, connect):
    (b,) = regions(Does())
    a = Region("a")
    client = connect(a, b)
    assert client("infer", "m", {"x": X}).outcome == "primary"
    a.stop()
    outcomes = Counter()
    for _ in range(40):
        outcomes[client("infer", "m", {"x": X}).outcome] += 1
        client("live", timeout=0.01)
        time.sleep(0.01)
    assert set(outcomes) <= {"failover", "hedge"}
    assert hedger(client).regions.targets[0].breaker.trips == 1
    back = Region("a", port=int(a.address.rpartition(":")[2]))
    try:
        until = time.monotonic() + 20
        breaker = hedger(client).regions.targets[0].breaker
        while breaker.state is not State.CLOSED and time.monotonic() < until:
            assert client("infer", "m", {"x": X}).outcome in ("primary", "failover")
            time.sleep(0.05)
        assert [client("infer", "m", {"x": X}).outcome for _ in range(5)] == ["primary"] * 5
        nothing_is_left(client)
    finally:
        back.stop()


# Pushback, budget, readiness.


def test_positive_pushback_is_honoured(regions, connect):
    a, b = regions(
        Does(0.12),
        Does(code=CODES.RESOURCE_EXHAUSTED, trailing=(("hedgerow-retry-pushback-ms", "1000"),)),
    )
    client = connect(a, b)
    for _ in range(5):
        assert client("infer", "m", {"x": X}).outcome == "primary"
    assert len(b.seen) == 1
    b.does = Does()
    time.sleep(1.0)
    assert client("infer", "m", {"x": X}).outcome == "hedge"


def test_negative_pushback_is_honoured(regions, connect):
    a, b = regions(Does(code=CODES.UNAVAILABLE, trailing=(("grpc-retry-pushback-ms", "-1"),)), Does())
    client = connect(a, b, hedge=LATE)
    with pytest.raises(hedgerow.Unavailable):
        client("infer", "m", {"x": X})
    assert not b.seen
    assert len(a.seen) == 1
    a.does = Does(code=CODES.UNAVAILABLE)
    assert client("infer", "m", {"x": X}).outcome == "failover"


def test_the_budget_holds_at_the_backup(regions, connect):
    """A primary that is always slower than the delay: 2 % and the first ten, counted where they arrive."""
    a, b = regions(Does(0.05), Does())
    client = connect(a, b)
    results = at_once(client, 600, plain)
    assert {result.outcome for result in results} <= {"primary", "hedge"}
    assert 10 <= len(b.seen) <= 0.02 * 600 + 10
    nothing_is_left(client)


def test_backups_are_asked_whether_they_are_ready(regions, connect):
    a, b = regions(Does(0.12), Does())
    b.ready = False
    client = connect(a, b, channels=2)
    client("infer", "m", {"x": X})
    client("infer", "m", {"x": X})
    assert b.calls["ServerReady"] >= 2, "once on each connection"
    assert not hedger(client).regions.targets[1].is_ready
    assert len(b.seen) <= 1
    b.ready = True
    until = time.monotonic() + 10
    while not hedger(client).regions.targets[1].is_ready and time.monotonic() < until:
        client("infer", "m", {"x": X})
    assert client("infer", "m", {"x": X}).outcome == "hedge"


# What a client asks on the way.


def test_lists_are_converted_though_the_primary_is_away(regions, connect):
    (b,) = regions(Does())
    client = connect("127.0.0.1:1", b, hedge=None)
    result = client("infer", "m", {"x": [[1, 2, 3]]})
    assert (result["x"].dtype, result.outcome) == (np.float32, "failover")
    assert b.calls["ModelMetadata"] == 1


def test_what_is_asked_of_a_server_itself_is_asked_of_the_primary(regions, connect):
    (b,) = regions(Does())
    client = connect("127.0.0.1:1", b, hedge=None)
    assert client("live") is False
    assert client("ready") is False
    assert not b.calls["ServerLive"]


def test_without_backups_nothing_changes(regions, connect):
    (a,) = regions(Does())
    client = connect(a)
    result = client("infer", "m", {"x": X})
    assert (result.outcome, result.target) == ("primary", "")
    assert "traceparent" not in a.seen[0].metadata
    assert hedger(client) is None


# The command.


def test_the_command_asks_a_backup(regions, capsys):
    a, b = regions(Does(code=CODES.UNAVAILABLE), Does())
    asked = ["infer", "m", "--input", "x=[[1, 2, 3]]", "--server", a.address, "--backup", b.address]
    assert main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["outcome"], document["region"], document["target"]) == ("failover", "b", b.address)
    assert main(asked) == 0
    assert f"failover, region b, {b.address}" in capsys.readouterr().out


def test_the_command_tells_of_everybody_who_did_not_answer(capsys):
    asked = ["infer", "m", "--input", "x=[[1, 2, 3]]", "--server", "127.0.0.1:1", "--backup", "127.0.0.1:2"]
    assert main(asked) == 4
    said = capsys.readouterr().err
    assert "127.0.0.1:1: Connection refused" in said
    assert "also tried 127.0.0.1:2 (failover): 127.0.0.1:2: Connection refused" in said


# Ends.


async def test_cancelling_a_task_cancels_all_attempts(regions):
    a, b = regions(Does(20), Does(20))
    async with hedgerow.AsyncClient(a.address, backups=[b.address]) as client:
        waiting = asyncio.create_task(client.infer("m", {"x": X}))
        assert await asyncio.to_thread(b.asked.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(a.seen[0].cancelled.wait, 10)
        assert await asyncio.to_thread(b.seen[0].cancelled.wait, 10)
        assert "0 calls" in repr(client)
        assert len(asyncio.all_tasks()) == 1


async def test_a_cancelled_task_stays_cancelled_when_its_hedge_wins_at_that_moment(regions):
    a, b = regions(Does(20), Does(0.03))
    async with hedgerow.AsyncClient(a.address, backups=[b.address], hedge=Hedging(0.01)) as client:
        ended = Counter()
        for number in range(60):
            waiting = asyncio.create_task(client.infer("m", {"x": X}))
            await asyncio.sleep(0.03 + number / 2000)
            waiting.cancel()
            try:
                await waiting
                ended["answered"] += 1
            except asyncio.CancelledError:
                assert waiting.cancelled()
                ended["cancelled"] += 1
        assert ended["cancelled"]
        assert "0 calls" in repr(client)


async def test_a_callers_timeout_ends_all_attempts(regions):
    a, b = regions(Does(20), Does(20))
    async with hedgerow.AsyncClient(a.address, backups=[b.address]) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.infer("m", {"x": X})
        assert await asyncio.to_thread(a.seen[0].cancelled.wait, 10)
        assert "0 calls" in repr(client)


def test_the_deadline_ends_all_attempts(regions, connect):
    a, b = regions(Does(20), Does(20))
    client = connect(a, b)
    began = time.monotonic()
    with pytest.raises(hedgerow.DeadlineExceeded):
        client("infer", "m", {"x": X}, timeout=0.4)
    assert time.monotonic() - began < 5
    assert a.seen[0].cancelled.wait(10)
    assert b.seen[0].cancelled.wait(10)
    nothing_is_left(client)


@pytest.mark.parametrize("when", ["first attempt", "hedged", "repeating"])
def test_closing_ends_what_is_under_way(regions, when):
    a, b = regions(Does(20), Does(20))
    hedge = LATE if when == "first attempt" else Hedging()
    if when == "repeating":
        a.does = b.does = Does(code=CODES.UNAVAILABLE, trailing=(("grpc-retry-pushback-ms", "8000"),))
    client = hedgerow.Client(a.address, backups=[b.address], hedge=hedge, timeout=20)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.infer, "m", {"x": X}) for _ in range(8)]
        until = time.monotonic() + 10
        expected = [8, 0] if when == "first attempt" else [8, 1]
        while [len(a.seen) >= expected[0], len(b.seen) >= expected[1]] != [
            True,
            True,
        ] and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        client.close()
        began = time.monotonic()
        for one in waiting:
            with pytest.raises(hedgerow.Cancelled):
                one.result(10)
        assert time.monotonic() - began < 5
    with pytest.raises(hedgerow.FailedPrecondition):
        client.infer("m", {"x": X})


async def test_closing_ends_what_is_under_way_on_asyncio(regions):
    a, b = regions(Does(20), Does(20))
    client = hedgerow.AsyncClient(a.address, backups=[b.address])
    waiting = [asyncio.create_task(client.infer("m", {"x": X})) for _ in range(8)]
    assert await asyncio.to_thread(b.asked.wait, 10)
    await client.close()
    for one in waiting:
        with pytest.raises(hedgerow.Cancelled):
            await one
    assert len(asyncio.all_tasks()) == 1
    with pytest.raises(hedgerow.FailedPrecondition):
        await client.infer("m", {"x": X})


def test_an_interrupt_ends_all_attempts(regions, monkeypatch):
    """Ctrl-C while the caller waits."""
    import _thread

    a, b = regions(Does(20), Does(20))
    with hedgerow.Client(a.address, backups=[b.address]) as client:
        threading.Timer(0.3, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            client.infer("m", {"x": X}, timeout=15)
        assert a.seen[0].cancelled.wait(10)
        assert b.seen[0].cancelled.wait(10)
        assert not client._hedger.calls


def test_the_timers_thread_ends_when_there_is_nothing_to_do(regions, monkeypatch):
    from hedgerow.hedging.timer import Timer

    monkeypatch.setattr(Timer, "IDLE", 0.1)
    (a,) = regions(Does())

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "hedgerow-timer"]

    with hedgerow.Client(a.address, backups=["127.0.0.1:1"]) as client:
        for _ in range(3):
            client.infer("m", {"x": X})
            assert len(threads()) <= 1
            until = time.monotonic() + 10
            while threads() and time.monotonic() < until:
                time.sleep(0.02)
            assert not threads()


# What the fast way rests on.


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


# Anything.


@pytest.mark.parametrize("seed", range(4))
def test_random_schedules_have_one_outcome_each(regions, connect, seed):
    """1,000 requests a seed and client: each answers once and right, the budget holds, nothing is left."""
    chance = random.Random(seed)

    def does(rate):
        def one(number):
            code = chance.choices(
                [CODES.OK, CODES.UNAVAILABLE, CODES.INTERNAL, CODES.RESOURCE_EXHAUSTED], [100, 4, 2, 1]
            )[0]
            garbage = b"\xff" if chance.random() < 0.01 else None
            return Does(min(chance.expovariate(rate), 0.2) * (chance.random() < 0.7), code, garbage=garbage)

        return one

    a, b, c = regions(does(60), does(60), does(200))
    client = connect(a, b, c, hedge=Hedging(after=0.01, adaptive=seed % 2 == 1, budget=0.05), timeout=5.0)
    inputs = [np.full((1, 3), number, np.float32) for number in range(1000)]
    results = at_once(
        client, 1000, lambda number: (("m", {"x": inputs[number]}), {"request_id": str(number)})
    )
    outcomes = Counter()
    for number, result in enumerate(results):
        if isinstance(result, hedgerow.HedgerowError):
            outcomes[result.code.name] += 1
        else:
            outcomes[result.outcome] += 1
            assert result.request_id == str(number)
            assert result["x"].tolist() == inputs[number].tolist()
    assert sum(outcomes.values()) == 1000
    assert outcomes["primary"] + outcomes["hedge"] + outcomes["failover"] > 950, outcomes
    hedges = sum(one.metadata.get("hedgerow-attempt") == "hedge" for region in (b, c) for one in region.seen)
    probes = sum(one.metadata.get("hedgerow-attempt") == "hedge" for one in a.seen)
    assert hedges <= 0.05 * 1000 + 10
    assert probes <= 20
    assert hedger(client).regions.budget.tokens <= 10
    nothing_is_left(client)
    for target in hedger(client).regions.targets:
        assert target.breaker._probe is None or target.breaker.state is State.HALF_OPEN


async def test_grpc_offers_what_cancels_without_a_leak(regions):
    (a,) = regions(Does(20))
    async with grpc.aio.insecure_channel(a.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"")
        assert callable(call._cancel)
        direct.cancel(call)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not asyncio.current_task().cancelling()
