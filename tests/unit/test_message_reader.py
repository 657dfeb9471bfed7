"""Messages read in a file through a small window: the same as protobuf reads, or no message at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hedgerow_protos.message_reader import I32, I64, LEN, VARINT, Field, Malformed, MessageReader
from hypothesis import example, given
from hypothesis import strategies as st

#: Contents about as large as the window, so that fields lie across its ends.
contents = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 40_000).map(lambda size: bytes(index % 251 for index in range(size))),
)
fields = st.lists(
    st.tuples(
        st.integers(1, (1 << 29) - 1),
        st.one_of(
            st.tuples(st.just(VARINT), st.integers(0, (1 << 64) - 1)),
            st.tuples(st.just(I64), st.binary(min_size=8, max_size=8)),
            st.tuples(st.just(I32), st.binary(min_size=4, max_size=4)),
            st.tuples(st.just(LEN), contents),
        ),
    ),
    max_size=12,
)


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def message(said: list[tuple[int, tuple[int, int | bytes]]]) -> bytes:
    encoded = b""
    for number, (kind, value) in said:
        encoded += varint(number << 3 | kind)
        if isinstance(value, int):
            encoded += varint(value)
        else:
            encoded += (varint(len(value)) if kind == LEN else b"") + value
    return encoded


@contextmanager
def reading(content: bytes, **limits: int) -> Iterator[MessageReader]:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(content)
        yield MessageReader(file.fileno(), **limits)


def value_of(reader: MessageReader, field: Field) -> int | bytes:
    if field.kind == VARINT:
        return reader.varint(field.value)[0]
    return reader.take(field.value, field.end - field.value)


def as_protobuf_reads(content: bytes) -> list[tuple[int, tuple[int, int | bytes]]]:
    """Raises DecodeError."""
    said: list[tuple[int, tuple[int, int | bytes]]] = []
    for field in UnknownFieldSet(Empty.FromString(content)):
        value = field.data
        if field.wire_type in (I64, I32):
            value = value.to_bytes(8 if field.wire_type == I64 else 4, "little")
        said.append((field.field_number, (field.wire_type, value)))
    return said


@given(said=fields, before=contents, behind=contents)
def test_fields_are_where_they_were_written_and_hold_what_was_written(said, before, behind):
    """Wherever in the file the message lies."""
    content = message(said)
    with reading(before + content + behind) as reader:
        end = len(before) + len(content)
        found = list(reader.fields(len(before), end))
        assert [(field.number, (field.kind, value_of(reader, field))) for field in found] == said
        assert [field.start for field in found] == [len(before), *(field.end for field in found)][: len(said)]
        assert not found or found[-1].end == end
        held = [
            (number, reader.take(begin, stop - begin))
            for number, begin, stop in reader.contents(len(before), end)
        ]
        assert held == [(number, value) for number, (kind, value) in said if kind == LEN]


@given(said=fields, place=st.integers(0, 1 << 20), byte=st.integers(0, 255), cut=st.integers(0, 60))
@example(said=[(1, (VARINT, 1))], place=0, byte=0x0B, cut=0)
def test_a_damaged_message_is_read_as_protobuf_reads_it_or_malformed(said, place, byte, cut):
    content = bytearray(message(said))
    if content:
        content[place % len(content)] = byte
    content = content[: len(content) - cut]
    try:
        expected = as_protobuf_reads(bytes(content))
    except DecodeError:
        expected = None
    with reading(bytes(content)) as reader:
        try:
            found = [
                (field.number, (field.kind, value_of(reader, field)))
                for field in reader.fields(0, len(content))
            ]
        except Malformed:
            # Groups are left out on purpose.
            assert expected is None or any(kind == 3 for _, (kind, _) in expected)
        else:
            # More than 32 bits of a tag, 64 of a number, 2 GB of a field, the field 0: protobuf is stricter.
            assert expected is None or found == expected


@given(st.binary(max_size=200))
def test_bytes_that_are_none_end_as_malformed_or_cover_all(content):
    """No error of another kind, no field outside, none that overlaps."""
    with reading(content) as reader:
        position = 0
        try:
            for field in reader.fields(0, len(content)):
                assert position == field.start < field.value <= field.end <= len(content)
                position = field.end
        except Malformed:
            return
        assert position == len(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80" * 10 + b"\x01",  # a number that does not end
        b"\x08",  # a number that is missing
        b"\x0a\x05four",  # a text that ends too early
        b"\x0a" + varint(1 << 63),
        b"\x09short",
        b"\x0dsh",
        b"\x0b\x0c",  # a group
        b"\x0e",  # a wire type that does not exist
    ],
)
def test_what_is_cut_off_or_unknown_is_malformed(content):
    with reading(content) as reader, pytest.raises(Malformed):
        list(reader.fields(0, len(content)))


def test_a_field_never_reaches_behind_its_message_although_the_file_goes_on():
    inner = b"\x0a\x03abc"
    with reading(inner + b"more") as reader:
        with pytest.raises(Malformed):
            list(reader.fields(0, len(inner) - 1))
        assert list(reader.contents(0, len(inner))) == [(1, 2, 5)]


def test_no_more_fields_are_read_than_permitted_over_all_messages():
    content = message([(1, (VARINT, 7))] * 6)
    with reading(content, most_fields=10) as reader:
        assert len(list(reader.fields(0, len(content)))) == 6
        assert len(list(reader.fields(0, 8))) == 4
        with pytest.raises(Malformed):
            next(reader.fields(0, 2))


def test_what_is_stepped_over_is_not_read(monkeypatch: pytest.MonkeyPatch):
    """A message of 64 GB, in a file of holes."""
    large = (1 << 36) + 5
    head = varint(9 << 3 | LEN) + varint(large)
    end = len(head) + large + 2
    sizes: list[int] = []
    pread = os.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        sizes.append(count)
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(head)
        file.seek(len(head) + large)
        file.write(b"\x08\x01")
        found = list(MessageReader(file.fileno()).fields(0, end))
    assert [(field.number, field.start, field.end) for field in found] == [
        (9, 0, len(head) + large),
        (1, len(head) + large, end),
    ]
    assert sum(sizes) < 1 << 17


def test_a_text_keeps_what_is_not_utf8_as_file_names_do():
    with reading("wörter".encode() + b"\xff") as reader:
        assert os.fsencode(reader.text(0, reader.size)) == "wörter".encode() + b"\xff"
