"""`hedgerow features`: views and values in the feature store."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hedgerow.cli import output
from hedgerow.cli.endpoints import known, resolve
from hedgerow.cli.options import Json, Store
from hedgerow.errors import FailedPrecondition, InvalidRequest, RowsRefused

if TYPE_CHECKING:
    from hedgerow.features import KnownValues

EXAMPLES = """\
Examples:
  hedgerow features apply planes.yaml              declare views
  hedgerow features load planes@1 planes.parquet   load values
  hedgerow features get planes@1 N14228            what is known of an entity\
"""
APPLY_EXAMPLES = """\
Examples:
  hedgerow features apply planes.yaml weather.yaml
  hedgerow features apply planes.yaml --store postgresql://db/features\
"""
LOAD_EXAMPLES = """\
Examples:
  hedgerow features load planes@1 planes.parquet
  hedgerow features load planes@1 planes.csv --event-time seen_at
  hedgerow features load planes@1 planes.csv --at now --warm redis://cache\
"""
GET_EXAMPLES = """\
Examples:
  hedgerow features get planes@1 N14228 N24211
  hedgerow features get weather@1 'EWR|5' --json      a composite key\
"""

_INTERRUPTED = {
    "commit": "interrupted in the commit: either all rows are loaded, or none; load them again to be sure",
    "warm": "interrupted; the rows are loaded, and some of them are in the cache",
}

View = Annotated[str, Parameter(help="NAME@VERSION.")]


def build() -> App:
    """The command with its three verbs."""
    app = App(name="features", help="Declare, load and look up features.", help_prologue=EXAMPLES)
    app.command(apply, help_prologue=APPLY_EXAMPLES)
    app.command(load, help_prologue=LOAD_EXAMPLES)
    app.command(get, help_prologue=GET_EXAMPLES)
    return app


def apply(
    *files: Annotated[Path, Parameter(help="YAML files of views: one view, or several under `views:`.")],
    store: Store = None,
    json: Json = False,
) -> None:
    """Add views to the store, all or none. The same again is fine; a changed view is a new version."""
    if not files:
        raise InvalidRequest("name at least one YAML file of views")
    with _needed_packages():
        from hedgerow import features  # noqa: PLC0415
    applied = features.apply(files, store=resolve("store", store))
    if json:
        output.print_json([dataclasses.asdict(one) for one in applied])
        return
    words = {"created": "created", "unchanged": "unchanged: the same definition is there already"}
    for one in applied:
        output.console().print(f"{one.view} {words[one.result]}", markup=False, soft_wrap=True)


def load(
    view: View,
    file: Annotated[Path, Parameter(help="CSV with a header, or Parquet.")],
    /,
    *,
    event_time: Annotated[
        str, Parameter(help="The column that says when a row became true; without a zone it is UTC.")
    ] = "event_time",
    at: Annotated[
        str | None, Parameter(help="One event time for all rows, ISO 8601 or `now`, in place of a column.")
    ] = None,
    warm: Annotated[
        str | None, Parameter(help="URL of a Redis or Valkey to write the loaded entities to as well.")
    ] = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Load a file of values, whole or not at all. An entity keeps the values with the newest event time."""
    with _needed_packages():
        from hedgerow import features  # noqa: PLC0415
    with _progress(quiet=json) as progress:
        try:
            loaded = features.load(
                view,
                file,
                store=resolve("store", store),
                event_time=event_time,
                at=_moment(at),
                warm=warm,
                progress=progress,
            )
        except RowsRefused as refused:
            if refused.bad and not json:
                _print_bad(refused)
            raise
        except KeyboardInterrupt:
            output.progress_console().print(
                _INTERRUPTED.get(progress.stage, "interrupted; nothing was loaded")
            )
            raise
    if json:
        output.print_json({**dataclasses.asdict(loaded), "rows_per_second": round(loaded.rows_per_second)})
        return
    line = (
        f"{loaded.view}: {loaded.rows:,} rows in {loaded.seconds:.1f} s"
        f" ({loaded.rows_per_second:,.0f} rows/s); {loaded.written:,} entities written,"
        f" {loaded.kept:,} rows told nothing newer"
    )
    if loaded.warmed is not None:
        line += f"; {loaded.warmed:,} entities in the cache"
    console = output.console()
    console.print(line, markup=False, soft_wrap=True)
    for name, count in loaded.defaults.items():
        console.print(
            f"  {name}: {count:,} empty cell{'s' * (count != 1)} took the default",
            markup=False,
            soft_wrap=True,
        )


def get(
    view: View,
    /,
    *ids: Annotated[str, Parameter(help="Entity ids; the parts of a composite key joined by '|'.")],
    store: Store = None,
    cache: Annotated[
        str | None,
        Parameter(name="--cache", help="URL of the cache. [HEDGEROW_FEATURES__CACHE; the local stack; none]"),
    ] = None,
    json: Json = False,
) -> None:
    """Show what the store, and the cache, know of entities: values, event time, age and freshness."""
    if not ids:
        raise InvalidRequest("name at least one entity id")
    with _needed_packages():
        from hedgerow import features  # noqa: PLC0415
    found = features.get(view, ids, store=resolve("store", store), cache_url=known("cache", cache))
    if json:
        output.print_json([{"view": view, **dataclasses.asdict(one)} for one in found])
        return
    console = output.console()
    for one in found:
        console.print(Text(" | ".join(map(str, one.entity)), style="bold"))
        for place, what in (("store", one.store), ("cache", one.cache)):
            if what is not None:
                console.print(f"  {place}: {_described(what)}", markup=False, soft_wrap=True)
        table = Table("  field", "store", *(["cache"] if one.cache else []), box=None, pad_edge=False)
        for name, value in one.store.values.items():
            cells = [_cell(value)] + ([_cell(one.cache.values[name])] if one.cache else [])
            table.add_row(Text(f"  {name}"), *cells)
        console.print(table)


def _described(what: KnownValues) -> str:
    if what.event_time is None:
        known_text = "nothing known"
    else:
        assert what.age_seconds is not None
        moment = dt.datetime.fromtimestamp(what.event_time, dt.UTC).isoformat(timespec="seconds")
        known_text = f"event time {moment.replace('+00:00', 'Z')}, {_age(what.age_seconds)} ago"
    confirmed = f", confirmed {_age(what.confirmed_seconds)} ago" if what.confirmed_seconds else ""
    return f"{what.freshness}; {known_text}{confirmed}"


def _cell(value: Any) -> Text:
    if isinstance(value, list) and len(value) > 8:
        return Text(f"[{', '.join(map(str, value[:8]))}, ... {len(value)} values]")
    return Text(str(value))


def _age(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _moment(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    if text == "now":
        return dt.datetime.now(dt.UTC)
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"--at {text!r}: expected ISO 8601 such as 2026-01-31T12:00:00Z, or now"
        ) from None


def _print_bad(refused: RowsRefused) -> None:
    console = output.progress_console()
    table = Table("place", "reason", box=None, pad_edge=False)
    for place, reason in refused.bad:
        table.add_row(str(place), Text(reason))
    console.print(table)
    if refused.bad_count > len(refused.bad):
        console.print(f"... and {refused.bad_count - len(refused.bad):,} more")


class _Bar:
    """A load's progress; `stage` is what it was last heard to do."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("connect", total=1.0, rows=0, rate=0.0)
        self._began = time.monotonic()
        self.stage = "connect"

    def __call__(self, stage: str, rows: int, done: float) -> None:
        self.stage = stage
        rate = rows / max(time.monotonic() - self._began, 1e-3)
        self._progress.update(self._task, description=stage, completed=done, rows=rows, rate=rate)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[_Bar]:
    console = output.progress_console()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,.0f} rows/s"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as progress:
        yield _Bar(progress)


@contextlib.contextmanager
def _needed_packages() -> Iterator[None]:
    """Says which extra to install where the base install is not enough."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"`hedgerow features` needs the package {error.name}: pip install 'hedgerow[features]'"
        ) from error
