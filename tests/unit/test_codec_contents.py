"""What a request may get wrong in its contents: raw or typed, texts, numbers that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
from codec_requests import FIELDS, refused, several, typed
from fakes_engine import framed, model, request
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.errors import Internal, InvalidTensor
from hedgerow_server.rpc.codec import TensorCodec
from hedgerow_server.rpc.replies import Encoded
from hypothesis import given, settings
from hypothesis import strategies as st

# ------------------------------------------------------------------- raw and typed


def test_both_raw_and_typed_contents_are_refused() -> None:
    codec, made = several()
    made.inputs[1].contents.fp32_contents.extend([1, 2])
    refused(codec, made, "'b'", "raw_input_contents")


def test_too_few_and_too_many_raw_entries_are_counted() -> None:
    codec, made = several()
    made.raw_input_contents.append(b"")
    refused(codec, made, "3 entries", "2 inputs")
    del made.raw_input_contents[1:]
    refused(codec, made, "1 entries")


def test_neither_raw_nor_typed_contents() -> None:
    codec, made = several()
    del made.raw_input_contents[:]
    refused(codec, made, "'a'", "0 values", "empty")


def test_typed_contents_in_the_wrong_field() -> None:
    codec = TensorCodec(model("several"))
    made = typed(np.zeros((1, 2), np.float32), "FP32", "a")
    made.inputs.add(name="b", datatype="FP32", shape=[1, 2]).contents.fp64_contents.extend([1, 2])
    refused(codec, made, "'b'", "fp64_contents", "fp32_contents")
    made.inputs[1].contents.fp32_contents.extend([1, 2])  # and in the right one as well
    refused(codec, made, "'b'", "fp64_contents")


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_typed_contents_of_another_length(count: int) -> None:
    codec = TensorCodec(model("identity", dims=("batch", 2)))
    made = typed(np.zeros((1, 2), np.float32), "FP32")
    made.inputs[0].contents.ClearField("fp32_contents")
    made.inputs[0].contents.fp32_contents.extend([0] * count)
    refused(codec, made, "'x'", f"{count} values", "2")


def test_half_precision_has_no_typed_contents() -> None:
    codec = TensorCodec(model("identity", datatype="FP16"))
    made = ModelInferRequest()
    made.inputs.add(name="x", datatype="FP16", shape=[1, 3]).contents.fp32_contents.extend([1, 2, 3])
    refused(codec, made, "FP16", "raw")


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("INT8", -129), ("INT16", 2**15), ("UINT8", 256), ("UINT16", 2**16), ("INT16", -(2**31))],
)
def test_a_typed_value_that_does_not_fit_is_refused_instead_of_wrapped(datatype: str, value: int) -> None:
    codec = TensorCodec(model("identity", datatype=datatype))
    made = ModelInferRequest()
    tensor = made.inputs.add(name="x", datatype=datatype, shape=[1, 3])
    getattr(tensor.contents, FIELDS[datatype]).extend([0, value, 1])
    refused(codec, made, datatype, "'x'")


# ------------------------------------------------------------------------- BYTES


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "at least 8"),
        (framed([b"a"]), "at least 8"),
        (framed([b"abcdefgh"]), "1 elements"),
        (framed([b"a", b"b"]) + b"\0", "1 bytes behind"),
        (framed([b"a", b"b", b"c"]), "behind its 2 elements"),
        (framed([b"abcd"]) + b"\x01\0\0", "within the length of element 1"),
        (framed([b"abcd"]) + b"\x02\0\0\0x", "says it has 2 bytes, 1 are left"),
        (b"\xff\xff\xff\xff" + b"x" * 20, "4294967295"),
        (framed([b"ok", b"\xff\xfe"]), "element 1 is not UTF-8"),
    ],
)
def test_broken_framing_of_texts_says_where(content: bytes, word: str) -> None:
    codec = TensorCodec(model("identity", datatype="BYTES", dims=("batch", 2)))
    made = ModelInferRequest()
    made.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    made.raw_input_contents.append(content)
    refused(codec, made, "'x'", word)


def test_typed_texts_that_are_not_utf8_say_where() -> None:
    codec = TensorCodec(model("identity", datatype="BYTES", dims=("batch", 2)))
    made = ModelInferRequest()
    made.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"ok", b"\xff"])
    refused(codec, made, "'x'", "element 1", "UTF-8")


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=64), shape=st.lists(st.integers(-2, 5), max_size=3))
def test_any_framing_is_read_or_refused(content: bytes, shape: list[int]) -> None:
    codec = TensorCodec(model("identity", datatype="BYTES", dims=("batch", "n")))
    made = ModelInferRequest()
    made.inputs.add(name="x", datatype="BYTES", shape=shape)
    made.raw_input_contents.append(content)
    try:
        (part,) = codec.read(made).parts
    except InvalidTensor:
        return
    assert framed([text.encode() for text in part]) == content


# --------------------------------------------------------------------------- NaN


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_takes_finite_numbers_refuses_others_by_their_place(datatype: str, value: float) -> None:
    array = np.array([[1, value, 3]], DATATYPES[datatype].dtype)
    codec = TensorCodec(model("identity", datatype=datatype, nan={"inputs": "NAN_CHOICE_REJECT"}))
    refused(codec, request({"x": array}), "'x'", "element 1", "finite")
    if datatype != "FP16":
        refused(codec, typed(array, datatype), "'x'", "element 1", "finite")
    for choice in ("NAN_CHOICE_ALLOW", "NAN_CHOICE_UNSPECIFIED"):
        TensorCodec(model("identity", datatype=datatype, nan={"inputs": choice})).read(request({"x": array}))


def test_an_answer_that_is_not_finite_is_refused_row_by_row() -> None:
    """Only the requests whose own rows are not finite fail."""
    of = model("logarithm", nan={"outputs": "NAN_CHOICE_REJECT"})
    codec = TensorCodec(of)
    with np.errstate(all="ignore"):
        outputs = Encoded([np.log(np.array([[1, 2], [-1, 1], [3, 4]], np.float32))], None, alone=False)
    codec.writer.write("", outputs, 0, 1)
    with pytest.raises(Internal):
        codec.writer.write("", outputs, 1, 1)
    codec.writer.write("", outputs, 2, 1)
