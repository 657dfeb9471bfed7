"""Rows and cached values: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from feature_views import elements, planes, views, weather
from hedgerow_protos.feature_row import CacheCodec, Cached, RowError, RowLayout
from hedgerow_protos.feature_view import fingerprint
from hedgerow_protos.hedgerow_control_pb2 import FeatureView
from hypothesis import given
from hypothesis import strategies as st


def _same(one: object, other: object) -> bool:
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return one == other


@given(st.data())
def test_any_values_come_back_from_their_row(data):
    view = data.draw(views())
    values = {
        field.name: data.draw(
            elements(field.datatype)
            if field.width <= 1
            else st.lists(elements(field.datatype), min_size=field.width, max_size=field.width)
        )
        for field in view.fields
    }
    layout = RowLayout(view)
    row = layout.pack(values)
    assert layout.fits(row)
    back = layout.unpack(row)
    assert back.keys() == values.keys()
    assert all(_same(back[name], values[name]) for name in values)


def test_a_row_lies_as_documented():
    """Numbers in the view's order without padding, little-endian; texts behind them."""
    row = RowLayout(planes()).pack({"seats": 1.0, "year": -2, "maker": "é", "position": [1.0, 2.0]})
    assert row == (
        np.float32(1).tobytes()
        + b"\xfe\xff"
        + np.float64(1).tobytes()
        + np.float64(2).tobytes()
        + b"\x02\x00\x00\x00"
        + "é".encode()
    )


def test_many_rows_are_the_same_as_one_by_one():
    layout = RowLayout(planes())
    rows = layout.pack_columns(
        {
            "seats": np.float32([1, 2]),
            "year": np.int16([3, 4]),
            "maker": ["a", "bc"],
            "position": np.float64([[5, 6], [7, 8]]),
        },
        2,
    )
    assert rows[1] == layout.pack({"seats": 2, "year": 4, "maker": "bc", "position": [7, 8]})
    assert layout.unpack(rows[0])["position"] == [5.0, 6.0]


def test_the_default_row_holds_the_defaults():
    layout = RowLayout(planes())
    assert layout.unpack(layout.default_row) == {
        "seats": 150.0,
        "year": 2000,
        "position": [0.5, -0.5],
        "maker": "unknown",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seats": 1.0}, "no value for the field"),
        ({"seats": "x", "year": 1, "maker": "", "position": [0, 0]}, "field seats"),
        ({"seats": 1, "year": 10**6, "maker": "", "position": [0, 0]}, "field year"),
        ({"seats": 1, "year": 1, "maker": 5, "position": [0, 0]}, "field maker: int; expected text"),
        ({"seats": 1, "year": 1, "maker": "x" * 5000, "position": [0, 0]}, "at most 4096"),
        ({"seats": 1, "year": 1, "maker": "", "position": [0, 0, 0]}, "field position"),
    ],
)
def test_values_that_make_no_row_are_refused(values, message):
    with pytest.raises(RowError, match=message):
        RowLayout(planes()).pack(values)


@given(st.binary(max_size=80))
def test_bytes_are_a_row_or_are_refused(junk):
    layout = RowLayout(planes())
    if layout.fits(junk):
        layout.unpack(junk)
    else:
        with pytest.raises(RowError):
            layout.unpack(junk)


micros = st.integers(-(2**63), 2**63 - 1)


@given(views(), micros, micros)
def test_a_cached_value_comes_back(view, confirmed, event_time):
    codec, row = CacheCodec(view), RowLayout(view).default_row
    assert codec.unpack(codec.pack(confirmed, event_time, row)) == Cached(confirmed, event_time, row)
    assert codec.unpack(codec.pack(confirmed, event_time, None)) == Cached(confirmed, 0, None)


@given(st.data(), st.booleans())
def test_a_damaged_value_is_no_value(data, present):
    """Cut, lengthened, or with any one bit turned."""
    codec = CacheCodec(planes())
    value = codec.pack(1, 2, RowLayout(planes()).default_row if present else None)
    bit = data.draw(st.integers(0, len(value) * 8 - 1))
    turned = bytearray(value)
    turned[bit // 8] ^= 1 << (bit % 8)
    assert codec.unpack(bytes(turned)) is None
    assert codec.unpack(value[: data.draw(st.integers(0, len(value) - 1))]) is None
    assert codec.unpack(value + data.draw(st.binary(min_size=1, max_size=9))) is None


@given(st.binary(max_size=200))
def test_what_others_wrote_is_no_value(junk):
    assert CacheCodec(planes()).unpack(junk) is None


def test_a_value_of_another_view_or_layout_is_no_value():
    value = CacheCodec(planes()).pack(1, 2, RowLayout(planes()).default_row)
    second = planes()
    second.version = 2
    renamed = planes()
    renamed.fields[0].name = "chairs"
    for other in (second, renamed, weather()):
        assert CacheCodec(other).unpack(value) is None
    assert CacheCodec(planes()).unpack(value) is not None


def _read(view: FeatureView, value: bytes) -> Cached | None:
    """A cached value read field by field, as the module's page says it lies."""
    head, checksum, body = value[:4], value[4:8], value[8:]
    mine, confirmed, event_time, row = body[:8], body[8:16], body[16:24], body[24:]
    if head not in (b"HF\1\0", b"HF\1\1") or len(event_time) < 8:
        return None
    if int.from_bytes(mine, "little") != fingerprint(view):
        return None
    if zlib.crc32(body, head[3]).to_bytes(4, "little") != checksum:
        return None
    if head[3] == 0 and row:
        return None
    if head[3] == 1:
        try:
            RowLayout(view).unpack(row)
        except RowError:
            return None
    times = [int.from_bytes(time, "little", signed=True) for time in (confirmed, event_time)]
    return Cached(times[0], times[1], row if head[3] else None)


def _signed(head: bytes, body: bytes) -> bytes:
    return head + zlib.crc32(body, head[3]).to_bytes(4, "little") + body


@st.composite
def _found(draw: st.DrawFn, view: FeatureView) -> bytes | None:
    """What a cache may hold under a key: a value, perhaps cut, longer or with a bit turned; or foreign."""
    codec, row = CacheCodec(view), RowLayout(view).default_row
    value = codec.pack(draw(micros), draw(micros), draw(st.sampled_from([row, row, None])))
    match draw(st.integers(0, 9)):
        case 0:
            return None
        case 1:
            return value[: draw(st.integers(0, len(value) - 1))]
        case 2:
            return value + draw(st.binary(min_size=1, max_size=40))
        case 3:
            bit = draw(st.integers(0, len(value) * 8 - 1))
            turned = bytearray(value)
            turned[bit // 8] ^= 1 << (bit % 8)
            return bytes(turned)
        case 4:
            return draw(st.binary(max_size=80))
        case 5:
            return CacheCodec(draw(st.sampled_from([planes(), weather()]))).pack(1, 2, row)
        case 6:
            # Right in all but its length or its texts.
            return _signed(value[:4], value[8:32] + draw(st.binary(max_size=40)))
        case 7:
            return _signed(draw(st.sampled_from([b"HF\1\2", b"HF\2\1", b"HE\1\1"])), value[8:])
        case _:
            return value


@given(st.data())
def test_many_values_are_read_in_one_pass_as_each_by_itself(data):
    view = data.draw(st.sampled_from([planes(), weather()]))
    codec = CacheCodec(view)
    values = data.draw(st.lists(_found(view), max_size=12))
    expected = [None if value is None else _read(view, value) for value in values]
    assert codec.unpack_all(values) == expected
    assert [None if value is None else codec.unpack(value) for value in values] == expected


def test_keys_are_by_view_version_and_entity():
    assert CacheCodec(planes()).key(b"N1") == b"hedgerow:features:planes@1:N1"
    assert CacheCodec(weather()).keys([b"EWR|5"]) == [b"hedgerow:features:weather@3:EWR|5"]
