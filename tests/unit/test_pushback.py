"""What a refused caller is told, as gRPC's own clients read it."""

from __future__ import annotations

import math

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from hedgerow_protos.hedging import OWN_PUSHBACK, PUSHBACK, read_pushback
from hedgerow_server.rpc.pushback import DETAILS, trailing
from hypothesis import given
from hypothesis import strategies as st


def google_rpc() -> dict[str, type]:
    """google.rpc.Status and RetryInfo as their own files define them, with the real Any and Duration."""
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, duration_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="google_rpc.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=["google/protobuf/any.proto", "google/protobuf/duration.proto"],
    )
    field = descriptor_pb2.FieldDescriptorProto
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    status.field.add(name="message", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    status.field.add(
        name="details",
        number=3,
        type=field.TYPE_MESSAGE,
        type_name=".google.protobuf.Any",
        label=field.LABEL_REPEATED,
    )
    info = file.message_type.add(name="RetryInfo")
    info.field.add(
        name="retry_delay",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".google.protobuf.Duration",
        label=field.LABEL_OPTIONAL,
    )
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}"))
        for name in ("Status", "RetryInfo")
    }


@given(seconds=st.floats(0, 3600), message=st.text(max_size=50))
def test_the_details_are_a_google_rpc_status_with_the_same_delay(seconds: float, message: str) -> None:
    types = google_rpc()
    said = dict(trailing(8, message, seconds))
    status = types["Status"].FromString(said[DETAILS])
    assert (status.code, status.message) == (8, message)
    (detail,) = status.details
    assert detail.type_url == "type.googleapis.com/google.rpc.RetryInfo"
    delay = types["RetryInfo"].FromString(detail.value).retry_delay
    assert delay.ToMilliseconds() == int(said[PUSHBACK]) == int(said[OWN_PUSHBACK])
    assert 0 <= int(said[PUSHBACK]) / 1000 - seconds < 0.0011, "not earlier than asked"


def test_never_is_a_negative_pushback_and_nothing_else() -> None:
    said = dict(trailing(8, "no", math.inf))
    assert said == {PUSHBACK: "-1", OWN_PUSHBACK: "-1"}
    assert read_pushback(said[PUSHBACK]) == math.inf


@pytest.mark.parametrize("key", [PUSHBACK, OWN_PUSHBACK])
def test_the_client_reads_either_key(key: str) -> None:
    import grpc
    from hedgerow.errors import from_status

    error = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", {key: "40"}, "host:1")
    assert error.retry_after == 0.04
