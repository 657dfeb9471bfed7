"""Tensors in and out: every datatype both ways, and everything a request can get wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes_engine import framed, model, raw, request, tensors
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from hedgerow_server.call import Call
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.work import assemble
from hedgerow_server.errors import Internal, InvalidTensor, Unimplemented
from hedgerow_server.rpc.codec import TensorCodec
from hedgerow_server.rpc.replies import Encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

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


# -------------------------------------------------------------------- round trip

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def of_datatype(name: str) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(1, 3))
    if name == "BYTES":
        return shapes.flatmap(
            lambda shape: st.lists(texts, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
                lambda elements: np.array([*elements, ""], object)[:-1].reshape(shape)
            )
        )
    return shapes.flatmap(lambda shape: arrays.arrays(DATATYPES[name].dtype.name, shape))


@pytest.mark.parametrize("datatype", list(DATATYPES))
@pytest.mark.parametrize("contents", ["raw", "typed"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_datatype_comes_back_bit_for_bit(datatype: str, contents: str, data: st.DataObject) -> None:
    """Through the real model y = x: NaN payloads, infinities, empty tensors and any text included."""
    of = model("identity", datatype=datatype, dims=("batch", "n", "m"))
    codec = TensorCodec(of)
    array = data.draw(of_datatype(datatype))
    is_typed = contents == "typed" and datatype in FIELDS
    made = typed(array, datatype) if is_typed else request({"x": array}, id="an id")
    reply = run_alone(of, codec, made)
    (output,) = reply.outputs
    assert (output.name, output.datatype, tuple(output.shape)) == ("y", datatype, array.shape)
    assert (reply.id, reply.model_name, reply.model_version) == (made.id, "m", "1")
    if datatype in {"FP32", "FP64"} and is_typed:
        # A signalling NaN loses its payload in Python's float; everything else stays.
        back = tensors(reply)["y"]
        assert np.array_equal(back, array, equal_nan=True)
        assert np.array_equal(np.signbit(back), np.signbit(array)) or np.isnan(array).any()
    else:
        assert reply.raw_output_contents[0] == raw(array)


@pytest.mark.parametrize("rows", [(1,), (2, 3), (1, 1, 1), (4, 1, 7)])
def test_each_request_gets_its_own_rows_of_a_batch(rows: tuple[int, ...]) -> None:
    """Numbers, booleans, and texts of different lengths, cut where the next request begins."""
    for of in (model("several"), model("identity", datatype="BYTES", dims=("batch", 2))):
        codec = TensorCodec(of)
        sent, works = [], []
        count = 0
        for n in rows:
            names = [spec.name for spec in of.signature.inputs]
            if names == ["x"]:
                values = [["é" * (count + i), f"{count + i}"] for i in range(n)]
                inputs = {"x": np.array(values, object)}
            else:
                inputs = {
                    name: np.arange(count, count + 2 * n, dtype=np.float32).reshape(n, 2) * factor
                    for name, factor in zip(names, (1, -1), strict=True)
                }
            count += n
            read = codec.read(request(inputs))
            work = Call(b"", (), None, None, 0, 0)  # type: ignore[arg-type]
            work.rows, work.parts, work.shapes, work.outputs = (
                read.rows,
                read.parts,
                read.shapes,
                read.outputs,
            )
            sent.append(inputs)
            works.append(work)
        outputs = of.run(of.output_names, assemble(of.signature, works, count), None)
        first = 0
        for inputs, work in zip(sent, works, strict=True):
            reply = tensors(
                ModelInferResponse.FromString(
                    codec.writer.write("", Encoded(outputs, None, alone=len(works) == 1), first, work.rows)
                )
            )
            first += work.rows
            if "x" in inputs:
                wanted = [[element.encode() for element in row] for row in inputs["x"].tolist()]
                assert reply["y"].tolist() == wanted
            else:
                assert np.array_equal(reply["sum"], inputs["a"] + inputs["b"])
                assert np.array_equal(reply["larger"], inputs["a"] > inputs["b"])


@pytest.mark.parametrize("kind", ["no_batch", "scalar", "total"])
def test_a_model_without_rows_answers_with_its_own_shapes(kind: str) -> None:
    """Fixed shapes, scalars in, scalars out; never in a batch."""
    of = model(kind)
    codec = TensorCodec(of)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)[:, : 3 if kind == "no_batch" else 2].copy()
    inputs = {"x": x} | ({"scale": np.array(2, np.float32)} if kind == "scalar" else {})
    made = request(inputs)
    assert codec.read(made).kind is None
    reply = tensors(run_alone(of, codec, made))
    wanted = {"no_batch": ("y", x + 1), "scalar": ("y", x * 2), "total": ("total", x.sum())}[kind]
    assert reply.keys() == {wanted[0]}
    assert reply[wanted[0]].shape == np.shape(wanted[1])
    assert np.array_equal(reply[wanted[0]], wanted[1])


def test_outputs_come_in_the_order_in_which_they_are_asked_for() -> None:
    of = model("several")
    codec = TensorCodec(of)
    inputs = {"a": [[5, 1]], "b": [[2, 2]]}
    for asked in (["larger", "sum"], ["difference"], ["sum", "difference", "larger"], []):
        reply = run_alone(of, codec, request(inputs, outputs=asked))
        assert [output.name for output in reply.outputs] == (asked or ["sum", "difference", "larger"])
        got = tensors(reply)
        for name, value in (("sum", [[7, 3]]), ("difference", [[3, -1]]), ("larger", [[True, False]])):
            if name in got:
                assert got[name].tolist() == value


def test_requests_share_a_run_only_if_shapes_and_outputs_agree() -> None:
    codec = TensorCodec(model("sequence"))

    def kind(*shape: int, outputs: tuple[str, ...] = ()) -> Any:
        return codec.read(request({"x": np.zeros(shape, np.float32)}, outputs=outputs)).kind

    assert kind(1, 5, 4) == kind(3, 5, 4) is not None
    assert kind(1, 5, 4) != kind(1, 6, 4)
    assert kind(1, 5, 4, outputs=("y",)) == kind(1, 5, 4)  # all of them, in the model's order
    several = TensorCodec(model("several"))
    inputs = {"a": [[1, 1]], "b": [[1, 1]]}
    subsets: list[tuple[str, ...]] = [(), ("sum",), ("larger",), ("larger", "sum"), ("sum", "larger")]
    kinds = {several.read(request(inputs, outputs=subset)).kind for subset in subsets}
    assert len(kinds) == len(subsets)
    assert TensorCodec(model("batch_mean")).read(request({"x": [[1, 1]]})).kind is None


# ------------------------------------------------------------------------ names


def several() -> tuple[TensorCodec, ModelInferRequest]:
    return TensorCodec(model("several")), request({"a": [[1, 2]], "b": [[3, 4]]})


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


# ----------------------------------------------------------------- whatever comes

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
