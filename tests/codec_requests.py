"""Requests with typed contents, and what becomes of a request on its own: its reply or its refusal."""

from __future__ import annotations

import numpy as np
import pytest
from fakes_engine import model, request
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from hedgerow_server.call import Call
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.work import assemble
from hedgerow_server.errors import InvalidTensor
from hedgerow_server.rpc.codec import TensorCodec
from hedgerow_server.rpc.replies import Encoded

#: The typed field of each datatype; FP16 has none.
FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def typed(array: np.ndarray, datatype: str, name: str = "x") -> ModelInferRequest:
    """A request with typed contents."""
    made = ModelInferRequest()
    tensor = made.inputs.add(name=name, datatype=datatype, shape=array.shape)
    values = array.ravel().tolist()
    if datatype == "BYTES":
        values = [value.encode() for value in values]
    getattr(tensor.contents, FIELDS[datatype]).extend(values)
    return made


def several() -> tuple[TensorCodec, ModelInferRequest]:
    """The codec of the zoo's model `several`, and a request that it reads."""
    return TensorCodec(model("several")), request({"a": [[1, 2]], "b": [[3, 4]]})


def run_alone(of: Model, codec: TensorCodec, made: ModelInferRequest) -> ModelInferResponse:
    """The reply to one request on its own, through the real session."""
    read = codec.read(made)
    work = Call(b"", (), None, None, 0, 0)  # type: ignore[arg-type]  no sink: nothing is sent
    work.rows, work.parts, work.shapes, work.outputs = read.rows, read.parts, read.shapes, read.outputs
    names = of.output_names if read.outputs is None else [of.output_names[i] for i in read.outputs]
    outputs = of.run(names, assemble(of.signature, [work], work.rows), None)
    return ModelInferResponse.FromString(
        codec.writer.write(made.id, Encoded(outputs, read.outputs, alone=True), 0, read.rows)
    )


def refused(codec: TensorCodec, made: ModelInferRequest, *words: object) -> str:
    """The message with which a request is refused; fails the test if a word is not in it."""
    with pytest.raises(InvalidTensor) as caught:
        codec.read(made)
    message = str(caught.value)
    for word in words:
        assert str(word) in message
    return message
