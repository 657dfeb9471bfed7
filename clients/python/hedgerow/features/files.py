"""Files of feature values, read in batches of bounded size."""

from __future__ import annotations

import contextlib
import csv
import io
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hedgerow.errors import RowsRefused

#: Of one batch; a CSV's cells are Python text of some 60 bytes each meanwhile.
_BATCH_CELLS = 200_000
_BATCH_ROWS = 20_000
_MIN_BATCH_ROWS = 250


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a file.

    Attributes:
        lines: For each row its line (CSV) or row (Parquet) in the file, from 1.
        columns: The wanted columns, missing values as nulls; a CSV's as bytes.
        bad: Rows that could not be read at all, by line.
        done: The part of the file that has been read, 0 to 1.
    """

    lines: list[int]
    columns: dict[str, pa.Array[Any]]
    bad: dict[int, str]
    done: float


@dataclass(frozen=True, slots=True)
class Source:
    """An open file.

    Attributes:
        unit: What `Batch.lines` counts: `line` or `row`.
        names: All columns that the file has.
        batches: Reads the wanted columns; the iterator may be used once.
    """

    unit: str
    names: list[str]
    batches: Callable[[Sequence[str]], Iterator[Batch]]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Opens a CSV file with a header, or a Parquet file, by its name or its first bytes.

    Raises:
        RowsRefused: It cannot be read, or is neither; here or while batches are read.
    """
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
        if not parquet and path.suffix.lower() not in (".csv", ".txt"):
            raise RowsRefused(f"{path}: neither CSV (.csv, with a header) nor Parquet")
        with (_parquet if parquet else _csv)(path) as source:
            yield source
    except OSError as error:
        raise RowsRefused(f"{path}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise RowsRefused(f"{path}: {error}") from error


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Source]:
    # Without pre-buffering a row group is read piece by piece, however large it is.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        names = list(file.schema_arrow.names)

        def batches(wanted: Sequence[str]) -> Iterator[Batch]:
            total, row = max(file.metadata.num_rows, 1), 0
            size = _batch_rows(len(wanted))
            for record in file.iter_batches(batch_size=size, columns=list(wanted), use_threads=False):
                count = record.num_rows
                yield Batch(
                    lines=list(range(row + 1, row + count + 1)),
                    columns={name: _plain(record.column(name)) for name in wanted},
                    bad={},
                    done=(row + count) / total,
                )
                row += count

        yield Source("row", names, batches)


@contextlib.contextmanager
def _csv(path: Path) -> Iterator[Source]:
    # Bytes that are no UTF-8 travel as surrogates, to be told of by line.
    with (
        path.open("rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        reader = csv.reader(file, strict=True)
        try:
            names = next(reader, [])
        except csv.Error as error:
            raise RowsRefused(f"{path}, line 1: {error}") from error
        if not names:
            raise RowsRefused(f"{path}: empty; expected a header with the names of the columns")
        size = max(os.fstat(raw.fileno()).st_size, 1)

        def batches(wanted: Sequence[str]) -> Iterator[Batch]:
            places = [names.index(name) for name in wanted]
            # Two at least: with one, itemgetter gives no tuple.
            pick = operator.itemgetter(*places, places[0])
            limit = _batch_rows(len(names))
            while True:
                rows, lines, bad = _csv_rows(reader, len(names), limit)
                if not rows and not bad:
                    return
                columns = list(zip(*map(pick, rows), strict=True)) if rows else [()] * len(wanted)
                yield Batch(
                    lines=lines,
                    columns={name: _cells(cells) for name, cells in zip(wanted, columns, strict=False)},
                    bad=bad,
                    done=min(raw.tell() / size, 1.0),
                )

        yield Source("line", names, batches)


def _csv_rows(reader: Any, width: int, limit: int) -> tuple[list[list[str]], list[int], dict[int, str]]:
    """The next rows with their lines, and the lines that are none; a row's line is its last."""
    rows: list[list[str]] = []
    lines: list[int] = []
    bad: dict[int, str] = {}
    while len(rows) + len(bad) < limit:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            bad[reader.line_num] = f"not CSV: {error}"
            continue
        if len(row) == width:
            rows.append(row)
            lines.append(reader.line_num)
        elif row:  # an empty line is nothing
            bad[reader.line_num] = f"{len(row)} cell{'s' * (len(row) != 1)}; the header has {width}"
    return rows, lines, bad


def _cells(cells: Sequence[str]) -> pa.Array[Any]:
    return pa.array(
        [cell.encode("utf-8", "surrogateescape") if cell else None for cell in cells], pa.binary()
    )


def _plain(column: pa.Array[Any]) -> pa.Array[Any]:
    """Without the encodings that only save space."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type in (pa.string_view(), pa.binary_view()):
        column = column.cast(pa.string() if column.type == pa.string_view() else pa.binary())
    return column


def _batch_rows(columns: int) -> int:
    return int(np.clip(_BATCH_CELLS // columns, _MIN_BATCH_ROWS, _BATCH_ROWS))
