"""What hedging says in metadata: pushback, previous attempts and load."""

from __future__ import annotations

import math

import pytest
from hedgerow_protos.hedging import (
    LONGEST_PUSHBACK,
    read_load,
    read_previous_attempts,
    read_pushback,
    write_load,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("250", 0.25),
        (b"250", 0.25),
        ("999999999", LONGEST_PUSHBACK),
        ("-1", math.inf),
        ("-0", 0.0),
        ("soon", math.inf),
        ("", math.inf),
        ("1.5", math.inf),
        (b"\xff", math.inf),
        ("9" * 5000, math.inf),
    ],
)
def test_pushback(said, seconds):
    """What is no number of milliseconds means never, as gRFC A6 has it."""
    assert read_pushback(said) == seconds


@given(st.one_of(st.text(), st.binary()))
def test_pushback_is_never_a_surprise(said):
    found = read_pushback(said)
    assert found == math.inf or 0 <= found <= LONGEST_PUSHBACK


@pytest.mark.parametrize(("said", "count"), [("0", 0), ("2", 2), (b"3", 3), ("-4", 0), ("many", 1), ("", 1)])
def test_previous_attempts(said, count):
    assert read_previous_attempts(said) == count


@given(st.floats(0, 1000))
def test_load_is_read_as_it_was_written(utilization):
    assert read_load(write_load(utilization)) == pytest.approx(utilization, abs=0.001)
    assert read_load(write_load(utilization).encode()) == pytest.approx(utilization, abs=0.001)


@given(st.one_of(st.none(), st.text(), st.binary()))
def test_load_is_never_a_surprise(said):
    found = read_load(said)
    assert found is None or (math.isfinite(found) and found >= 0)


@pytest.mark.parametrize(
    ("said", "load"),
    [
        ("TEXT cpu_utilization=0.1,application_utilization=0.5", 0.5),
        ("text application_utilization = 0.5", 0.5),
        ("TEXT application_utilization=-1", None),
        ("TEXT application_utilization=nan", None),
        ("TEXT application_utilization", None),
        ('JSON {"application_utilization": 0.5}', None),
    ],
)
def test_load_in_the_text_format_of_orca(said, load):
    assert read_load(said) == load
