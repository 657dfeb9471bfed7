"""Columns of files as columns of views: what is read, what is refused, and at which row."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from feature_views import planes, weather
from hedgerow.features import columns
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.feature_entity import EntityCodec
from hypothesis import given
from hypothesis import strategies as st

LATEST = 2**62


def _field(datatype: str, width: int = 1, default: float | str = 7) -> pb.FeatureField:
    field = pb.FeatureField(name="f", datatype=datatype, width=width)
    kind = {str: field.default.strings, int: field.default.integers, float: field.default.numbers}[
        type(default)
    ]
    kind.append(default)
    return field


def _cells(*cells: str | bytes | None) -> pa.Array:
    """As a CSV's column comes: bytes, nothing for an empty cell."""
    return pa.array([cell.encode() if isinstance(cell, str) else cell for cell in cells], pa.binary())


@pytest.mark.parametrize(
    ("column", "datatype", "values"),
    [
        (_cells("1", " 2.5 ", "-1e3", "nan", "inf"), "FP32", [1, 2.5, -1000, np.nan, np.inf]),
        (_cells("1", "3.0", " -7"), "INT16", [1, 3, -7]),
        (_cells("true", "0", "FALSE"), "BOOL", [True, False, False]),
        (_cells("18446744073709551615"), "UINT64", [2**64 - 1]),
        (pa.array([1, 2]), "FP64", [1.0, 2.0]),
        (pa.array([1.0, 2.0]), "INT8", [1, 2]),
        (pa.array([True, False]), "FP32", [1.0, 0.0]),
        (pa.array(["1", "2"]), "INT32", [1, 2]),
        (pa.array(["5", "5"]).dictionary_encode().dictionary_decode(), "UINT8", [5, 5]),
    ],
)
def test_numbers_are_read_from_what_says_them(column, datatype, values):
    bad: columns.Bad = {}
    read, missing = columns.numbers(column, _field(datatype), bad)
    assert not bad
    assert missing == 0
    assert read.dtype == columns.DTYPES[datatype]
    np.testing.assert_array_equal(read, np.asarray(values, read.dtype))


def test_what_is_missing_is_the_default_and_counted():
    read, missing = columns.numbers(_cells("1", None, "3"), _field("FP32"), {})
    assert (read.tolist(), missing) == ([1, 7, 3], 1)
    said, missing = columns.texts(_cells("a", None), _field("BYTES", default="none"), {})
    assert (said, missing) == (["a", "none"], 1)


@pytest.mark.parametrize(
    ("cell", "datatype", "reason"),
    [
        ("x", "FP32", "f is 'x'; expected FP32"),
        ("1e60", "FP32", "out of the range of FP32"),
        ("70000", "FP16", "out of the range of FP16"),
        ("1.5", "INT32", "expected INT32"),
        ("300", "INT8", "expected INT8"),
        ("-1", "UINT8", "expected UINT8"),
        ("yes", "BOOL", "expected BOOL"),
        (b"\xff1", "FP32", "expected FP32"),
        ("1_0", "INT64", "expected INT64"),
    ],
)
def test_a_bad_number_is_told_by_its_row_alone(cell, datatype, reason):
    bad: columns.Bad = {}
    columns.numbers(_cells("1", "0", cell, None, "1"), _field(datatype, default=1), bad)
    assert list(bad) == [2]
    assert reason in bad[2]


@given(
    st.lists(st.one_of(st.integers(-999, 999).map(str), st.sampled_from(["x", "1.5", "9" * 30])), max_size=40)
)
def test_every_bad_row_is_found_and_no_good_one_is(cells):
    bad: columns.Bad = {}
    read, _ = columns.numbers(_cells(*cells), _field("INT32"), bad)
    good = {row: int(cell) for row, cell in enumerate(cells) if cell.lstrip("-").isdigit() and len(cell) < 10}
    assert set(bad) == set(range(len(cells))) - set(good)
    assert all(read[row] == value for row, value in good.items())


@pytest.mark.parametrize(
    "column",
    [
        _cells("[1, 2]", None, "[3, 4.5]"),
        pa.array([[1, 2], None, [3, 4.5]]),
        pa.array([[1, 2], [7, 7], [3, 4.5]], pa.list_(pa.float32(), 2)),
    ],
)
def test_vectors_are_lists_or_text_that_says_a_list(column):
    bad: columns.Bad = {}
    read, missing = columns.numbers(column, _field("FP32", width=2), bad)
    assert not bad
    assert read.tolist() == [[1, 2], [7, 7], [3, 4.5]]
    assert missing == column.null_count


def test_a_vector_of_another_width_or_with_gaps_is_bad():
    bad: columns.Bad = {}
    columns.numbers(
        _cells("[1]", "[1, 2]", "[1, null]", "1, 2", '["a", 2]', "[1, 1e60]"), _field("FP32", 2), bad
    )
    assert sorted(bad) == [0, 2, 3, 4, 5]
    assert "expected a list of 2 numbers" in bad[0]
    assert "empty element" in bad[2]


def test_text_is_utf8_and_not_too_long():
    bad: columns.Bad = {}
    columns.texts(_cells("fine", b"\xff", "x" * 5000), _field("BYTES", default=""), bad)
    assert bad == {
        1: "f is '\\\\xff'; expected UTF-8 text",
        2: "f has more than 4096 bytes of text",
    }


@pytest.mark.parametrize(
    ("column", "datatype"),
    [
        (pa.array([dt.datetime(2020, 1, 1, tzinfo=dt.UTC)]), "INT64"),
        (pa.array([1, 2]), "BOOL"),
        (pa.array([[1]]), "FP32"),
        (pa.array([1]), "BYTES"),
    ],
)
def test_a_column_of_another_kind_is_refused_whole(column, datatype):
    read = columns.texts if datatype == "BYTES" else columns.numbers
    with pytest.raises(columns.ColumnError, match="column f is"):
        read(column, _field(datatype, default="" if datatype == "BYTES" else 7), {})


NOON_US = 1_577_880_000_000_000


@pytest.mark.parametrize(
    "column",
    [
        _cells("2020-01-01 12:00:00", "2020-01-01T12:00:00.000000"),
        _cells("2020-01-01T12:00:00Z", "2020-01-01 13:00:00+01:00"),
        _cells("2020-01-01T12:00:00", "2020-01-01T12:00:00Z"),
        pa.array([NOON_US] * 2, pa.timestamp("us")),
        pa.array([NOON_US * 1000 + 999] * 2, pa.timestamp("ns", "America/New_York")),
    ],
)
def test_event_times_are_utc_unless_they_say_otherwise(column):
    bad: columns.Bad = {}
    assert columns.event_times(column, "at", LATEST, bad).tolist() == [NOON_US, NOON_US]
    assert not bad


def test_event_times_that_are_none_or_lie_in_the_future_are_bad():
    bad: columns.Bad = {}
    cells = _cells(
        "2020-01-01T11:59:59Z", None, "soon", "2020-01-01T12:00:00Z", "2020-01-02T12:00:01Z", "1577880000"
    )
    columns.event_times(cells, "at", NOON_US, bad)
    assert sorted(bad) == [1, 2, 4, 5]
    assert bad[1] == "at is empty; expected an event time"
    assert "expected ISO 8601" in bad[2]
    assert "lies in the future, by 24 hours too much" in bad[4]
    with pytest.raises(columns.ColumnError, match="event times are timestamps"):
        columns.event_times(pa.array([1577880000]), "at", LATEST, {})


def test_ids_are_encoded_and_bad_ones_told_by_row():
    view = weather()
    bad: columns.Bad = {}
    airports = _cells("EWR", None, "x" * 600, "JFK", b"\xff")
    hours = pa.array([5.0, 6, 7, None, 9])
    ids = columns.entity_ids([airports, hours], list(view.entity), EntityCodec(view), bad)
    assert (ids[0], ids[4]) == (b"EWR|5", b"\xff|9")
    assert sorted(bad) == [1, 2, 3]
    assert "airport is empty" in bad[1]
    assert "at most 512" in bad[2]
    assert "hour is empty" in bad[3]


def test_ids_of_another_kind_are_refused_whole():
    view = planes()
    with pytest.raises(columns.ColumnError, match="tailnum is BYTES and takes text"):
        columns.entity_ids([pa.array([1])], list(view.entity), EntityCodec(view), {})
