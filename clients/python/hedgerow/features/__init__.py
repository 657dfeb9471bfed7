"""Feature views and their values, in PostgreSQL: declare, load, look.

    from hedgerow import features

    features.apply(["planes.yaml"], store="postgresql://127.0.0.1/hedgerow")
    features.load("plane_profile@1", "planes.parquet", store="postgresql://127.0.0.1/hedgerow")

Needs `pip install 'hedgerow[features]'`. The same as the commands `hedgerow features apply`,
`load` and `get`; docs/features.md tells them in order.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hedgerow_protos.hedgerow_control_pb2 import FeatureView

from hedgerow.errors import StoreError
from hedgerow.features import cache, loading, values
from hedgerow.features.loading import LoadedRows, Progress
from hedgerow.features.store import AppliedView, connect
from hedgerow.features.values import EntityValues, KnownValues
from hedgerow.view_files import read_views

__all__ = [
    "AppliedView",
    "EntityValues",
    "KnownValues",
    "LoadedRows",
    "apply",
    "get",
    "load",
    "stored_views",
]

T = TypeVar("T")


def apply(paths: Sequence[str | os.PathLike[str]], *, store: str) -> list[AppliedView]:
    """Adds the views of YAML files to the store, all or none. A version never changes.

    Args:
        paths: The files.
        store: The store's DSN.

    Raises:
        ViewRefused: A file cannot be read, a view breaks a rule, or its version is there with
            another definition.
        StoreError: The store cannot be reached.
    """
    views = read_views(paths)

    async def work() -> list[AppliedView]:
        async with connect(store) as opened:
            return await opened.apply(views)

    return _run(work())


def load(
    view: str,
    path: str | os.PathLike[str],
    *,
    store: str,
    event_time: str = "event_time",
    at: dt.datetime | None = None,
    warm: str | None = None,
    progress: Progress | None = None,
) -> LoadedRows:
    """Loads a CSV or Parquet file of values, whole or not at all; newer event time wins.

    Args:
        view: `name@version`.
        path: CSV with a header, or Parquet, with a column for each entity key and field.
        store: The store's DSN.
        event_time: The column that says when a row became true.
        at: One event time for all rows, in place of the column; without a zone it is UTC.
        warm: The URL of a cache, to write the loaded entities to as well.
        progress: Called with what is done now, the rows so far, and the part of the file, 0 to 1.

    Raises:
        RowsRefused: The file cannot be read, lacks a column, or has bad rows; nothing was loaded.
        NotFound: The store does not have the view.
        StoreError: The store or the cache cannot be reached.
    """
    if at is not None and at.tzinfo is None:
        at = at.replace(tzinfo=dt.UTC)

    async def into_store() -> LoadedRows:
        async with connect(store) as opened:
            described = await opened.view(view)
            return await loading.load(
                opened, described, Path(path), event_time=event_time, at=at, progress=progress
            )

    async def into_both(url: str) -> LoadedRows:
        say = progress or (lambda stage, rows, done: None)  # noqa: ARG005 - the names a callback sees
        # The cache first: if nobody answers there, nothing is loaded either.
        async with cache.connect(url) as client, connect(store) as opened:
            described = await opened.view(view)
            loaded = await loading.load(
                opened,
                described,
                Path(path),
                event_time=event_time,
                at=at,
                keep_staged=True,
                progress=progress,
            )
            try:
                with cache.errors(url):
                    count = await cache.warm(opened, client, described, lambda done: say("warm", done, 1.0))
            except StoreError as error:
                raise StoreError(
                    f"{error.details}. The {loaded.rows} rows are loaded all the same; servers read them"
                    " from the store"
                ) from error
            return replace(loaded, warmed=count)

    return _run(into_both(warm) if warm else into_store())


def get(view: str, ids: Sequence[str], *, store: str, cache_url: str | None = None) -> list[EntityValues]:
    """What the store, and a cache, know of entities.

    Args:
        view: `name@version`.
        ids: The parts of a composite key are joined by `|`.
        store: The store's DSN.
        cache_url: The cache's URL.

    Raises:
        InvalidRequest: An id that cannot be one.
        NotFound: The store does not have the view.
        StoreError: The store or the cache cannot be reached.
    """

    async def work() -> list[EntityValues]:
        async with connect(store) as opened:
            described = await opened.view(view)
            encoded = values.entity_ids(described, ids)
            if cache_url is None:
                return await values.get(opened, described, encoded)
            async with cache.connect(cache_url) as client:
                return await values.get(opened, described, encoded, client, cache_url)

    return _run(work())


def stored_views(refs: Sequence[str], *, store: str) -> list[FeatureView]:
    """Definitions from the store, by `name@version`.

    Raises:
        NotFound: The store does not have one of them; the message lists what it has.
        StoreError: The store cannot be reached.
    """

    async def work() -> list[FeatureView]:
        async with connect(store) as opened:
            return [await opened.view(ref) for ref in refs]

    return _run(work())


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, also where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            failure.append(error)

    thread = threading.Thread(target=target, name="hedgerow-features")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
