"""Requests recognised by their first bytes, against plain parsing of the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from hedgerow_server.errors import InvalidTensor
from hedgerow_server.rpc import heads
from hedgerow_server.rpc.heads import KNOWN_HEADS, MOST_RAWS, TRIED_SIZES, Heads, varint
from hypothesis import example, given, settings
from hypothesis import strategies as st

NAME, VERSION, ID, PARAMETER, INPUT, OUTPUT, RAW = range(1, 8)


def field(number: int, content: bytes, *, padded: bool = False) -> bytes:
    """A length-delimited field; `padded` is its length in more bytes than it takes."""
    length = varint(len(content))
    if padded:
        length = length[:-1] + bytes((length[-1] | 0x80, 0))
    return bytes((number << 3 | 2,)) + length + content


def tensor(name: str = "x", shape: tuple[int, ...] = (1, 2), *, typed: bool = False) -> bytes:
    made = ModelInferRequest.InferInputTensor(name=name, datatype="FP32", shape=shape)
    if typed:
        made.contents.fp32_contents.extend([1.0, 2.0])
    return made.SerializeToString()


def timeout(microseconds: int) -> bytes:
    made = ModelInferRequest()
    made.parameters["timeout"].int64_param = microseconds
    made.parameters["priority"].int64_param = 7
    return b"".join(field(PARAMETER, entry) for entry in _fields(made.SerializeToString()))


def _fields(payload: bytes) -> list[bytes]:
    """The contents of a message's fields, all of them short and length-delimited."""
    contents = []
    while payload:
        end = 2 + payload[1]
        contents.append(payload[2:end])
        payload = payload[end:]
    return contents


#: Few values, so that messages agree in much and differ in little.
ids = st.sampled_from([b"", b"a", b"b" * 11, "né".encode(), b"\xff", b"\xed\xa0\x80", b"i" * 127, b"i" * 128])
names = st.sampled_from([b"m", b"n", b"", b"m" * 127, b"m" * 128, b"\xff", b"m\x1a\x01a"])
raws = st.sampled_from(
    [b"", b"\1" * 8, b"\2" * 8, field(ID, b"evil"), field(RAW, b"\3" * 4), b"\4" * 130, b":\0"]
)
pieces = st.one_of(
    st.builds(field, st.just(NAME), names),
    st.builds(field, st.just(VERSION), st.sampled_from([b"1", b"2", b""])),
    st.builds(field, st.just(ID), ids),
    st.sampled_from([timeout(5), timeout(10_000_000)]),
    st.sampled_from(
        [
            field(INPUT, tensor()),
            field(INPUT, tensor("y")),
            field(INPUT, tensor("x", (0, 2))),
            field(INPUT, tensor(typed=True)),
        ]
    ),
    st.just(field(OUTPUT, b"\x0a\1y")),
    st.builds(field, st.just(RAW), raws, padded=st.booleans()),
    # Unknown fields: a string, a number, a group; and what is none.
    st.sampled_from([field(11, b"unknown"), b"\x78\x05", b"\x7b\x7c", b"\x7b", b"\x7c", b"\x3a\x7f", b"\0"]),
)


@st.composite
def usual(draw: st.DrawFn) -> list[bytes]:
    """The fields of a message as clients send them."""
    count = draw(st.integers(1, 3))
    message = [field(NAME, draw(names))]
    if draw(st.booleans()):
        message.append(field(VERSION, draw(st.sampled_from([b"1", b"2"]))))
    message.append(field(ID, draw(ids)))
    if draw(st.booleans()):
        message.append(timeout(5))
    message += [field(INPUT, tensor(f"x{i}")) for i in range(count)]
    message += [field(RAW, draw(raws)) for _ in range(count)]
    return message


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """A few messages, and mutations of each."""
    messages = []
    for base in draw(st.lists(st.one_of(usual(), st.lists(pieces, max_size=6)), min_size=1, max_size=2)):
        for _ in range(draw(st.integers(2, 5))):
            mutated = list(base)
            for _ in range(draw(st.integers(0, 2))):
                at = draw(st.integers(0, len(mutated)))
                what = draw(st.sampled_from(["insert", "replace", "drop", "double", "swap"]))
                if what == "insert":
                    mutated.insert(at, draw(pieces))
                elif at < len(mutated):
                    if what == "replace":
                        mutated[at] = draw(pieces)
                    elif what == "drop":
                        del mutated[at]
                    elif what == "double":
                        mutated.insert(at, mutated[at])
                    else:
                        mutated.append(mutated.pop(at))
            payload = b"".join(mutated)
            if draw(st.integers(0, 5)) == 0:
                payload = payload[: draw(st.integers(0, len(payload)))]
            if draw(st.integers(0, 5)) == 0 and payload:
                at = draw(st.integers(0, len(payload) - 1))
                payload = payload[:at] + bytes((draw(st.integers(0, 255)),)) + payload[at + 1 :]
            messages.append(payload)
    return draw(st.permutations(messages)) if draw(st.booleans()) else messages


@dataclass
class Meaning:
    """What parsing says of a message; the rest of it as bytes in one order."""

    model: str
    version: str
    id: str
    timeout: int
    raws: list[bytes]
    rest: bytes


def parsed(payload: bytes) -> Meaning | None:
    """None if it is no message, or the timeout is of a wrong type."""
    try:
        request = ModelInferRequest.FromString(payload)
    except DecodeError:
        return None
    timeout_us = 0
    if "timeout" in request.parameters:
        parameter = request.parameters["timeout"]
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None and kind not in {"int64_param", "uint64_param"}:
            return None
        timeout_us = parameter.int64_param or parameter.uint64_param
    raw = list(request.raw_input_contents)
    rest = ModelInferRequest()
    rest.CopyFrom(request)
    rest.id = ""
    del rest.raw_input_contents[:]
    encoded = rest.SerializeToString(deterministic=True)
    return Meaning(request.model_name, request.model_version, request.id, timeout_us, raw, encoded)


def check(known: Heads, learned: dict[heads.Head, bytes], payload: bytes) -> bool:
    """Whether a message is recognised; fails the test if it then means other than what parsing says."""
    wanted = parsed(payload)
    found = known.find(payload)
    if found is None:
        if wanted is None:
            with pytest.raises(InvalidTensor):
                known.parse(payload)
            return False
        head, request = known.parse(payload)
        assert request == ModelInferRequest.FromString(payload)
        assert (head.model_name, head.model_version, head.timeout_us) == (
            wanted.model,
            wanted.version,
            wanted.timeout,
        )
        learned[head] = wanted.rest
        return False
    head, request_id, shift = found
    assert wanted is not None, "recognised, but it is no message"
    assert (head.model_name, head.model_version, head.timeout_us, request_id) == (
        wanted.model,
        wanted.version,
        wanted.timeout,
        wanted.id,
    )
    assert [bytes(raw) for raw in head.raws(payload, shift)] == wanted.raws
    assert learned[head] == wanted.rest, "names, shapes, outputs and parameters are those of the first"
    return True


@settings(max_examples=150, deadline=None)
@given(messages=histories())
@example([field(RAW, b"") + field(NAME, b"m" * 4) + field(RAW, b"")] * 2)
@example([field(ID, b"a") + field(RAW, b"12"), field(ID, b"\xff") + field(RAW, b"12")])
@example(
    [field(ID, b"a") + field(NAME, b"m") + field(ID, b"") + field(INPUT, tensor()) + field(RAW, b"")] * 2
)
@example([field(NAME, b"m") + field(ID, b"a") + field(ID, b"b") + field(RAW, b"12")] * 2)
def test_what_is_recognised_means_what_parsing_says(messages: list[bytes]) -> None:
    """After any history, and again when all of it is known."""
    known = Heads()
    learned: dict[heads.Head, bytes] = {}
    for payload in (*messages, *messages):
        check(known, learned, payload)


@pytest.mark.parametrize("viewed", [8, 4096])
def test_usual_requests_are_recognised_from_the_second_on(
    viewed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above would pass with nothing recognised at all; large tensors are seen in place."""
    monkeypatch.setattr(heads, "VIEWED_BYTES", viewed)
    known = Heads()
    learned: dict[heads.Head, bytes] = {}
    for count in (1, 2, 3):
        for begin in (field(NAME, b"m"), field(NAME, b"m") + field(VERSION, b"1"), b""):
            fields = timeout(5) + b"".join(field(INPUT, tensor(f"x{i}")) for i in range(count))
            for number, (request_id, value) in enumerate(
                [("", 1), ("a", 2), ("né", 3), ("i" * 127, 4), ("", 5)]
            ):
                with_id = begin + (field(ID, request_id.encode()) if request_id else b"") + fields
                payload = with_id + b"".join(field(RAW, bytes((value + i,)) * (8 + i)) for i in range(count))
                assert check(known, learned, payload) == (number > 0)
    assert len(known) == 9


@pytest.mark.parametrize("size", [127, 128, 300, 20_000])
def test_lengths_of_several_bytes_are_kept_apart(size: int) -> None:
    """A tensor one byte longer is another head; an id or a name of 128 bytes is parsed."""
    known = Heads()
    learned: dict[heads.Head, bytes] = {}
    for length in (size, size + 1):
        for seen in (False, True):
            payload = field(NAME, b"m") + field(INPUT, tensor()) + field(RAW, b"\1" * length)
            assert check(known, learned, payload) is seen
    for request_id in (b"i" * size, b"j" * size):
        payload = (
            field(NAME, b"m") + field(ID, request_id) + field(INPUT, tensor()) + field(RAW, b"\1" * size)
        )
        assert check(known, learned, payload) is (size < 128)
    long_name = field(NAME, b"m" * size) + field(INPUT, tensor()) + field(RAW, b"\1" * 8)
    seen = [check(known, learned, long_name) for _ in range(2)]
    assert seen == [False, size <= heads.LONGEST_HEAD]


def test_a_timeout_of_a_wrong_type_is_refused_each_time() -> None:
    made = ModelInferRequest(model_name="m", raw_input_contents=[b"12"])
    made.parameters["timeout"].string_param = "soon"
    known = Heads()
    for _ in range(3):
        assert known.find(made.SerializeToString()) is None
        with pytest.raises(InvalidTensor, match="string"):
            known.parse(made.SerializeToString())


# What a caller could do to a server.


def held(known: Heads) -> int:
    """Things that are remembered: heads, lengths, and where tensors lie."""
    lengths = sum(len(sizes) for sizes in known._known.values())
    remembered = remembered_by(known)
    spans = sum(len(head._spans) + len(head._separators) for head in remembered.values())
    assert len(remembered) == len(known)
    return len(remembered) + len(known._known) + lengths + spans


def remembered_by(known: Heads) -> dict[tuple[int, bytes], heads.Head]:
    """Every head, by the length of its messages and by its bytes."""
    return {
        (length, begin): head
        for length, sizes in known._known.items()
        for found in sizes.values()
        for begin, head in found.items()
    }


def test_any_number_of_heads_is_forgotten_in_time() -> None:
    known = Heads()
    for i in range(KNOWN_HEADS + 100):
        known.parse(field(NAME, str(i).encode()) + field(RAW, b"1"))
        assert len(known) <= KNOWN_HEADS
    assert 0 < held(known) <= 500


def test_one_head_before_tensors_of_any_length_holds_no_more_memory() -> None:
    """The first tensor's length is in the head, the second's is not."""
    known = Heads()
    for length in range(KNOWN_HEADS * 2 + 100):
        known.parse(field(NAME, b"m") + field(RAW, b"1234") + field(RAW, bytes(length)))
    assert held(known) < 4 * KNOWN_HEADS


def test_a_message_full_of_empty_tensors_is_not_remembered() -> None:
    """Two bytes of it would be hundreds in memory, for as long as the server lives."""
    known = Heads()
    known.parse(field(NAME, b"m") + field(RAW, b"") * (MOST_RAWS + 1))
    known.parse(field(NAME, b"m") + b"".join(field(INPUT, b"") for _ in range(1100)) + field(RAW, b""))
    assert len(known) == 0
    known.parse(field(NAME, b"m") + field(RAW, b"") * MOST_RAWS)
    assert len(known) == 1


def test_heads_of_many_lengths_make_no_message_of_one_length_dear() -> None:
    """A message is compared with few heads, whatever others have sent of its length; the newest count."""
    known = Heads()
    learned: dict[heads.Head, bytes] = {}
    messages = [
        field(NAME, b"m" * n) + field(INPUT, tensor()) + field(RAW, bytes(1000 - n)) for n in range(1, 100)
    ]
    (length,) = {len(message) for message in messages}
    for message in messages:
        known.parse(message)
    assert len(known._known[length]) == TRIED_SIZES
    learned = {
        head: parsed(message).rest  # type: ignore[union-attr]
        for message in messages
        if (head := remembered_by(known).get((length, message[: _size(message)])))
    }
    assert [check(known, learned, message) for message in messages[-TRIED_SIZES:]] == [True] * TRIED_SIZES


def _size(message: bytes) -> int:
    raw = ModelInferRequest.FromString(message).raw_input_contents[0]
    return len(message) - len(raw)


def test_a_tensor_that_looks_like_fields_is_a_tensor() -> None:
    """Contents may be anything, also what would be an id or another model's name."""
    known = Heads()
    learned: dict[heads.Head, bytes] = {}
    source = np.random.default_rng(0)
    evil = [field(ID, b"them"), field(NAME, b"they"), field(RAW, b"them"), source.bytes(6)]
    begin = field(NAME, b"m") + field(ID, b"mine") + field(INPUT, tensor("x0")) + field(INPUT, tensor("x1"))
    seen = [check(known, learned, begin + field(RAW, a) + field(RAW, b)) for a in evil for b in evil]
    assert seen == [False] + [True] * 15


@pytest.mark.parametrize("request_id", [b"", field(ID, b"mine")], ids=["without id", "with id"])
def test_the_same_head_before_another_rest_is_parsed(request_id: bytes) -> None:
    """Trailing bytes, or another field in a tensor's place: the total length and every tag must agree."""
    known = Heads()
    learned: dict[heads.Head, bytes] = {}
    begin = field(NAME, b"m") + request_id + field(INPUT, tensor())
    tail = field(RAW, b"1" * 8) + field(RAW, b"2" * 8)
    assert not check(known, learned, begin + tail + field(RAW, b"3" * 9))
    assert not check(known, learned, begin + tail + field(ID, b"3" * 9))
    other = field(NAME, b"n") + field(INPUT, tensor()) + field(RAW, b"1" * 8)
    assert not check(known, learned, begin + field(RAW, b"1" * 8))
    assert not check(known, learned, other + field(RAW, b"4" * 5))
    assert not check(known, learned, begin + field(RAW, b"1" * 8) + field(ID, b"4" * 5))
