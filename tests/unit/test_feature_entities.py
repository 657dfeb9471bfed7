"""Entity ids: one encoding for each entity, and one entity for each encoding."""

from __future__ import annotations

import numpy as np
import pytest
from feature_views import planes, weather
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.feature_entity import MAX_ID_BYTES, EntityCodec, EntityError
from hypothesis import example, given
from hypothesis import strategies as st

#: Mostly what could be mistaken for structure.
awkward = st.lists(
    st.sampled_from([b"|", b"\\", b"a", b"1", b"\x00", b"\xff", b"@", b":"]), min_size=1, max_size=6
)
texts = st.one_of(awkward.map(b"".join), st.binary(min_size=1, max_size=30))
integers = st.integers(-(2**63), 2**63 - 1)


def _codec(datatypes: tuple[str, ...]) -> EntityCodec:
    keys = [pb.EntityKey(name=f"k{i}", datatype=datatype) for i, datatype in enumerate(datatypes)]
    return EntityCodec(pb.FeatureView(name="v", version=1, entity=keys))


entities = st.lists(st.sampled_from(["BYTES", "INT64"]), min_size=1, max_size=4).flatmap(
    lambda datatypes: st.tuples(
        st.just(tuple(datatypes)),
        *(st.tuples(*(texts if one == "BYTES" else integers for one in datatypes)) for _ in range(2)),
    )
)


@given(entities)
def test_an_entity_has_one_encoding_and_shares_it_with_no_other(drawn):
    datatypes, one, other = drawn
    codec = _codec(datatypes)
    assert codec.decode(codec.encode(one)) == one
    assert (codec.encode(one) == codec.encode(other)) == (one == other)


@given(st.binary(min_size=1, max_size=20))
@example(b"a\\")
@example(b"a|05")
@example(b"a|-0")
def test_bytes_are_the_one_encoding_of_an_entity_or_are_refused(junk):
    codec = _codec(("BYTES", "INT64"))
    try:
        parts = codec.decode(junk)
    except EntityError:
        return
    assert codec.encode(parts) == junk


@given(st.lists(st.tuples(texts, integers), max_size=20))
def test_columns_are_encoded_as_rows_are(rows):
    codec = _codec(("BYTES", "INT64"))
    columns = [[row[0] for row in rows], [row[1] for row in rows]]
    assert codec.encode_columns(columns) == [codec.encode(row) for row in rows]


def test_ids_are_readable_where_they_lie():
    assert EntityCodec(planes()).encode(["N|14228"]) == b"N|14228"  # one key: nothing to escape
    assert EntityCodec(weather()).encode(["EWR", 5]) == b"EWR|5"
    assert EntityCodec(weather()).encode(["E|W\\R", -5]) == b"E\\|W\\\\R|-5"


def test_text_bytes_and_numpys_numbers_will_do():
    codec = EntityCodec(weather())
    assert codec.encode(["EWR", np.int32(5)]) == codec.encode([b"EWR", 5])
    assert EntityCodec(planes()).encode(["é"]) == "é".encode()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["", 5], "airport is empty"),
        ([7, 5], "airport is int; expected text"),
        ([None, 5], "airport is NoneType; expected text"),
        (["EWR", "5"], "hour is str; expected a whole number"),
        (["EWR", 5.0], "hour is float; expected a whole number"),
        (["EWR", True], "hour is true or false"),
        (["EWR", 2**63], "fits INT64"),
        (["x" * MAX_ID_BYTES, 5], "at most 512"),
        (["|" * 256, 5], "an id of 514 bytes"),
        (["EWR"], "1 key parts; expected 2: airport, hour"),
        (["EWR", 5, 6], "3 key parts"),
    ],
)
def test_what_names_no_entity_is_refused_by_view_and_key(parts, message):
    with pytest.raises(EntityError, match="weather@3") as caught:
        EntityCodec(weather()).encode(parts)
    assert message in str(caught.value)


def test_the_row_is_told_where_there_are_several():
    with pytest.raises(EntityError, match="planes@1: row 2: tailnum is empty"):
        EntityCodec(planes()).encode_columns([["a", "b", ""]])
    with pytest.raises(EntityError, match="planes@1: row 1: an id of 513 bytes"):
        EntityCodec(planes()).encode_columns([["a", "x" * 513]])


@pytest.mark.parametrize("length", [1, MAX_ID_BYTES - 1, MAX_ID_BYTES])
def test_an_id_may_be_as_long_as_the_limit(length):
    assert len(EntityCodec(planes()).encode(["x" * length])) == length
