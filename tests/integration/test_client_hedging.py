"""Both clients with backups, against real servers on real sockets that are slow, fail or garble."""

from __future__ import annotations

import json
import random
import time
from collections import Counter

import hedgerow
import numpy as np
import pytest
from client_backups import CODES, LATE, X, at_once, hedger, nothing_is_left, plain
from client_region import Does
from hedgerow import Hedging
from hedgerow.cli import main
from hedgerow_protos.breaker import State

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
