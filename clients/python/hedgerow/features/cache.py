"""The cache in Redis or Valkey, as the one who fills the store sees it: warming it, and looking into it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from hedgerow_protos.feature_row import CacheCodec, Cached
from hedgerow_protos.hedgerow_control_pb2 import FeatureView
from redis.asyncio import Redis
from redis.exceptions import RedisError

from hedgerow.errors import InvalidRequest, StoreError
from hedgerow.features.store import Store, shown

_TIMEOUT_SECONDS = 5.0
#: Entities in one pipeline.
_BATCH = 1000

# What a load staged, as it is in the store now: the load may have come second.
_STAGED = """
    SELECT entity_id, "values", (extract(epoch FROM event_time) * 1000000)::bigint
    FROM feature_values
    WHERE view = $1 AND version = $2 AND entity_id IN (SELECT entity_id FROM feature_load)
"""


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[Redis]:
    """A connection to the cache that has answered once.

    Raises:
        InvalidRequest: `url` is none.
        StoreError: Nobody answers there.
    """
    try:
        client = Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS, protocol=2
        )
    except ValueError as error:
        raise InvalidRequest(f"the cache's address {shown(url)}: {error}") from error
    try:
        with errors(url):
            await client.ping()
        yield client
    finally:
        await client.aclose()


@contextlib.contextmanager
def errors(url: str) -> Iterator[None]:
    """Turns what redis-py raises inside into this package's errors."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreError(f"the cache {shown(url)}: {error}") from error


async def warm(store: Store, client: Redis, view: FeatureView, say: Callable[[int], None]) -> int:
    """Writes what a load just staged on this connection into the cache; how many entities that are.

    Args:
        store: Its connection still has the temporary table `feature_load`.
        client: The cache.
        view: The view of the load.
        say: Called with the number of entities written so far.
    """
    codec = CacheCodec(view)
    # A value is dead after stale_ttl, whoever looks.
    lifetime_ms = max(int(view.stale_ttl * 1000), 1)
    written = 0
    with store.errors():
        async with store.connection.transaction(readonly=True):
            # Not ahead of either clock: the age of a value must not be told too small.
            now_us = min(time.time_ns() // 1000, await _clock_us(store))
            cursor = await store.connection.cursor(_STAGED, view.name, view.version)
            while rows := await cursor.fetch(_BATCH):
                async with client.pipeline(transaction=False) as pipeline:
                    for entity_id, row, event_us in rows:
                        pipeline.set(codec.key(entity_id), codec.pack(now_us, event_us, row), px=lifetime_ms)
                    await pipeline.execute()
                written += len(rows)
                say(written)
    return written


async def look(client: Redis, view: FeatureView, entity_ids: Sequence[bytes]) -> list[Cached | None]:
    """What the cache says of each entity; None: nothing, or nothing that can be read."""
    codec = CacheCodec(view)
    values: list[Any] = await client.mget(codec.keys(entity_ids))
    return [None if value is None else codec.unpack(value) for value in values]


async def _clock_us(store: Store) -> int:
    return int(
        await store.connection.fetchval(
            "SELECT (extract(epoch FROM transaction_timestamp()) * 1000000)::bigint"
        )
    )
