"""What is read from a call's metadata."""

from __future__ import annotations

import re

import pytest
from hedgerow_server.call import Metadata, read_trace
from hypothesis import given
from hypothesis import strategies as st

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_trace_goes_on_with_a_span_of_this_server() -> None:
    trace = read_trace([("traceparent", PARENT)])
    assert trace.trace_id == TRACE
    traceparent = str(dict(trace.trailing)["traceparent"])
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", traceparent)
    assert SPAN not in traceparent
    assert trace.request_id == TRACE


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-",
        f"01-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00_{TRACE}-{SPAN}-01",
        PARENT.encode(),
    ],
)
def test_a_malformed_traceparent_counts_as_absent(value: str | bytes) -> None:
    trace = read_trace([("traceparent", value)])
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)
    assert trace.trace_id != TRACE
    assert str(dict(trace.trailing)["traceparent"]).endswith("-00")


def test_calls_without_a_trace_get_traces_of_their_own() -> None:
    traces = [read_trace(()) for _ in range(1000)]
    assert len({trace.trace_id for trace in traces}) == 1000
    parents = [str(dict(trace.trailing)["traceparent"]) for trace in traces]
    assert all(re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", parent) for parent in parents)
    assert len({parent[36:52] for parent in parents}) == 1000


def test_the_callers_request_id_is_given_back() -> None:
    trace = read_trace([("x-request-id", "order 66"), ("traceparent", PARENT)])
    assert dict(trace.trailing)["x-request-id"] == "order 66"
    assert trace.trace_id == TRACE


@pytest.mark.parametrize(
    "value",
    ["", "x" * 129, "a\nb", "a\0b", b"bytes", "caf\u00e9", "\u540d\u524d", "\u200b", "\x7f", " padded ", " "],
    ids=repr,
)
def test_a_request_id_that_cannot_go_back_in_a_header_is_replaced(value: str | bytes) -> None:
    """A header's value is printable ASCII; another would fail the reply of a good request."""
    given_back = dict(read_trace([("x-request-id", value)]).trailing)["x-request-id"]
    assert isinstance(given_back, str)
    assert given_back
    assert given_back.isascii()
    assert given_back.isprintable()
    assert given_back == given_back.strip()


def test_who_calls_is_read_if_it_is_short() -> None:
    assert read_trace([("hedgerow-route-key", "user 7")]).caller == "user 7"
    assert read_trace([("hedgerow-route-key", "x" * 129)]).caller == ""
    assert read_trace([("hedgerow-route-key", b"x")]).caller == ""
    assert read_trace([("user", "7")]).caller == ""


keys = st.sampled_from(["traceparent", "x-request-id", "hedgerow-route-key", "other"])


@given(st.lists(st.tuples(keys, st.one_of(st.text(), st.binary())), max_size=5))
def test_any_metadata_gives_a_trace_that_can_be_sent_and_logged(metadata: Metadata) -> None:
    trace = read_trace(metadata)
    for _, value in trace.trailing:
        assert isinstance(value, str)
        assert value.isascii()
        assert value.isprintable()
    trace.caller.encode()


@pytest.mark.parametrize(
    ("metadata", "previous", "attempt"),
    [
        ([], 0, ""),
        ([("grpc-previous-rpc-attempts", "2")], 2, ""),
        ([("hedgerow-previous-attempts", "2")], 2, ""),
        ([("hedgerow-previous-attempts", "1"), ("grpc-previous-rpc-attempts", "3")], 3, ""),
        ([("hedgerow-attempt", "hedge")], 1, "hedge"),
        ([("hedgerow-attempt", "failover"), ("hedgerow-previous-attempts", "2")], 2, "failover"),
        ([("hedgerow-previous-attempts", "0")], 0, ""),
        ([("hedgerow-previous-attempts", "-1")], 0, ""),
        ([("hedgerow-previous-attempts", "many")], 1, ""),
        ([("hedgerow-previous-attempts", "9" * 5000)], 1, ""),
        ([("hedgerow-attempt", b"hedge")], 0, ""),
    ],
)
def test_an_attempt_of_another_region_is_known_by_any_of_its_headers(
    metadata: Metadata, previous: int, attempt: str
) -> None:
    """The name of gRPC's own reaches no Python server; who says which kind it is has made another before."""
    trace = read_trace(metadata)
    assert (trace.previous_attempts, trace.attempt) == (previous, attempt)
