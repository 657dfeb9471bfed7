"""Another region's replies: whatever comes, it is either a right answer to this request or refused."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fakes_engine import framed, loaded, tensors
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from hedgerow_server.engine.datatypes import DATATYPES
from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.rpc import foreign
from hedgerow_server.rpc.foreign import ForeignReply
from hedgerow_server.rpc.heads import Heads
from hypothesis import given, settings
from hypothesis import strategies as st


@dataclass
class Asked:
    """A request: what its reply must be."""

    model: str = "m"
    version: str = ""
    request_id: str = "mine"
    rows: int = 3
    outputs: tuple[int, ...] | None = None
    signature: Signature = field(default_factory=lambda: loaded("several").signature)

    def accept(self, payload: bytes) -> ModelInferResponse:
        """Reads a reply as the hedger does."""
        reply = foreign.read(payload, model=self.model, version=self.version, request_id=self.request_id)
        foreign.check_outputs(reply, self.signature, self.outputs, self.rows)
        return reply


def good(rows: int = 3) -> ModelInferResponse:
    """A right reply of `several`: sum and difference FP32, larger BOOL, all [rows, 2]."""
    reply = ModelInferResponse(model_name="m", model_version="2", id="mine")
    for name, datatype, size in (("sum", "FP32", 4), ("difference", "FP32", 4), ("larger", "BOOL", 1)):
        reply.outputs.add(name=name, datatype=datatype, shape=[rows, 2])
        reply.raw_output_contents.append(bytes(rows * 2 * size))
    return reply


def is_refused(reply: ModelInferResponse | bytes, asked: Asked | None = None) -> bool:
    why = ""
    try:
        (asked or Asked()).accept(reply if isinstance(reply, bytes) else reply.SerializeToString())
    except ForeignReply as error:
        why = str(error)
    assert why.isprintable()
    assert len(why) < 500, "a log line, whatever was sent"
    return bool(why)


def test_a_right_reply_is_taken_as_it_is():
    reply = good()
    assert Asked().accept(reply.SerializeToString()) == reply
    assert Asked(version="2").accept(reply.SerializeToString()) == reply
    assert Asked(request_id="").accept(reply.SerializeToString()) == reply, "who gave no id gets any"
    assert Asked(rows=0).accept(reply.SerializeToString()) == reply, "not known yet: features are being read"


def _change(**fields: Any) -> Any:
    def change(reply: ModelInferResponse) -> None:
        for name, value in fields.items():
            setattr(reply, name, value)

    return change


def _output(index: int, **fields: Any) -> Any:
    def change(reply: ModelInferResponse) -> None:
        for name, value in fields.items():
            if name == "shape":
                reply.outputs[index].shape[:] = value
            else:
                setattr(reply.outputs[index], name, value)

    return change


def _rows(rows: int) -> Any:
    return lambda reply: (reply.Clear(), reply.MergeFrom(good(rows)))


def _drop(reply: ModelInferResponse) -> None:
    del reply.outputs[2], reply.raw_output_contents[2]


def _twice(reply: ModelInferResponse) -> None:
    reply.outputs.append(reply.outputs[0])
    reply.raw_output_contents.append(b"\1" * 24)


def _contents(reply: ModelInferResponse) -> None:
    reply.outputs[0].contents.fp32_contents.extend([1.0] * 6)


@pytest.mark.parametrize(
    "change",
    [
        _change(model_name="n"),
        _change(model_name=""),
        _change(id="another's"),
        _change(id=""),
        _rows(2),
        _rows(4),
        _rows(0),
        _drop,
        _twice,
        _contents,
        _output(0, name="total"),
        _output(0, datatype="INT32"),
        _output(0, datatype="FP99"),
        _output(0, datatype=""),
        _output(0, shape=[2, 3]),
        _output(0, shape=[6]),
        _output(0, shape=[3, 2, 1]),
        _output(0, shape=[-3, -2]),
        _output(0, shape=[2**62, 2**62]),
        _output(0, shape=[]),
        lambda reply: reply.raw_output_contents.pop(),
        lambda reply: reply.raw_output_contents.append(b""),
        lambda reply: reply.outputs.add(name="more"),
        lambda reply: reply.Clear(),
    ],
    ids=range(24),
)
def test_whatever_is_wrong_with_it_is_seen(change):
    reply = good()
    change(reply)
    assert is_refused(reply)


def test_another_version_than_the_one_asked_for_is_refused():
    assert is_refused(good(), Asked(version="1"))
    assert not is_refused(good(), Asked(version="2"))


def test_outputs_come_as_they_were_asked_for():
    """Some clients take them by their place."""
    asked = Asked(outputs=(2, 0))
    reply = good()
    assert is_refused(reply, asked), "one more than was asked for"
    reply = ModelInferResponse(model_name="m", id="mine")
    for index in (0, 2):
        reply.outputs.append(good().outputs[index])
        reply.raw_output_contents.append(good().raw_output_contents[index])
    assert is_refused(reply, asked), "in another order"
    assert not is_refused(reply, Asked(outputs=(0, 2)))


def test_a_newer_version_may_have_more_outputs_for_who_asked_for_all():
    reply = good()
    reply.outputs.add(name="new", datatype="INT8", shape=[3])
    reply.raw_output_contents.append(b"abc")
    assert not is_refused(reply)


FIXED = Signature((), (TensorSpec("y", DATATYPES["FP32"], (-1, 3)),), 8)


@pytest.mark.parametrize(
    ("shape", "fits"), [([2, 3], True), ([3, 2], False), ([2, 4], False), ([1, 3], False)]
)
def test_sizes_that_are_fixed_here_are_fixed_there(shape: list[int], fits):
    reply = ModelInferResponse(model_name="m", id="mine")
    reply.outputs.add(name="y", datatype="FP32", shape=shape)
    reply.raw_output_contents.append(bytes(4 * int(np.prod(shape))))
    assert is_refused(reply, Asked(signature=FIXED, rows=2)) is not fits


TEXTS = Signature((), (TensorSpec("t", DATATYPES["BYTES"], (-1,)),), 8)


@pytest.mark.parametrize(
    ("raw", "fits"),
    [
        (framed([b"", "名前".encode()]), True),
        (framed([b"a"]), False),
        (framed([b"a", b"b", b"c"]), False),
        (framed([b"a", b"b"])[:-1], False),
        (framed([b"a", b"b"]) + b"\0", False),
        (b"", False),
        (struct.pack("<I", 2**32 - 1) + b"a" * 20, False),
        (framed([b"a" * 7]) + b"\1\0\0", False),
    ],
)
def test_texts_must_add_up(raw: bytes, fits):
    """Triton's clients walk through them unchecked."""
    reply = ModelInferResponse(model_name="m", id="mine")
    reply.outputs.add(name="t", datatype="BYTES", shape=[2])
    reply.raw_output_contents.append(raw)
    assert is_refused(reply, Asked(signature=TEXTS, rows=2)) is not fits


# ------------------------------------------------------------------ anything


@given(payload=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(payload: bytes):
    assert is_refused(payload)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A right reply with some bytes changed, cut out, doubled or put in."""
    payload = bytearray(good(draw(st.integers(0, 4))).SerializeToString())
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(payload)))
        to = min(len(payload), at + draw(st.integers(0, 8)))
        payload[at:to] = draw(
            st.one_of(st.binary(max_size=8), st.just(bytes(payload[at:to]) * 2), st.just(b""))
        )
    return bytes(payload)


@settings(max_examples=2000, deadline=None)
@given(payload=damaged(), asked=st.builds(Asked, outputs=st.sampled_from([None, (0,), (2, 0)])))
def test_a_damaged_reply_is_refused_or_still_a_right_answer_of_the_right_form(payload: bytes, asked: Asked):
    """Never a defect; and what is taken can be decoded by a client, for the tensors that were asked for."""
    try:
        reply = asked.accept(payload)
    except ForeignReply:
        return
    assert reply.model_name == "m"
    assert reply.id == "mine"
    said = tensors(ModelInferResponse.FromString(foreign.mark(reply, {"hedgerow_outcome": "hedge"})))
    specs = asked.signature.outputs
    for spec in specs if asked.outputs is None else [specs[i] for i in asked.outputs]:
        assert said[spec.name].dtype == spec.datatype.dtype
        assert said[spec.name].shape == (3, 2)


# ------------------------------------------------------- marks, versions


def test_a_mark_adds_to_what_the_reply_says_and_wins_over_it():
    reply = good()
    reply.parameters["hedgerow_features"].string_param = "stale"
    reply.parameters["hedgerow_outcome"].string_param = "primary"
    marked = ModelInferResponse.FromString(foreign.mark(reply, {"hedgerow_outcome": "hedge"}))
    assert {key: value.string_param for key, value in marked.parameters.items()} == {
        "hedgerow_features": "stale",
        "hedgerow_outcome": "hedge",
    }
    assert tensors(marked).keys() == tensors(good()).keys()


@given(
    version=st.from_regex(r"[0-9]{1,20}", fullmatch=True),
    id=st.text(max_size=20),
    raw=st.binary(max_size=300),
)
def test_a_version_is_asked_for_without_touching_anything_else(version: str, id: str, raw: bytes):  # noqa: A002  the protocol's name
    """Also by a server that recognises requests by how they begin."""
    request = ModelInferRequest(model_name="m", id=id)
    request.inputs.add(name="x", datatype="UINT8", shape=[len(raw)])
    request.raw_input_contents.append(raw)
    payload = request.SerializeToString()
    heads = Heads()
    heads.parse(payload)
    asking = foreign.ask_version(payload, version)
    request.model_version = version
    assert ModelInferRequest.FromString(asking) == request
    assert heads.find(asking) is None, "that would be the request without a version"
    assert heads.parse(asking)[0].model_version == version
