"""Reading CSV and Parquet files in batches: lines, oddities, and what is no such file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hedgerow.errors import RowsRefused
from hedgerow.features import files


def _read(path, wanted):
    """All batches together: lines, columns and what is bad."""
    lines, columns, bad = [], {name: [] for name in wanted}, {}
    with files.opened(path) as source:
        for batch in source.batches(wanted):
            lines += batch.lines
            bad |= batch.bad
            for name in wanted:
                columns[name] += batch.columns[name].to_pylist()
    return source.unit, lines, columns, bad


def test_lines_are_those_of_the_file_whatever_stands_between(tmp_path):
    """Empty lines, line breaks inside quotes and rows of another length do not shift them."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b,c\r\n1,"x, y",\r\n\r\n2,"two\nlines",z\r\n3\r\n4,"a ""q""",\xff\r\n')
    unit, lines, columns, bad = _read(path, ["c", "a", "b"])
    assert unit == "line"
    assert lines == [2, 5, 7]
    assert columns == {
        "a": [b"1", b"2", b"4"],
        "b": [b"x, y", b"two\nlines", b'a "q"'],
        "c": [None, b"z", b"\xff"],
    }
    assert bad == {6: "1 cell; the header has 3"}


def test_one_column_and_no_rows_will_do(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n2")
    assert _read(path, ["a"])[2] == {"a": [b"1", b"2"]}
    path.write_text("a,b\n")
    assert _read(path, ["b"])[1] == []


def test_a_quote_that_does_not_end_is_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n3,"4\n5,6\n')
    _, lines, _, bad = _read(path, ["a"])
    assert lines == [2]
    assert len(bad) == 1
    assert "not CSV" in next(iter(bad.values()))


def test_parquet_is_known_by_its_bytes_and_read_by_row(tmp_path):
    path = tmp_path / "anything"
    table = pa.table({"a": pa.array(["x", None, "x"]).dictionary_encode(), "b": [1, 2, 3], "c": [0.5, 1, 2]})
    pq.write_table(table, path, row_group_size=2)
    assert _read(path, ["b", "a"]) == ("row", [1, 2, 3], {"b": [1, 2, 3], "a": ["x", None, "x"]}, {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty; expected a header"),
        ("a.json", b"{}", "neither CSV"),
        ("a.parquet", b"PAR1 and then nothing", "a.parquet"),
        ("a.parquet", b"a,b\n1,2\n", "neither CSV"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RowsRefused, match=message):
        _read(path, ["a"])
    with pytest.raises(RowsRefused, match="No such file"):
        _read(tmp_path / "none.csv", ["a"])


def test_a_parquet_file_damaged_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(100_000))}), path, compression="none", use_dictionary=False)
    whole = bytearray(path.read_bytes())
    whole[4:40] = b"\xff" * 36
    path.write_bytes(whole)
    with pytest.raises(RowsRefused, match=r"a\.parquet"):
        _read(path, ["a"])


def test_batches_are_bounded_however_large_the_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,2\n" * 50_000)
    with files.opened(path) as source:
        sizes = [(len(batch.lines), batch.done) for batch in source.batches(["a"])]
    assert sum(size for size, _ in sizes) == 50_000
    assert max(size for size, _ in sizes) <= 20_000
    assert [done for _, done in sizes] == sorted(done for _, done in sizes)
    assert sizes[-1][1] == 1.0
