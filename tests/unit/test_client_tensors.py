"""The client's tensor codec: what goes in comes out, and what cannot go says so."""

from __future__ import annotations

import contextlib

import ml_dtypes
import numpy as np
import pytest
from hedgerow.errors import InvalidReply, InvalidRequest
from hedgerow.tensors import DTYPES, convert, decode, decode_contents, encode
from hedgerow_protos import open_inference_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
BYTES = st.binary(max_size=12)


@given(
    array=st.sampled_from(list(DTYPES.values())).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)),
    order=st.sampled_from("CF"),
    big_endian=st.booleans(),
)
def test_every_numeric_array_survives_the_wire(array, order, big_endian):
    """All dtypes, shapes (scalars and empty ones too), layouts and byte orders."""
    sent = np.asarray(array.astype(array.dtype.newbyteorder(">" if big_endian else "<")), order=order)
    datatype, raw = encode("x", sent)
    back = decode("x", datatype, array.shape, raw)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(object, SHAPES, elements=BYTES))
def test_bytes_survive_the_wire(array):
    """Empty elements, NULs and any byte included."""
    datatype, raw = encode("x", array)
    assert datatype == "BYTES"
    back = decode("x", datatype, array.shape, raw)
    assert back.dtype == object
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


@given(st.lists(st.text(max_size=8)))
def test_text_is_sent_as_utf8(words):
    words = [word.rstrip("\0") for word in words]  # NumPy's own string dtype drops them
    expected = [word.encode() for word in words]
    for array in (np.array(words, dtype=object), np.array(words, dtype=str)):
        assert decode("x", "BYTES", array.shape, encode("x", array)[1]).tolist() == expected


def test_a_bytes_tensor_has_the_published_framing():
    """A 4-byte little-endian length before each element."""
    assert encode("x", np.array([b"ab", b""], dtype=object)) == ("BYTES", b"\2\0\0\0ab\0\0\0\0")


@given(hnp.arrays(np.float32, 5, elements=st.floats(width=16, allow_nan=False)))
def test_bfloat16_comes_back_widened_to_float32(array):
    narrow = array.astype(ml_dtypes.bfloat16)
    datatype, raw = encode("x", narrow)
    assert datatype == "BF16"
    back = decode("x", datatype, narrow.shape, raw)
    assert back.dtype == np.float32
    assert back.tolist() == narrow.astype(np.float32).tolist()


def test_a_reply_is_viewed_not_copied():
    raw = np.arange(4, dtype=np.float32).tobytes()
    array = decode("y", "FP32", [2, 2], raw)
    assert not array.flags.writeable
    assert np.shares_memory(array, np.frombuffer(raw, np.uint8))


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros(2, np.complex64), "real and imaginary"),
        (np.zeros(2, "datetime64[s]"), "astype('int64')"),
        (np.zeros(2, np.longdouble), "astype('float64')"),
        (np.array([1, b"a"], dtype=object), "element 0 is int"),
        (np.array(["ok", "\ud800"], dtype=object), "element 1"),
        (np.zeros(2, [("a", "f4")]), "cannot carry"),
    ],
)
def test_an_array_the_protocol_cannot_carry_is_refused_with_what_to_do(array, word):
    with pytest.raises(InvalidRequest, match="input 'x'") as caught:
        encode("x", array)
    assert word in caught.value.details


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [2], b"\0" * 7),
        ("FP32", [2], b"\0" * 9),
        ("FP32", [-1], b""),
        ("FP32", [2**62, 2**62], b""),
        ("FP32", [0, 2**62, 2**62], b""),
        ("FP32", [1] * 100, b"\0" * 4),
        ("BF16", [1], b"\0"),
        ("BYTES", [1], b"\5\0\0\0ab"),
        ("BYTES", [1], b"\1\0"),
        ("BYTES", [1], b"\0\0\0\0\0"),
        ("BYTES", [2**50], b"\0\0\0\0"),
        ("BYTES", [2], b"\2\0\0\0ab\1\0"),
        ("FP8", [1], b"\0"),
    ],
)
def test_contents_that_disagree_with_their_shape_are_an_invalid_reply(datatype, shape, raw):
    with pytest.raises(InvalidReply, match="output 'y'"):
        decode("y", datatype, shape, raw)


@given(
    datatype=st.sampled_from([*DTYPES, "BYTES", "BF16"]),
    shape=st.lists(st.integers(-2, 2**63 - 1) | st.integers(0, 4), max_size=4),
    raw=st.binary(max_size=64),
)
def test_no_reply_raises_anything_but_invalid_reply(datatype, shape, raw):
    """Whatever a server sends, the caller sees an array of that shape or one kind of error."""
    with contextlib.suppress(InvalidReply):
        assert list(decode("y", datatype, shape, raw).shape) == shape


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "FP16"])
def test_typed_contents_of_other_servers_are_read(datatype):
    contents = pb.InferTensorContents()
    field = {"BOOL": "bool", "FP32": "fp32", "FP64": "fp64", "INT64": "int64", "UINT64": "uint64"}.get(
        datatype, "uint" if datatype.startswith("U") else "int"
    )
    getattr(contents, f"{field}_contents").extend([0, 1])
    array = decode_contents("y", datatype, [2, 1], contents)
    assert (array.dtype, array.tolist()) == (DTYPES[datatype], [[0], [1]])
    with pytest.raises(InvalidReply):
        decode_contents("y", datatype, [3], contents)


def test_typed_bytes_are_read():
    contents = pb.InferTensorContents(bytes_contents=[b"a", b"b\0"])
    assert decode_contents("y", "BYTES", [2], contents).tolist() == [b"a", b"b\0"]


@pytest.mark.parametrize(
    ("value", "datatype", "dtype"),
    [
        ([[1, 2.5]], "FP32", np.float32),
        ([1, 2], "FP16", np.float16),
        (3, "INT8", np.int8),
        ([True, False], "BOOL", np.bool_),
        ([0, 1], "UINT64", np.uint64),
        ([], "INT64", np.int64),
        (["a", b"b\0"], "BYTES", np.object_),
        ([1.5], "BF16", ml_dtypes.bfloat16),
        ([1.5], None, np.float64),
        (["a"], None, np.object_),
    ],
)
def test_a_list_becomes_what_the_model_takes(value, datatype, dtype):
    array = convert("x", value, datatype)
    assert array.dtype == dtype
    assert array.tolist() == value


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        ([1.5], "INT64"),
        ([300], "INT8"),
        ([-1], "UINT8"),
        (["1"], "FP32"),
        ([1], "BYTES"),
        ([1], "BOOL"),
        ([[1], [1, 2]], "FP32"),
        ([2**70], "INT64"),
    ],
)
def test_a_list_that_would_lose_its_meaning_is_refused(value, datatype):
    with pytest.raises(InvalidRequest, match="input 'x'"):
        convert("x", value, datatype)
