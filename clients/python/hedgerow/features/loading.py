"""A file of feature values into the store: whole, or not at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hedgerow_protos.feature_entity import EntityCodec
from hedgerow_protos.feature_row import RowLayout
from hedgerow_protos.feature_view import view_ref
from hedgerow_protos.hedgerow_control_pb2 import FeatureView

from hedgerow.errors import RowsRefused
from hedgerow.features import columns, files
from hedgerow.features.store import Store

#: Clocks differ a little; an event time further ahead of the store's clock is a mistake.
CLOCK_SKEW_SECONDS = 60.0
#: Bad rows that are told of; all are counted.
BAD_ROWS_SHOWN = 20
#: For the one statement that moves the rows from the temporary table; an hour is a billion rows.
_UPSERT_SECONDS = 3600.0

#: Called as the work goes on: what is done now, how many rows so far, and the part of the file, 0 to 1.
Progress = Callable[[str, int, float], None]

_STAGING = """
    CREATE TEMPORARY TABLE feature_load (
        place bigint NOT NULL, entity_id bytea NOT NULL, "values" bytea NOT NULL, event_us bigint NOT NULL
    ) ON COMMIT {on_commit}
"""

# Newer event time wins; of equal ones the later load does, and within a file the later row. Sorted
# by entity, so that two loads take their locks in one order. A row that says nothing new is left alone.
_UPSERT = """
    INSERT INTO feature_values AS old (view, version, entity_id, "values", event_time)
    SELECT $1, $2, entity_id, "values",
           timestamptz 'epoch' + event_us * interval '1 microsecond'
    FROM (
        SELECT DISTINCT ON (entity_id) entity_id, "values", event_us
        FROM feature_load ORDER BY entity_id, event_us DESC, place DESC
    ) AS latest
    ON CONFLICT (view, version, entity_id) DO UPDATE
    SET "values" = excluded."values", event_time = excluded.event_time
    WHERE excluded.event_time > old.event_time
       OR (excluded.event_time = old.event_time AND excluded."values" <> old."values")
"""


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """What a load did.

    Attributes:
        view: `name@version`.
        rows: Read from the file.
        written: Entities that are new, or have newer values now.
        kept: Rows without effect: an entity's older rows, and those that say what the store knew.
        defaults: Empty cells, which took their field's default, by field.
        seconds: What it took.
        warmed: Entities written to the cache; None: no cache was to be warmed.
    """

    view: str
    rows: int
    written: int
    kept: int
    defaults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    warmed: int | None = None

    @property
    def rows_per_second(self) -> float:
        """Rows of the file over the whole time."""
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class _Checked:
    """A batch, ready for COPY."""

    records: list[tuple[int, bytes, bytes, int]]
    bad: list[tuple[int, str]]
    defaults: dict[str, int]
    rows: int
    done: float


async def load(
    store: Store,
    view: FeatureView,
    path: Path,
    *,
    event_time: str = "event_time",
    at: dt.datetime | None = None,
    keep_staged: bool = False,
    progress: Progress | None = None,
) -> LoadedRows:
    """Loads a file in one transaction; memory does not grow with it.

    Args:
        store: Where the view is.
        view: From that store.
        path: CSV with a header, or Parquet, with a column for each entity key and field.
        event_time: The column that says when a row became true.
        at: One event time for all rows, in place of the column.
        keep_staged: Keep the temporary table `feature_load` for the rest of the connection.
        progress: Called as the work goes on.

    Raises:
        RowsRefused: The file cannot be read, lacks a column, or has bad rows; nothing was loaded.
        StoreError: The store failed; nothing was loaded, unless it broke off while it was told to commit.
    """
    began = time.monotonic()
    say = progress or (lambda stage, rows, done: None)  # noqa: ARG005 - the names a callback sees
    ref = view_ref(view)
    connection = store.connection
    with files.opened(path) as source:
        wanted = _wanted(view, source.names, path, None if at else event_time)
        with store.errors():
            async with connection.transaction():
                latest = await _lock_view(store, view)
                if at is not None and at.timestamp() * 1e6 > latest:
                    raise RowsRefused(
                        f"the event time {at.isoformat()} lies in the future of the store's clock"
                    )
                await connection.execute(
                    _STAGING.format(on_commit="PRESERVE ROWS" if keep_staged else "DROP")
                )
                checker = _Checker(view, event_time, at, latest)
                rows, defaults = await _stage(store, source, wanted, checker, say)
                say("upsert", rows, 1.0)
                await connection.execute(f"SET LOCAL statement_timeout = {int(_UPSERT_SECONDS * 1000)}")
                await connection.execute("SET LOCAL work_mem = '64MB'")
                tag = await connection.execute(_UPSERT, view.name, view.version, timeout=_UPSERT_SECONDS)
                say("commit", rows, 1.0)
    written = int(tag.rpartition(" ")[2])
    return LoadedRows(ref, rows, written, rows - written, defaults, time.monotonic() - began)


async def _stage(
    store: Store, source: files.Source, wanted: list[str], checker: _Checker, say: Progress
) -> tuple[int, dict[str, int]]:
    """Copies all rows into the temporary table; rows, and empty cells by field.

    Raises:
        RowsRefused: There are bad rows. All are counted, and once there is one nothing is copied.
    """
    shown: list[tuple[int, str]] = []
    bad_count = rows = 0
    defaults: dict[str, int] = {}
    batches = source.batches(wanted)
    # A thread reads and checks the next batch while PostgreSQL takes this one.
    following = asyncio.create_task(asyncio.to_thread(_next, batches, checker))
    try:
        while (checked := await following) is not None:
            following = asyncio.create_task(asyncio.to_thread(_next, batches, checker))
            rows += checked.rows
            bad_count += len(checked.bad)
            shown += checked.bad[: BAD_ROWS_SHOWN - len(shown)]
            for name, count in checked.defaults.items():
                defaults[name] = defaults.get(name, 0) + count
            if not bad_count and checked.records:
                await store.connection.copy_records_to_table("feature_load", records=checked.records)
            say("read", rows, checked.done)
    finally:
        # The file must not be closed under the thread's hands.
        await asyncio.gather(following, return_exceptions=True)
    if bad_count:
        raise _refusal(shown, bad_count, rows, source.unit)
    return rows, defaults


def _next(batches: Iterator[files.Batch], checker: _Checker) -> _Checked | None:
    batch = next(batches, None)
    return None if batch is None else checker.check(batch)


class _Checker:
    """Batches of a file into rows of a view."""

    def __init__(self, view: FeatureView, event_time: str, at: dt.datetime | None, latest_us: int) -> None:
        self._view = view
        self._codec = EntityCodec(view)
        self._layout = RowLayout(view)
        self._event_time = event_time
        self._at = at
        self._latest_us = latest_us

    def check(self, batch: files.Batch) -> _Checked:
        bad: columns.Bad = {}
        defaults: dict[str, int] = {}
        values: dict[str, Any] = {}
        count = len(batch.lines)
        try:
            keys = list(self._view.entity)
            ids = columns.entity_ids([batch.columns[key.name] for key in keys], keys, self._codec, bad)
            for one in self._view.fields:
                read = columns.texts if one.datatype == "BYTES" else columns.numbers
                values[one.name], missing = read(batch.columns[one.name], one, bad)
                if missing:
                    defaults[one.name] = missing
            if self._at is None:
                column = batch.columns[self._event_time]
                times = columns.event_times(column, self._event_time, self._latest_us, bad)
            else:
                times = np.full(count, int(self._at.timestamp() * 1_000_000), np.int64)
        except columns.ColumnError as error:
            raise RowsRefused(str(error)) from error
        reasons = sorted([(batch.lines[row], why) for row, why in bad.items()] + list(batch.bad.items()))
        records = [] if reasons else self._records(batch.lines, ids, values, times.tolist())
        return _Checked(records, reasons, defaults, count + len(batch.bad), batch.done)

    def _records(
        self, lines: list[int], ids: list[bytes], values: dict[str, Any], times: list[int]
    ) -> list[tuple[int, bytes, bytes, int]]:
        rows = self._layout.pack_columns(values, len(lines))
        return list(zip(lines, ids, rows, times, strict=True))


async def _lock_view(store: Store, view: FeatureView) -> int:
    """Keeps the view as it is meanwhile; the latest event time to be believed, microseconds since 1970."""
    now = await store.connection.fetchval(
        "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM feature_views"
        " WHERE name = $1 AND version = $2 FOR KEY SHARE",
        view.name,
        view.version,
    )
    return int(now + CLOCK_SKEW_SECONDS * 1_000_000)


def _wanted(view: FeatureView, names: list[str], path: Path, event_time: str | None) -> list[str]:
    wanted = [*(key.name for key in view.entity), *(one.name for one in view.fields)]
    if event_time is not None:
        wanted.append(event_time)
    if missing := [name for name in wanted if name not in names]:
        hint = ""
        if event_time in missing:
            hint = "; name the column of event times with --event-time, or give one time for all with --at"
        raise RowsRefused(
            f"{path} has no column {', '.join(map(repr, missing[:10]))} ({view_ref(view)} needs it);"
            f" it has {', '.join(names[:50])}{hint}"
        )
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise RowsRefused(f"{path} has more than one column {twice[0]!r}")
    return wanted


def _refusal(shown: list[tuple[int, str]], bad_count: int, rows: int, unit: str) -> RowsRefused:
    first = "; ".join(f"{unit} {place}: {reason}" for place, reason in shown[:3])
    more = f"; and {bad_count - 3} more" if bad_count > 3 else ""
    return RowsRefused(
        f"{bad_count} of {rows} rows are bad, nothing was loaded: {first}{more}",
        bad=shown,
        bad_count=bad_count,
    )
