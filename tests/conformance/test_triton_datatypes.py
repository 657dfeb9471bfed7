"""Every datatype there and back, raw as tritonclient sends it and typed as its stubs can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import every_datatype
import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from every_datatype import assert_same
from tritonclient.grpc import service_pb2, service_pb2_grpc

#: The field of InferTensorContents that the protocol names for each datatype; FP16 has none.
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
Stub = service_pb2_grpc.GRPCInferenceServiceStub


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield Stub(channel)


def triton_inputs(tensors: dict[str, np.ndarray]) -> list[triton.InferInput]:
    inputs = []
    for name, values in tensors.items():
        tensor = triton.InferInput(f"in_{name}", list(values.shape), name)
        # It takes text as str or as bytes, alike.
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def test_extreme_values_of_every_datatype_come_back_bit_by_bit(server):
    sent = every_datatype.extremes()
    with triton.InferenceServerClient(server.grpc) as client:
        result = client.infer("every_datatype", triton_inputs(sent))
    for name, values in sent.items():
        assert_same(result.as_numpy(f"out_{name}"), values)


async def test_every_datatype_survives_a_batch(server):
    """50 callers at once, of one to three rows: rows are joined and taken apart again.

    Those of grpcio may come one by one, all of them, so they ask until some have shared a run.
    """
    sent = [every_datatype.random(seed, rows=1 + seed % 3) for seed in range(50)]
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        for _ in range(30):
            before = (await client.get_inference_statistics("every_datatype")).model_stats[0]
            results = await asyncio.gather(
                *(client.infer("every_datatype", triton_inputs(tensors)) for tensors in sent)
            )
            after = (await client.get_inference_statistics("every_datatype")).model_stats[0]
            for tensors, result in zip(sent, results, strict=True):
                for name, values in tensors.items():
                    assert_same(result.as_numpy(f"out_{name}"), values)
            if after.execution_count - before.execution_count < len(sent):
                return
    pytest.fail("nothing was batched")


def typed(model: str, sent: dict[str, np.ndarray]) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, values in sent.items():
        tensor = request.inputs.add(name=f"in_{name}", datatype=name, shape=values.shape)
        flat: list[Any] = values.ravel().tolist()
        if name == "BYTES":
            flat = [text.encode() for text in flat]
        if name in CONTENTS:
            getattr(tensor.contents, CONTENTS[name]).extend(flat)
    return request


def test_typed_contents_of_every_datatype_come_back_raw(stub):
    """All but FP16, which has no typed form. Triton's C++ client reads raw outputs only."""
    sent = every_datatype.extremes()
    del sent["FP16"]
    reply = stub.ModelInfer(typed("every_datatype_but_fp16", sent))
    assert len(reply.raw_output_contents) == len(sent)
    assert not any(output.HasField("contents") for output in reply.outputs)
    for name, values in sent.items():
        assert_same(triton.InferResult(reply).as_numpy(f"out_{name}"), values)


def test_fp16_has_no_typed_contents_and_the_error_says_so(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(typed("every_datatype", every_datatype.extremes()))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "FP16" in caught.value.details()


def _raw_and_typed(request: service_pb2.ModelInferRequest) -> None:
    request.raw_input_contents.append(bytes(80))


def _wrong_field(request: service_pb2.ModelInferRequest) -> None:
    request.inputs[0].contents.ClearField("fp32_contents")
    request.inputs[0].contents.fp64_contents.extend([0.0] * 12)


def _too_few(request: service_pb2.ModelInferRequest) -> None:
    del request.inputs[0].contents.fp32_contents[0]


def _negative(request: service_pb2.ModelInferRequest) -> None:
    request.inputs[0].shape[0] = -1


def _overflow(request: service_pb2.ModelInferRequest) -> None:
    request.inputs[0].shape[0] = 2**62


def _twice(request: service_pb2.ModelInferRequest) -> None:
    request.inputs.append(request.inputs[0])


def _no_input(request: service_pb2.ModelInferRequest) -> None:
    del request.inputs[:]


def _other_datatype(request: service_pb2.ModelInferRequest) -> None:
    request.inputs[0].datatype = "INT32"


@pytest.mark.parametrize(
    "spoil",
    [_raw_and_typed, _wrong_field, _too_few, _negative, _overflow, _twice, _no_input, _other_datatype],
)
def test_what_does_not_fit_is_an_invalid_argument(stub, spoil: Callable[[Any], None]):
    """The same request unspoilt is answered: it is the spoiling that is refused."""
    request = service_pb2.ModelInferRequest(model_name="arrival_delay_v1")
    tensor = request.inputs.add(name="features", datatype="FP32", shape=[1, 12])
    tensor.contents.fp32_contents.extend([1.0] * 12)
    assert len(stub.ModelInfer(request).raw_output_contents[0]) == 4
    spoil(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details()


@pytest.mark.parametrize(("model", "version"), [("nobody", ""), ("no_batch", "7"), ("no_batch", "x")])
def test_an_unknown_model_or_version_is_not_found(stub, model, version):
    for method, request in (
        (stub.ModelInfer, service_pb2.ModelInferRequest(model_name=model, model_version=version)),
        (stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=model, version=version)),
        (stub.ModelConfig, service_pb2.ModelConfigRequest(name=model, version=version)),
        (stub.ModelStatistics, service_pb2.ModelStatisticsRequest(name=model, version=version)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(request)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND, method
    assert not stub.ModelReady(service_pb2.ModelReadyRequest(name=model, version=version)).ready


def test_a_model_without_a_batch_dimension_is_served_as_it_is(server):
    """max_batch_size 0 in Triton's words; and a scalar output keeps its empty shape."""
    with triton.InferenceServerClient(server.grpc) as client:
        assert client.get_model_config("no_batch").config.max_batch_size == 0
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        tensor = triton.InferInput("x", [2, 3], "FP32")
        tensor.set_data_from_numpy(values)
        assert client.infer("no_batch", [tensor]).as_numpy("y").tolist() == (values + 1).tolist()
        tensor = triton.InferInput("x", [3, 2], "FP32")
        tensor.set_data_from_numpy(values.reshape(3, 2))
        answer = client.infer("total", [tensor]).as_numpy("total")
        assert answer.shape == ()
        assert answer == 15


def test_a_scalar_may_come_as_a_scalar_or_as_one_element(server):
    """Triton has no scalars: its clients send one element, onnxruntime's users an empty shape."""
    with triton.InferenceServerClient(server.grpc) as client:
        rows = triton.InferInput("x", [1, 2], "FP32")
        rows.set_data_from_numpy(np.array([[1.0, 2.0]], np.float32))
        for shape in ((), (1,)):
            scale = triton.InferInput("scale", list(shape), "FP32")
            scale.set_data_from_numpy(np.full(shape, 3, np.float32))
            assert client.infer("scalar", [rows, scale]).as_numpy("y").tolist() == [[3.0, 6.0]]
