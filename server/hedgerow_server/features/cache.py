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

    Reads go over connections of their own, at one remove less than redis-py's commands, which cost
    more than all else in a read: so half of what redis-py does for it falls away.

    A command that is cancelled takes its connection with it (else the reply goes to whoever uses
    the connection next, as in redis-py before 4.5.5, CVE-2023-28858 and -28859). So a value never
    comes under another's key, and only timeouts cancel: requests that give up do not.

    Owns: connections; for reads, as many as there were ever reads at once.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads it.
        connections: For writes, at most; so many reads may be under way as well.
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
        self._pool = pool
        # Of reads: the last to be used is the next, so that few are used at all.
        self._idle: list[Any] = []
        self._most = connections
        self._reading = 0

    def __repr__(self) -> str:
        return f"<RedisCache {self._client.connection_pool!r}>"

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The value of each key, in order; may be cancelled at any await.

        Raises:
            SourceError: It did not answer.
        """
        if self._reading >= self._most:
            raise SourceError(f"{self._reading} reads are under way on as many connections")
        self._reading += 1
        connection = self._idle.pop() if self._idle else self._pool.make_connection()
        whole = False
        try:
            # What can be read before anything was asked is the connection's end.
            if connection.is_connected and await connection.can_read():
                await connection.disconnect(nowait=True)
            await connection.connect()
            await connection.send_packed_command(_mget(keys), check_health=False)
            values = await connection.read_response(disable_decoding=True)
            whole = True
        except (RedisError, OSError) as error:
            raise SourceError(f"{type(error).__name__}: {error}") from error
        finally:
            self._reading -= 1
            if whole:
                self._idle.append(connection)
            else:
                await connection.disconnect(nowait=True)
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
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)
        await self._client.aclose(close_connection_pool=True)


def _mget(keys: Sequence[bytes]) -> bytes:
    """The command, as the protocol spells it."""
    return b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1) + b"".join(
        [b"$%d\r\n%b\r\n" % (len(key), key) for key in keys]
    )
