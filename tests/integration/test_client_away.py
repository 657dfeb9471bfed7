"""Both clients when a primary or a backup is away, is silent, or is no server of the kind."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter

import hedgerow
import pytest
from client_backups import LATE, X, hedger, nothing_is_left
from client_region import Does, Region
from hedgerow_protos.breaker import State


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
