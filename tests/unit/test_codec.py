"""Tensors in and out: every datatype both ways, each request its own rows and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from codec_requests import FIELDS, run_alone, typed
from fakes_engine import model, raw, request, tensors
from hedgerow_protos.open_inference_pb2 import ModelInferResponse
from hedgerow_server.call import Call
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.work import assemble
from hedgerow_server.rpc.codec import TensorCodec
from hedgerow_server.rpc.replies import Encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

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
