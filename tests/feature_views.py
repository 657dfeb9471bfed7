"""Feature views for tests: one of every kind of field, and strategies that make any."""

from __future__ import annotations

from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos.feature_datatypes import DTYPES
from hedgerow_protos.feature_view import parse_views
from hypothesis import strategies as st

PLANES = """
name: planes
version: 1
entity: [{name: tailnum, datatype: BYTES}]
fields:
  - {name: seats, datatype: FP32, default: 150}
  - {name: year, datatype: INT16, default: 2000}
  - {name: maker, datatype: BYTES, default: unknown}
  - {name: position, datatype: FP64, width: 2, default: [0.5, -0.5]}
ttl: 60s
stale_ttl: 1h
"""
WEATHER = """
name: weather
version: 3
entity: [{name: airport, datatype: BYTES}, {name: hour, datatype: INT64}]
fields: [{name: wind, datatype: FP32, default: 0}]
ttl: 5m
stale_ttl: 1d
max_age: 7d
"""


def planes() -> pb.FeatureView:
    """One key; a number, a whole number, a text and a vector."""
    return parse_views(PLANES, source="planes.yaml")[0]


def weather() -> pb.FeatureView:
    """A composite key of text and number, and a bound on the event time."""
    return parse_views(WEATHER, source="weather.yaml")[0]


part_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def elements(datatype: str) -> st.SearchStrategy[object]:
    """Python values that a field of a datatype holds exactly."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        return texts
    if datatype == "BOOL":
        return st.booleans()
    if dtype.kind == "f":
        return st.floats(width=dtype.itemsize * 8)
    bits = dtype.itemsize * 8
    return (
        st.integers(0, 2**bits - 1)
        if dtype.kind == "u"
        else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


@st.composite
def fields(draw: st.DrawFn, name: str) -> pb.FeatureField:
    """A field of any datatype and width, with a default that fits."""
    datatype = draw(st.sampled_from(list(DTYPES)))
    width = 1 if datatype == "BYTES" else draw(st.integers(1, 4))
    field = pb.FeatureField(name=name, datatype=datatype, width=width)
    count = draw(st.sampled_from([1, width]))
    # Defaults travel as signed 64 bits.
    values = [
        min(value, 2**63 - 1) if isinstance(value, int) else value
        for value in draw(st.lists(elements(datatype), min_size=count, max_size=count))
    ]
    if datatype == "BYTES":
        field.default.strings.extend(values)
    elif DTYPES[datatype].kind == "f":
        field.default.numbers.extend(values)
    else:
        field.default.integers.extend(int(value) for value in values)
    return field


@st.composite
def views(draw: st.DrawFn) -> pb.FeatureView:
    """Any view that keeps the rules."""
    names = draw(st.lists(part_names, min_size=2, max_size=8, unique=True))
    keys = draw(st.integers(1, min(len(names) - 1, 3)))
    ttl = draw(st.floats(0.001, 1e6))
    return pb.FeatureView(
        name=draw(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)),
        version=draw(st.integers(1, 2**31 - 1)),
        entity=[
            pb.EntityKey(name=name, datatype=draw(st.sampled_from(["BYTES", "INT64"])))
            for name in names[:keys]
        ],
        fields=[draw(fields(name)) for name in names[keys:]],
        ttl=ttl,
        stale_ttl=draw(st.floats(ttl, 1e7)),
        max_age=draw(st.sampled_from([0.0, 60.0])),
    )
