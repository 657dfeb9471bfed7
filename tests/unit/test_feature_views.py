"""Feature views: what YAML says, what is refused and how it helps, what makes two views one."""

from __future__ import annotations

import pytest
from feature_views import PLANES, planes, views, weather
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import serving_spec, yaml_message
from hedgerow_protos.feature_view import (
    ViewError,
    canonical,
    check_view,
    differences,
    dump_views,
    fingerprint,
    parse_ref,
    parse_views,
    view_ref,
)
from hypothesis import example, given
from hypothesis import strategies as st


def test_a_view_is_read_with_its_short_forms():
    view = planes()
    assert view_ref(view) == "planes@1"
    assert (view.ttl, view.stale_ttl, view.max_age) == (60, 3600, 0)
    assert list(view.fields[0].default.numbers) == [150.0]  # written as a whole number
    assert list(view.fields[1].default.integers) == [2000]
    assert list(view.fields[3].default.numbers) == [0.5, -0.5]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), ("1.5", 1.5), ("250ms", 0.25), ("60s", 60), ("5m", 300), ("7d", 604_800)],
)
def test_spans_of_time_are_seconds_or_have_a_unit(written, seconds):
    (view,) = parse_views(PLANES.replace("60s", written).replace("1h", "30d"), source="x")
    assert view.ttl == seconds


def test_a_file_may_hold_several_views():
    both = dump_views([planes(), weather()])
    assert parse_views(both, source="x") == [planes(), weather()]
    with pytest.raises(ViewError, match="planes@1 is there twice"):
        parse_views(dump_views([planes(), planes()]), source="x")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: planes", "name: Planes", "cannot name a view"),
        ("name: planes", "name: a@1", "cannot name a view"),
        ("version: 1", "version: 0", "expected 1 to"),
        ("version: 1", "version: x", "version is text; expected a whole number"),
        ("[{name: tailnum, datatype: BYTES}]", "[]", "0 entity keys; expected 1 to 8"),
        ("tailnum, datatype: BYTES", "tailnum, datatype: FP32", "expected BYTES or INT64"),
        ("name: tailnum", "name: 'tail num'", "letters, digits and '_'"),
        ("name: year", "name: seats", "seats is there twice"),
        ("name: year", "name: tailnum", "tailnum is there twice"),
        ("datatype: INT16", "datatype: int16", "expected one of BOOL, UINT8"),
        (", default: 2000", "", "field year: has no default"),
        ("default: 2000", "default: 40000", "out of the range of INT16, -32768 to 32767"),
        ("default: 2000", "default: 1.5", "the default is numbers; expected numbers that fit INT16"),
        ("default: 2000", "default: soon", "the default is text"),
        ("default: 2000", "default: {x: 1}", "unknown key"),
        ("default: 150", "default: 1.0e+60", "out of the range of FP32"),
        ("default: unknown", "default: 7", "expected text"),
        ("default: unknown", "width: 2, default: unknown", "BYTES fields are one value wide"),
        ("default: [0.5, -0.5]", "default: [1, 2, 3]", "the default has 3 values; expected 1 or 2"),
        ("default: [0.5, -0.5]", "default: []", "expected a number, text"),
        ("width: 2", "width: 9000", "larger than 65536 bytes"),
        ("ttl: 60s", "", "ttl is missing"),
        ("ttl: 60s", "ttl: soon", "expected a span of time such as 60s"),
        ("ttl: 60s", "ttl: -5", "ttl is -5 s"),
        ("stale_ttl: 1h", "stale_ttl: 5s", "stale_ttl is 5 s, below the ttl of 60 s"),
        ("stale_ttl: 1h", "stale_ttl: .inf", "stale_ttl"),
        ("stale_ttl: 1h", "stale: 1h", "unknown key 'stale'"),
    ],
)
def test_a_view_that_breaks_a_rule_is_refused_with_what_is_expected(old, new, message):
    assert old in PLANES
    text = PLANES.replace(old, new, 1) if old != "ttl: 60s" else PLANES.replace("\nttl: 60s", f"\n{new}")
    with pytest.raises((ViewError, serving_spec.SpecError)) as caught:
        parse_views(text, source="planes.yaml")
    assert str(caught.value).startswith("planes.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["planes", "planes@", "planes@0", "planes@01", "planes@-1", "@1", "a@1@2", "a@9999999999"]
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(ViewError, match="expected NAME@VERSION"):
        parse_ref(text)


@given(views())
def test_any_view_survives_yaml_and_has_one_canonical_form(view):
    check_view(view)
    (again,) = parse_views(dump_views([view]), source="dumped")
    # By text, as NaN does not equal itself.
    assert str(again) == str(canonical(view)) == str(canonical(canonical(view)))
    assert differences(view, again) == []
    assert fingerprint(view) == fingerprint(again) < 2**63


@given(st.lists(st.text(alphabet=" a\n\r\t\x85\u2028\u2029\ufeff'\"\\:#-", max_size=6), max_size=4))
@example(["\x85"])
@example(["\u2028a", "\r"])
def test_text_survives_yaml_whatever_breaks_its_lines(texts):
    """PyYAML itself writes NEL, LS and PS plainly and reads them as spaces."""
    value = {"texts": texts, **dict.fromkeys(texts, 1)}
    assert yaml_message.load(yaml_message.dump(value), source="dumped") == value


@given(views())
def test_views_survive_a_serving_spec(view):
    spec = pb.ServingSpec(features=pb.Features(views=[view]))
    again = serving_spec.parse(serving_spec.dump(spec), source="dumped").features.views[0]
    assert str(canonical(again)) == str(canonical(view))


@given(st.text())
def test_any_text_gives_views_or_one_of_two_errors(text):
    try:
        read = parse_views(text, source="x")
    except (ViewError, serving_spec.SpecError):
        return
    assert read


def test_the_fingerprint_tells_what_rows_mean_and_nothing_else():
    view, other = planes(), planes()
    other.ttl = other.stale_ttl = other.max_age = 7.0
    other.fields[0].default.numbers[0] = 1.0
    assert fingerprint(view) == fingerprint(other)
    marks = {fingerprint(view)}
    for change in (
        lambda it: setattr(it, "name", "plans"),
        lambda it: setattr(it, "version", 2),
        lambda it: setattr(it.entity[0], "datatype", "INT64"),
        lambda it: setattr(it.fields[0], "datatype", "INT32"),
        lambda it: setattr(it.fields[3], "width", 3),
        lambda it: it.fields[0].CopyFrom(it.fields[1]),
        lambda it: it.fields.pop(),
    ):
        other = planes()
        change(other)
        marks.add(fingerprint(other))
    assert len(marks) == 8


def test_differences_name_each_change():
    new = planes()
    new.ttl = 30
    new.fields[0].datatype = "FP64"
    del new.fields[1]
    new.fields.add(name="engines", datatype="INT8").default.integers.append(2)
    assert differences(planes(), new) == [
        "ttl: 60 s -> 30 s",
        "field seats: FP32 default 150.0 -> FP64 default 150.0",
        "field year: removed (was INT16 default 2000)",
        "field engines: added (INT8 default 2)",
    ]
    swapped = planes()
    swapped.fields.reverse()
    assert differences(planes(), swapped) == [
        "order of fields: seats, year, maker, position -> position, maker, year, seats"
    ]
