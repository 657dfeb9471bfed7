"""The feature cache: Redis or Valkey through redis-py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from hedgerow_server.features.sources import SourceError


class RedisCache:
    """Reads and writes values by key.

    A command that is cancelled takes its connection with it (redis-py 4.5.5 and later disconnect;
    before, the reply went to whoever used the connection next, CVE-2023-28858 and -28859). So a
    value never comes under another's key, and only timeouts cancel: requests that give up do not.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads it.
        connections: At most.
        name: What the server lists its connections as.
    """

    def __init__(self, url: str, *, connections: int, name: str = "hedgerow-server") -> None:
        # RESP2, which every release speaks; and no retries: the breaker decides when to try again.
        pool: Any = redis.asyncio.ConnectionPool.from_url(
            url,
            max_connections=connections,
            protocol=2,
            client_name=name,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=None,
        )
        self._client: Any = redis.asyncio.Redis.from_pool(pool)

    def __repr__(self) -> str:
        return f"<RedisCache {self._client.connection_pool!r}>"

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The value of each key, in order; may be cancelled at any await.

        Raises:
            SourceError: It did not answer.
        """
        try:
            values = await self._client.execute_command("MGET", *keys)
        except (RedisError, OSError) as error:
            raise SourceError(f"{type(error).__name__}: {error}") from error
        return cast("Sequence[bytes | None]", values)

    async def write(self, values: Sequence[tuple[bytes, bytes, int]]) -> None:
        """Sets keys to values for so many milliseconds, in one round trip.

        Raises:
            SourceError: It did not answer; some may be written.
        """
        try:
            pipeline = self._client.pipeline(transaction=False)
            for key, value, milliseconds in values:
                pipeline.execute_command("SET", key, value, "PX", milliseconds)
            await pipeline.execute()
        except (RedisError, OSError) as error:
            raise SourceError(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.aclose(close_connection_pool=True)
