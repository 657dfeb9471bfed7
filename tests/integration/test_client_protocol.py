"""Both clients against a peer that misbehaves on demand; the peer is a real grpc server on a real socket.

What a good server answers is tested against hedgerow-server itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time

import grpc
import hedgerow
import numpy as np
import pytest
from client_peer import Asyncio, Blocking, Peer
from hedgerow.infer_request import InferRequest
from hedgerow_protos.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def peer():
    return Peer()


@pytest.fixture
def address(peer):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    add_GRPCInferenceServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    peer.cancelled.set()
    server.stop(0).wait()


@pytest.fixture(params=[Blocking, Asyncio])
def connect(request, address):
    with contextlib.ExitStack() as opened:

        def make(target=address, **kwargs):
            client = request.param(target, **kwargs)
            opened.callback(client.close)
            return client

        yield make


def test_an_answer_carries_arrays_and_what_the_server_said(connect):
    result = connect()("infer", "hedged", {"x": X}, request_id="mine")
    assert result["x"].tolist() == X.tolist()
    assert (result.model, result.model_version, result.request_id) == ("hedged", "7", "mine")
    assert (result.outcome, result.features, result.variant, result.region) == (
        "hedge",
        "stale",
        "economy",
        "b",
    )
    assert result.parameters["count"] == 3
    assert result.traceparent == "00-aa-bb-01"
    assert list(result) == ["x"]
    assert len(result) == 1
    with pytest.raises(KeyError, match="the reply has 'x'"):
        result["y"]


def test_a_plain_answer_says_primary_and_bears_the_servers_request_id(connect):
    result = connect()("infer", "echo", {"x": X})
    assert (result.outcome, result.features, result.variant, result.region) == ("primary", None, None, None)
    assert result.request_id == "r-1"


def test_what_the_caller_asks_reaches_the_wire(connect, peer):
    client = connect(metadata={"x-api-key": "k"})
    client(
        "infer",
        "echo",
        {"x": X, "s": np.array(["a", b"b"], dtype=object)},
        outputs=["x"],
        version=3,
        route_key="user-1",
        priority=1,
        parameters={"b": True, "i": -2, "f": 0.5, "s": "t"},
        metadata={"traceparent": "00-11-22-01"},
    )
    request = peer.requests[0]
    assert (request.model_version, [one.name for one in request.outputs]) == ("3", ["x"])
    assert [tensor.datatype for tensor in request.inputs] == ["FP32", "BYTES"]
    assert not any(tensor.HasField("contents") for tensor in request.inputs)
    assert request.parameters["priority"].uint64_param == 1
    assert request.parameters["b"].bool_param is True
    assert request.parameters["i"].int64_param == -2
    assert request.parameters["f"].double_param == 0.5
    assert request.parameters["s"].string_param == "t"
    expected = {"x-api-key": "k", "hedgerow-route-key": "user-1", "traceparent": "00-11-22-01"}
    assert expected.items() <= peer.metadata[0].items()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", hedgerow.InvalidRequest),
        ("OUT_OF_RANGE", hedgerow.InvalidRequest),
        ("NOT_FOUND", hedgerow.NotFound),
        ("UNAUTHENTICATED", hedgerow.Unauthenticated),
        ("PERMISSION_DENIED", hedgerow.PermissionDenied),
        ("FAILED_PRECONDITION", hedgerow.FailedPrecondition),
        ("RESOURCE_EXHAUSTED", hedgerow.Overloaded),
        ("DEADLINE_EXCEEDED", hedgerow.DeadlineExceeded),
        ("UNAVAILABLE", hedgerow.Unavailable),
        ("CANCELLED", hedgerow.Cancelled),
        ("UNIMPLEMENTED", hedgerow.Unimplemented),
        ("INTERNAL", hedgerow.ServerFault),
        ("DATA_LOSS", hedgerow.ServerFault),
    ],
)
def test_every_status_has_its_error(connect, code, kind):
    with pytest.raises(hedgerow.HedgerowError) as caught:
        connect(retries=0)("infer", f"status:{code}", {"x": X})
    assert type(caught.value) is kind
    assert caught.value.code is grpc.StatusCode[code]
    assert caught.value.request_id == "r-1"
    assert "because" in caught.value.details
    assert caught.value.retry_after == (0.25 if code == "RESOURCE_EXHAUSTED" else None)
    assert not isinstance(caught.value, grpc.RpcError)


def test_a_servers_exception_is_a_server_fault(connect):
    with pytest.raises(hedgerow.ServerFault):
        connect()("infer", "raises", {"x": X})


@pytest.mark.parametrize("model", ["truncated", "raw_missing", "twice"])
def test_a_garbled_reply_is_an_invalid_reply(connect, model):
    with pytest.raises(hedgerow.InvalidReply):
        connect()("infer", model, {"x": X})


def test_typed_contents_are_read_too(connect):
    assert connect()("infer", "typed", {"x": X})["y"].tolist() == [1, 2]


def test_the_deadline_ends_the_call_on_both_sides(connect, peer):
    with pytest.raises(hedgerow.DeadlineExceeded, match=r"127\.0\.0\.1"):
        connect()("infer", "stuck", {"x": X}, timeout=0.2)
    assert peer.cancelled.wait(10)


def test_a_server_that_is_not_there_is_unavailable(connect):
    with pytest.raises(hedgerow.Unavailable, match=r"127\.0\.0\.1:1:"):
        connect("127.0.0.1:1")("infer", "echo", {"x": X})
    assert connect("127.0.0.1:1")("live") is False
    assert connect()("live") is True
    assert connect()("model_ready", "nothing") is False


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(connect, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert connect()("infer", "echo", {"x": X}).model_version == "7"


def test_a_draining_server_is_tried_again(connect, peer):
    assert connect()("infer", "flaky", {"x": X}).model_version == "7"
    assert len(peer.requests) == 2


def test_retries_can_be_turned_off(connect, peer):
    with pytest.raises(hedgerow.Unavailable, match="draining"):
        connect(retries=0)("infer", "flaky", {"x": X})
    assert len(peer.requests) == 1


def test_calls_spread_over_several_connections(connect, peer):
    """Without a subchannel pool of its own, every channel would share one connection."""
    client = connect(channels=3)
    for _ in range(6):
        client("infer", "echo", {"x": X})
    assert len(peer.connections) == 3


def test_a_message_over_the_limit_is_overloaded(connect):
    with pytest.raises(hedgerow.Overloaded, match="larger than max"):
        connect(max_message_bytes=10_000)("infer", "echo", {"x": np.zeros(10_000)})


def test_arrays_cost_no_metadata_call(connect, peer):
    connect()("infer", "echo", {"x": X})
    assert peer.calls == ["ModelInfer"]


def test_lists_take_the_models_datatype_which_is_asked_once(connect, peer):
    client = connect()
    for _ in range(3):
        assert client("infer", "picky", {"x": [[1, 2, 3]]})["x"].dtype == np.float32
    assert peer.calls == ["ModelMetadata", "ModelInfer", "ModelInfer", "ModelInfer"]


def test_a_model_that_changed_its_datatype_is_asked_again(connect, peer):
    client = connect()
    client("infer", "picky", {"x": [[1, 2, 3]]})
    peer.datatype = "INT64"
    assert client("infer", "picky", {"x": [[1, 2, 3]]})["x"].dtype == np.int64
    peer.datatype = "BYTES"
    with pytest.raises(hedgerow.InvalidRequest, match="the model takes BYTES"):
        client("infer", "picky", {"x": [[1, 2, 3]]})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"metadata": {"Upper": "x"}},
        {"metadata": {"grpc-internal": "x"}},
        {"metadata": {"x": "new\nline"}},
        {"route_key": "é"},
        {"priority": -1},
        {"parameters": {"big": 2**70}},
    ],
)
def test_what_cannot_be_sent_is_refused_here(connect, peer, kwargs):
    with pytest.raises(hedgerow.InvalidRequest):
        connect()("infer", "echo", {"x": X}, **kwargs)
    assert not peer.calls


@pytest.mark.parametrize(
    "kwargs", [{"timeout": 0}, {"channels": 0}, {"max_message_bytes": -1}, {"retries": -1}]
)
def test_a_setting_out_of_range_is_refused(kwargs):
    for kind in (hedgerow.Client, hedgerow.AsyncClient):
        with pytest.raises(hedgerow.InvalidRequest, match=next(iter(kwargs))):
            kind("127.0.0.1:1", **kwargs)


def test_a_closed_client_says_so(address):
    client = hedgerow.Client(address)
    with client:
        client.infer("echo", {"x": X})
    client.close()
    with pytest.raises(hedgerow.FailedPrecondition, match="closed"):
        client.infer("echo", {"x": X})


def test_closing_ends_the_calls_under_way(address, peer):
    client = hedgerow.Client(address)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.infer, "stuck", {"x": X})
        assert peer.arrived.wait(10)
        client.close()
        with pytest.raises(hedgerow.Cancelled):
            waiting.result(10)
    assert peer.cancelled.wait(10)


async def test_closing_ends_the_calls_under_way_on_asyncio(address, peer):
    """The waiting task is not cancelled: it gets an error it can handle."""
    client = hedgerow.AsyncClient(address)
    waiting = asyncio.create_task(client.infer("stuck", {"x": X}))
    assert await asyncio.to_thread(peer.arrived.wait, 10)
    await client.close()
    with pytest.raises(hedgerow.Cancelled):
        await waiting
    with pytest.raises(hedgerow.FailedPrecondition, match="closed"):
        await client.infer("echo", {"x": X})


async def test_cancelling_a_task_cancels_the_call_on_the_server(address, peer):
    async with hedgerow.AsyncClient(address) as client:
        waiting = asyncio.create_task(client.infer("stuck", {"x": X}))
        assert await asyncio.to_thread(peer.arrived.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(peer.cancelled.wait, 10)
        assert "0 calls" in repr(client)


def test_an_asyncio_client_on_another_loop_says_so(address):
    client = hedgerow.AsyncClient(address)
    with asyncio.Runner() as first:
        first.run(client.infer("echo", {"x": X}))
        with (
            asyncio.Runner() as second,
            pytest.raises(hedgerow.FailedPrecondition, match="another event loop"),
        ):
            second.run(client.infer("echo", {"x": X}))
        first.run(client.close())


def test_threads_share_a_client(address):
    with hedgerow.Client(address) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [np.full((1, 3), number, np.float32) for number in range(200)]
        answers = pool.map(lambda array: client.infer("echo", {"x": array})["x"], asked)
        assert [answer.tolist() for answer in answers] == [array.tolist() for array in asked]
        assert "0 calls" in repr(client)


def requests(*models):
    return [InferRequest(model, {"x": X}, request_id=str(at)) for at, model in enumerate(models)]


def test_a_stream_answers_each_request(connect):
    replies = connect().stream(requests("echo", "hedged", "echo"))
    assert [reply.request_id for reply in replies] == ["0", "1", "2"]
    assert all(reply["x"].tolist() == X.tolist() for reply in replies)


def test_a_stream_goes_on_after_a_failed_request_if_asked_to(connect):
    replies = connect().stream(requests("echo", "fails", "echo"), return_errors=True)
    assert [type(reply).__name__ for reply in replies] == ["InferResult", "HedgerowError", "InferResult"]
    assert replies[1].request_id == "1"
    assert replies[1].details == "this one is wrong"


def test_a_stream_raises_a_failed_request_otherwise(connect):
    with pytest.raises(hedgerow.HedgerowError, match="this one is wrong"):
        connect().stream(requests("echo", "fails", "echo"))


def test_a_stream_converts_lists_as_infer_does(connect):
    replies = connect().stream([InferRequest("picky", {"x": [[1, 2, 3]]})])
    assert replies[0]["x"].dtype == np.float32


def test_an_error_in_the_callers_own_requests_comes_back_as_it_is(connect):
    def broken():
        yield from requests("echo")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        connect().stream(broken())


def test_a_stream_has_a_deadline_if_given_one(connect):
    def slow():
        yield from requests("echo")
        time.sleep(1)

    with pytest.raises(hedgerow.DeadlineExceeded):
        connect().stream(slow(), timeout=0.3)


async def test_leaving_a_stream_early_ends_the_call(address, peer):
    async def endless():
        while True:
            for request in requests("echo"):
                yield request
            await asyncio.sleep(0)

    async with hedgerow.AsyncClient(address) as client:
        async with contextlib.aclosing(client.stream(endless())) as replies:
            async for _ in replies:
                break
        assert "0 calls" in repr(client)
        assert (await client.infer("echo", {"x": X})).model_version == "7"
