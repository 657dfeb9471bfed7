"""Any request at all, from nearly right to a flood of nothing, is run or refused and never a defect."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from codec_requests import refused, run_alone, several
from fakes_engine import model, request
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.errors import InvalidTensor, Unimplemented
from hedgerow_server.rpc.codec import TensorCodec
from hypothesis import given, settings
from hypothesis import strategies as st

requests = st.builds(
    ModelInferRequest,
    model_name=st.text(max_size=3),
    inputs=st.lists(
        st.builds(
            ModelInferRequest.InferInputTensor,
            name=st.sampled_from(["a", "b", "x", "", "scale"]),
            datatype=st.sampled_from(["FP32", "FP32", "INT64", "BYTES", "FP16", ""]),
            shape=st.lists(st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1)), max_size=4),
        ),
        max_size=3,
    ),
    outputs=st.lists(
        st.builds(ModelInferRequest.InferRequestedOutputTensor, name=st.sampled_from(["sum", "y", ""])),
        max_size=2,
    ),
    raw_input_contents=st.lists(st.binary(max_size=33), max_size=3),
)


VALID = {
    "several": request({"a": [[1, 2]], "b": [[3, 4]]}),
    "sequence": request({"x": np.ones((1, 2, 4), np.float32)}),
    "scalar": request({"x": [[1, 2]], "scale": np.array(2, np.float32)}),
    "total": request({"x": [[1, 2]]}),
    "no_batch": request({"x": np.ones((2, 3), np.float32)}),
}


@st.composite
def nearly_right(draw: st.DrawFn, kind: str) -> ModelInferRequest:
    """A good request in which a few things were changed, as by a client with a mistake in it."""
    made = ModelInferRequest()
    made.CopyFrom(VALID[kind])
    for _ in range(draw(st.integers(0, 3))):
        tensor = draw(st.sampled_from(list(made.inputs)))
        change = draw(st.sampled_from(["size", "size and bytes", "bytes", "rank", "name", "typed", "output"]))
        if change.startswith("size") and tensor.shape:
            tensor.shape[draw(st.integers(0, len(tensor.shape) - 1))] = draw(st.integers(-1, 6))
        if change.endswith("bytes"):
            product = max(0, int(np.prod(tensor.shape)))
            at = list(made.inputs).index(tensor)
            made.raw_input_contents[at] = bytes(draw(st.sampled_from([product * 4, 3, 0])))
        elif change == "rank":
            tensor.shape.append(draw(st.integers(0, 2)))
        elif change == "name":
            tensor.name = draw(st.sampled_from(["a", "b", "x", "y"]))
        elif change == "typed":
            tensor.contents.fp32_contents.extend([1.0] * draw(st.integers(0, 4)))
        elif change == "output":
            made.outputs.add(name=draw(st.sampled_from(["sum", "larger", "y", "total"])))
    return made


@pytest.mark.parametrize("kind", list(VALID))
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_request_is_run_or_refused_and_never_a_defect(kind: str, data: st.DataObject) -> None:
    """Whatever passes the codec also passes ONNX Runtime; whatever does not is told by a ServingError."""
    of = model(kind)
    made = data.draw(st.one_of(nearly_right(kind), requests))
    try:
        run_alone(of, TensorCodec(of), made)
    except (InvalidTensor, Unimplemented) as error:
        message = str(error)
    else:
        message = "answered"
    assert message


def _inputs(made: ModelInferRequest) -> None:
    for _ in range(500_000):
        made.inputs.add()


def _shape(made: ModelInferRequest) -> None:
    made.inputs[0].shape.extend([1] * 5_000_000)


def _outputs(made: ModelInferRequest) -> None:
    for _ in range(500_000):
        made.outputs.add(name="sum")


def _raw(made: ModelInferRequest) -> None:
    made.raw_input_contents.extend([b""] * 2_000_000)


def _distinct(made: ModelInferRequest) -> None:
    for i in range(990):
        made.inputs.add(name=f"input {i}")


@pytest.mark.parametrize("flood", [_inputs, _shape, _outputs, _raw, _distinct])
def test_a_message_full_of_nothing_is_refused_before_it_is_looked_through(
    flood: Callable[[ModelInferRequest], None],
) -> None:
    """A few megabytes of empty inputs must not hold up the event loop, on which everybody waits."""
    codec, made = several()
    flood(made)
    parsed = ModelInferRequest.FromString(made.SerializeToString())
    began = time.process_time()
    message = refused(codec, parsed)
    # Generous: looking through all of it takes a hundred times as long.
    assert time.process_time() - began < 0.1
    assert len(message) < 1000
