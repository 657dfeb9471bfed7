"""grpc.health.v1 and reflection, asked by grpcio's stubs and by a client that knows nothing beforehand."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "inference.GRPCInferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def test_health_knows_the_server_and_each_model(channel, models):
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", *models):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_watching_health_tells_the_present_state_at_once(channel):
    """What grpc's client-side health checking and Envoy rely on."""
    stub = health_pb2_grpc.HealthStub(channel)
    for name, status in (("", SERVING), ("nobody", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)):
        updates = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert next(updates).status == status
        updates.cancel()


def test_a_client_without_our_protos_finds_its_way_by_reflection(channel):
    """As grpcurl does it: list services, read the descriptors, build the messages, call."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    method = service.methods_by_name["ModelInfer"]
    request = GetMessageClass(method.input_type)(model_name="no_batch")
    request.inputs.add(name="x", datatype="FP32", shape=[2, 3])
    request.raw_input_contents.append(np.zeros((2, 3), np.float32).tobytes())
    call = channel.unary_unary(
        f"/{SERVICE}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    reply = call(request)
    assert np.frombuffer(reply.raw_output_contents[0], np.float32).tolist() == [1.0] * 6


def test_every_method_that_reflection_shows_is_implemented(channel):
    """UNIMPLEMENTED is for methods that are not there."""
    service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(SERVICE)
    for method in service.methods:
        path = f"/{SERVICE}/{method.name}"
        if method.client_streaming:
            assert list(channel.stream_stream(path)(iter([]), timeout=30)) == []
            continue
        try:
            channel.unary_unary(path)(b"", timeout=30)
        except grpc.RpcError as error:
            assert error.code() != grpc.StatusCode.UNIMPLEMENTED, method.name  # noqa: PT017  some succeed


def test_reflection_gives_a_file_with_all_that_it_imports(channel):
    """A tool such as grpcurl asks by symbol and cannot go on if a file is missing."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    for symbol in (SERVICE, "grpc.health.v1.Health", "inference.ModelConfig"):
        (reply,) = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)])
        )
        found = reply.file_descriptor_response.file_descriptor_proto
        files = {file.name: file for file in map(FileDescriptorProto.FromString, found)}
        assert files, reply
        for file in files.values():
            assert set(file.dependency) <= files.keys()
