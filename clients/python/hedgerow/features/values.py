"""What is known of entities: their values in the store and in the cache, and how fresh they are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hedgerow_protos import feature_schema
from hedgerow_protos.feature_entity import EntityCodec, EntityError
from hedgerow_protos.feature_row import Cached, RowLayout
from hedgerow_protos.feature_view import fingerprint
from hedgerow_protos.hedgerow_control_pb2 import FeatureView
from redis.asyncio import Redis

from hedgerow.errors import FailedPrecondition, InvalidRequest, StoreError
from hedgerow.features import cache
from hedgerow.features.store import Store

Freshness = Literal["fresh", "stale", "default"]


@dataclass(frozen=True, slots=True)
class KnownValues:
    """What one place knows of an entity.

    Attributes:
        freshness: What a server would mark a reply with that was answered from here alone.
        values: By field; the view's defaults where freshness is `default`.
        event_time: When the values became true, seconds since 1970; None: nothing is known.
        age_seconds: Since the event time.
        confirmed_seconds: Since the store said so; 0 for the store itself.
    """

    freshness: Freshness
    values: dict[str, Any]
    event_time: float | None
    age_seconds: float | None
    confirmed_seconds: float


@dataclass(frozen=True, slots=True)
class EntityValues:
    """One entity; `cache` is None where no cache was asked or it holds nothing readable."""

    entity: tuple[str | int, ...]
    store: KnownValues
    cache: KnownValues | None


def entity_ids(view: FeatureView, texts: Sequence[str]) -> list[bytes]:
    """Ids as people write them, the parts of a composite key joined by `|`.

    Raises:
        InvalidRequest: A text is no id of this view.
    """
    codec = EntityCodec(view)
    try:
        return [codec.encode(codec.decode(text.encode("utf-8", "surrogateescape"))) for text in texts]
    except EntityError as error:
        raise InvalidRequest(str(error)) from error


async def get(
    store: Store, view: FeatureView, ids: Sequence[bytes], client: Redis | None = None, cache_url: str = ""
) -> list[EntityValues]:
    """Reads entities from the store and, where there is one, from the cache.

    Args:
        store: Where the view is.
        view: From that store.
        ids: As `entity_ids` encodes them.
        client: The cache.
        cache_url: Its address, for errors.
    """
    codec, layout = EntityCodec(view), RowLayout(view)
    with store.errors():
        mark = await store.connection.fetchval(feature_schema.READ_FINGERPRINT, view.name, view.version)
        if mark != fingerprint(view):
            raise FailedPrecondition(
                "the store's rows were written by a release that lays them out differently"
            )
        rows = await store.connection.fetch(
            feature_schema.READ_VALUES, view.name, view.version, list(set(ids))
        )
    found = {row["entity_id"]: (row["values"], row["event_time_us"]) for row in rows}
    cached: Sequence[Cached | None] = [None] * len(ids)
    if client is not None and ids:
        with cache.errors(cache_url):
            cached = await cache.look(client, view, ids)
    now_us = time.time_ns() // 1000
    reader = _Reader(view, layout, now_us)
    result: list[EntityValues] = []
    for entity_id, kept in zip(ids, cached, strict=True):
        row, event_us = found.get(entity_id, (None, 0))
        parts = tuple(
            part.decode("utf-8", "backslashreplace") if isinstance(part, bytes) else part
            for part in codec.decode(entity_id)
        )
        result.append(
            EntityValues(
                parts,
                reader.known(Cached(now_us, event_us, row)),
                None if kept is None else reader.known(kept),
            )
        )
    return result


class _Reader:
    """Cached or stored rows as people see them, at one moment."""

    def __init__(self, view: FeatureView, layout: RowLayout, now_us: int) -> None:
        self._view = view
        self._layout = layout
        self._order = [field.name for field in view.fields]
        self._now_us = now_us

    def known(self, value: Cached) -> KnownValues:
        confirmed = max(self._now_us - value.confirmed_us, 0) / 1e6
        age = None if value.row is None else (self._now_us - value.event_time_us) / 1e6
        freshness = self._freshness(confirmed, age)
        row = self._layout.default_row if freshness == "default" or value.row is None else value.row
        if not self._layout.fits(row):
            raise StoreError(f"the store holds {len(row)} bytes that are no row of the view")
        values = self._layout.unpack(row)
        return KnownValues(
            freshness,
            {name: values[name] for name in self._order},
            None if value.row is None else value.event_time_us / 1e6,
            age,
            confirmed,
        )

    def _freshness(self, confirmed: float, age: float | None) -> Freshness:
        if age is None or (self._view.max_age and age > self._view.max_age):
            return "default"
        if confirmed <= self._view.ttl:
            return "fresh"
        return "stale" if confirmed <= self._view.stale_ttl else "default"
