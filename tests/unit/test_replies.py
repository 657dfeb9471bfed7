"""Replies made of slices, against replies that protobuf encodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes_engine import raw
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_protos.open_inference_pb2 import ModelInferResponse
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.errors import Internal
from hedgerow_server.rpc import replies
from hedgerow_server.rpc.replies import KNOWN_FRAMES, Encoded, ReplyWriter
from hypothesis import given, settings
from hypothesis import strategies as st

ids = st.sampled_from(["", "a", "näme", "i" * 127, "i" * 128, "i" * 20_000])


def version(*datatypes: str) -> Any:
    """What a writer reads of a model: its outputs y0, y1, ..., of any shape."""
    specs = tuple(TensorSpec(f"y{i}", DATATYPES[name], (-1, -1)) for i, name in enumerate(datatypes))
    return SimpleNamespace(name="m", version="7", signature=Signature((), specs, 8), serving=ServingSpec())


def values(datatype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    source = np.random.default_rng(seed)
    if datatype == "BYTES":
        texts = np.empty(int(np.prod(shape)), object)
        texts[:] = ["é" * int(n) for n in source.integers(0, 5, texts.size)]
        return texts.reshape(shape)
    return (source.standard_normal(shape) * 100).astype(DATATYPES[datatype].dtype)


def by_protobuf(
    request_id: str, of: Any, said: dict[str, str], asked: tuple[int, ...], mine: list[np.ndarray]
) -> ModelInferResponse:
    reply = ModelInferResponse(model_name=of.name, model_version=of.version, id=request_id)
    for name, value in said.items():
        reply.parameters[name].string_param = value
    for position, array in zip(asked, mine, strict=True):
        spec = of.signature.outputs[position]
        reply.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=array.shape)
        reply.raw_output_contents.append(raw(array))
    return reply


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_every_reply_of_a_run_is_the_one_that_protobuf_would_encode(data: st.DataObject) -> None:
    """Any datatypes, rows, ids, variants, outputs asked for and sizes; alone and in a batch."""
    datatypes = data.draw(st.lists(st.sampled_from(sorted(DATATYPES)), min_size=1, max_size=3))
    of = version(*datatypes)
    # Two variants of one version may share a run.
    saids = [{}, {"hedgerow_variant": "challenger"}]
    writers = [ReplyWriter(of, said, reject_nan=False) for said in saids]
    for run in range(data.draw(st.integers(1, 3))):
        asked = data.draw(st.one_of(st.none(), st.permutations(range(len(datatypes)))))
        positions = tuple(range(len(datatypes))) if asked is None else tuple(asked)
        brought = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        rows = sum(brought)
        outputs = []
        for position in positions:
            rest = data.draw(st.sampled_from([(), (0,), (1,), (3, 2), (40,), (5000,)]))
            if datatypes[position] == "BYTES":
                rest = rest if rest != (5000,) else (2,)
            array = values(datatypes[position], (rows, *rest), run)
            if data.draw(st.booleans()):
                array = np.asfortranarray(array)
            outputs.append(array)
        encoded = Encoded(outputs, None if asked is None else positions, alone=len(brought) == 1)
        first = 0
        for count in brought:
            request_id, which = data.draw(ids), data.draw(st.integers(0, 1))
            written = writers[which].write(request_id, encoded, first, count)
            mine = [output[first : first + count] for output in outputs]
            wanted = by_protobuf(request_id, of, saids[which], positions, mine)
            assert isinstance(written, bytes)
            assert ModelInferResponse.FromString(written) == wanted
            first += count


@pytest.mark.parametrize("datatype", ["FP32", "UINT8", "BYTES"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (130, 130)], ids=str)
def test_a_model_without_rows_gives_the_shapes_that_it_gave(datatype: str, shape: tuple[int, ...]) -> None:
    """Another shape at each run; one of 67 600 bytes is not copied before it is sent."""
    of = version(datatype)
    writer = ReplyWriter(of, {}, reject_nan=False)
    for run, changed in enumerate((shape, (1, *shape), shape)):
        output = values(datatype, changed, run)
        written = writer.write("a", Encoded([output], None, alone=True), 0, 1)
        assert ModelInferResponse.FromString(written) == by_protobuf("a", of, {}, (0,), [output])


@pytest.mark.parametrize("columns", [1, 8, 16_384, 16_385, 100_000])
def test_a_reply_does_not_change_when_its_array_does(columns: int) -> None:
    """The next run writes into the same buffers; replies below and above 64 KiB are copies alike."""
    of = version("FP32")
    for alone in (True, False):
        output = values("FP32", (2, columns), 0)
        rows = 2 if alone else 1
        wanted = [output[i : i + rows].tobytes() for i in (range(1) if alone else range(2))]
        encoded = Encoded([output], None, alone=alone)
        writer = ReplyWriter(of, {}, reject_nan=False)
        written = [
            writer.write(request_id, encoded, i, rows)
            for i, request_id in zip(range(len(wanted)), ("", "a"), strict=False)
        ]
        output[:] = -1
        got = [ModelInferResponse.FromString(each).raw_output_contents[0] for each in written]
        assert got == wanted


def test_only_the_request_whose_rows_are_not_finite_is_refused() -> None:
    of = version("FP32", "INT64")
    writer = ReplyWriter(of, {}, reject_nan=True)
    output = np.array([[1], [np.nan], [2], [np.inf]], np.float32)
    encoded = Encoded([output, np.arange(4)], None, alone=False)
    for first in (0, 2):
        reply = ModelInferResponse.FromString(writer.write("", encoded, first, 1))
        assert reply.raw_output_contents[0] == output[first].tobytes()
    for first, rows in ((1, 1), (3, 1), (0, 2)):
        with pytest.raises(Internal):
            writer.write("", encoded, first, rows)


def test_shapes_that_are_remembered_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "KNOWN_FRAMES", 5)
    assert KNOWN_FRAMES > 5
    of = version("UINT8")
    writer = ReplyWriter(of, {}, reject_nan=False)
    for size in (*range(12), *range(12)):
        output = values("UINT8", (size,), size)
        written = writer.write("", Encoded([output], None, alone=True), 0, 1)
        assert ModelInferResponse.FromString(written) == by_protobuf("", of, {}, (0,), [output])
        assert len(writer._frames) <= 5
