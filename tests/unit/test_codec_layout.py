"""What a request may get wrong in its layout: names, datatypes, shapes, sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from codec_requests import refused, run_alone, several
from fakes_engine import model, request, tensors
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.errors import Unimplemented
from hedgerow_server.rpc.codec import TensorCodec

# ------------------------------------------------------------------------ names


def test_an_unknown_input_is_named_with_those_there_are() -> None:
    codec, made = several()
    made.inputs[1].name = "nobody"
    refused(codec, made, "'nobody'", "a, b")


def test_a_missing_input_is_named() -> None:
    codec, made = several()
    del made.inputs[1], made.raw_input_contents[1]
    refused(codec, made, "missing 'b'", "2 inputs")


def test_an_extra_input_is_named() -> None:
    codec, made = several()
    made.inputs.add(name="extra", datatype="FP32", shape=[1, 2])
    made.raw_input_contents.append(bytes(8))
    refused(codec, made, "not an input of the model 'extra'")


def test_an_input_sent_twice_is_named() -> None:
    codec, made = several()
    made.inputs[1].name = "a"
    refused(codec, made, "'a'", "twice")
    made.inputs.add().CopyFrom(made.inputs[0])
    refused(codec, made, "twice 'a'", "missing 'b'")


def test_no_inputs_at_all() -> None:
    codec, _ = several()
    refused(codec, ModelInferRequest(), "missing 'a', 'b'")


def test_an_unknown_or_doubled_output_is_named() -> None:
    codec, made = several()
    made.outputs.add(name="nobody")
    refused(codec, made, "'nobody'", "sum, difference, larger")
    made.outputs[0].name = "sum"
    made.outputs.add(name="sum")
    refused(codec, made, "'sum'", "twice")


def test_what_is_not_offered_is_unimplemented() -> None:
    """Shared memory and classification are extensions of Triton; asking for one is not ignored."""
    codec, made = several()
    made.outputs.add(name="sum").parameters["classification"].int64_param = 3
    with pytest.raises(Unimplemented, match="classification"):
        codec.read(made)
    codec, made = several()
    made.outputs.add(name="sum").parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unimplemented, match="shared memory"):
        codec.read(made)
    codec, made = several()
    del made.raw_input_contents[:]
    for tensor in made.inputs:
        tensor.parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unimplemented, match="shared memory"):
        codec.read(made)


# --------------------------------------------------------- datatypes and shapes


@pytest.mark.parametrize("datatype", ["INT32", "FP64", "fp32", "", "BF16", "\0", "x" * 500])
def test_a_wrong_datatype_is_named_with_the_right_one(datatype: str) -> None:
    codec, made = several()
    made.inputs[0].datatype = datatype
    message = refused(codec, made, "'a'", repr(datatype[:16]), "FP32")
    assert len(message) < 200


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ([2], "[-1, 2]"),
        ([], "[-1, 2]"),
        ([1, 2, 1], "[-1, 2]"),
        ([1, 3], "[-1, 2]"),
        ([-1, 2], "[-1, 2]"),
        ([1, -2], "[-1, 2]"),
        ([-(2**63), 2], "[-1, 2]"),
        ([0, 2], "no rows"),
        ([2**31, 2], "elements"),
        ([2**62, 2], "elements"),
        ([2**63 - 1, 2], "elements"),
        ([1] * 50, "..."),
        ([1] * 5000, "5000 dimensions"),
    ],
)
def test_a_wrong_shape_is_shown_with_the_right_one(shape: list[int], word: str) -> None:
    """Rank, fixed dimension, negative, empty batch, and products that overflow 63 bits."""
    codec, made = several()
    made.inputs[0].ClearField("shape")
    made.inputs[0].shape.extend(shape)
    message = refused(codec, made, "'a'", word)
    assert len(message) < 400


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [2**33, 0], [2**63 - 1, 0], [0, 0]])
@pytest.mark.parametrize("dims", [("batch", "n"), ("n", "m", 1), (1, "n", "m")], ids=str)
def test_a_tensor_without_elements_cannot_make_the_server_allocate(
    shape: list[int], dims: tuple[Any, ...]
) -> None:
    """No bytes need be sent for [2**33, 0], yet the model's answer may have as many rows as it says."""
    of = model("identity", dims=dims)
    full = shape if len(dims) == 2 else [*shape, 1] if dims[2] == 1 else [1, *shape]
    made = ModelInferRequest()
    made.inputs.add(name="x", datatype="FP32", shape=full)
    made.raw_input_contents.append(b"")
    codec = TensorCodec(of)
    if shape == [0, 0] and not of.signature.max_batch_size:
        assert tensors(run_alone(of, codec, made))["y"].shape == tuple(full)
    else:
        refused(codec, made, "'x'")


def test_the_first_dimension_must_agree_between_inputs() -> None:
    codec, _ = several()
    refused(codec, request({"a": [[1, 2]], "b": [[3, 4], [5, 6]]}), "'b' has 2 rows", "'a' has 1")


@pytest.mark.parametrize("size", [0, 1, 7, 9, 16, 4096])
def test_bytes_that_disagree_with_the_shape_are_counted(size: int) -> None:
    codec, made = several()
    made.raw_input_contents[0] = bytes(size)
    refused(codec, made, "'a'", f"{size} bytes", "takes 8", "[1, 2]")


def test_what_was_learned_of_one_request_is_not_believed_of_another() -> None:
    """Shapes that fitted once are remembered; their bytes are counted every time."""
    codec, made = several()
    codec.read(made)
    made.raw_input_contents[1] = b""
    refused(codec, made, "'b'", "0 bytes")
    made = request({"a": [[1, 2]], "b": [[3, 4]]})
    for i in range(3000):
        codec.read(
            request(
                {"a": np.zeros((i % 1500 + 1, 2), np.float32)}
                | {"b": np.zeros((i % 1500 + 1, 2), np.float32)}
            )
        )
    assert len(codec._known) <= 1024
    codec.read(made)
