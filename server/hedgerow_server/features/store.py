"""The feature store: PostgreSQL through asyncpg."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from hedgerow_protos import feature_schema

from hedgerow_server.features.clock import Clock
from hedgerow_server.features.freshness import MAX_SKEW
from hedgerow_server.features.sources import Row, SourceError, ViewRefused
from hedgerow_server.features.view import View

log = logging.getLogger(__name__)

#: Seconds between looks at the store's clock.
COMPARE_EVERY = 10.0
#: Seconds that two clocks may differ and count as the same.
_SAME = 0.01


class PostgresStore:
    """Reads rows of views, many entities in one prepared query.

    Holds: a pool of connections, made when they are needed and again when they broke; and which
    views these connections were found to define as this server does.

    A query that is cancelled takes its connection with it: what would still come on it belongs to
    nobody. Connections are cheap against that, and only timeouts cancel.

    Args:
        dsn: As libpq and asyncpg read it.
        connections: At most.
        statement_timeout: Seconds after which PostgreSQL itself ends a query.
        clock: The process's clocks.

    Attributes:
        ahead: Seconds that this server's wall clock is ahead of the store's.
    """

    def __init__(
        self, dsn: str, *, connections: int, statement_timeout: float, clock: Clock | None = None
    ) -> None:
        self.ahead = 0.0
        self._clock = clock or Clock()
        self._compare_at = 0.0
        self._dsn = dsn
        self._connections = connections
        self._statement_timeout = statement_timeout
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        # By name and fingerprint. A new connection may lead to another database: then asked again.
        self._trusted: set[tuple[str, int]] = set()
        self._refused: set[str] = set()
        self._migrated = False

    def __repr__(self) -> str:
        size = self._pool.get_size() if self._pool is not None else 0
        return f"<PostgresStore {size} of {self._connections} connections>"

    async def read(self, view: View, entities: Sequence[bytes]) -> Mapping[bytes, Row]:
        """The rows of those entities that the store has; may be cancelled at any await.

        Raises:
            SourceError: It did not answer; `ViewRefused` if it does not know the view, or otherwise.
        """
        try:
            pool = self._pool or await self._open()
            connection: Any = await pool.acquire()
            try:
                if not self._migrated:
                    await self._migrate(connection)
                if (view.ref, view.fingerprint) not in self._trusted:
                    await self._check(connection, view)
                if self._clock.monotonic() >= self._compare_at:
                    await self._compare_clocks(connection)
                records = await connection.fetch(
                    feature_schema.READ_VALUES, view.spec.name, view.spec.version, entities
                )
            except (asyncpg.PostgresError, SourceError):
                raise  # the connection is as good as before
            except BaseException:
                connection.terminate()
                raise
            finally:
                await pool.release(connection)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            # InternalClientError: what asyncpg makes of an answer that it does not expect, as on a
            # connection that died.
            raise SourceError(f"{type(error).__name__}: {error}") from error
        return {entity: Row(values, event_us) for entity, values, event_us in records}

    async def close(self) -> None:
        """Ends the connections, those in use too."""
        if self._pool is not None:
            self._pool.terminate()

    async def _open(self) -> asyncpg.Pool[asyncpg.Record]:
        self._pool = asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=self._connections,
            max_inactive_connection_lifetime=300.0,
            init=self._greet,
            # The default is a round trip (RESET ALL); these connections change nothing to be reset.
            reset=_keep,
            max_cached_statement_lifetime=0,
            server_settings={
                "application_name": "hedgerow-server",
                "statement_timeout": str(round(self._statement_timeout * 1000)),
            },
        )
        # Without connections to make at once this ends within one step of the loop.
        await self._pool
        return self._pool

    async def _greet(self, connection: Any) -> None:
        """Forgets what was found by connections before: this one may lead elsewhere."""
        del connection
        self._trusted.clear()
        self._compare_at = 0.0

    async def _migrate(self, connection: Any) -> None:
        """Makes the tables, where there are none."""
        try:
            # Cancelling a transaction waits for its rollback; where the store says nothing more, for
            # ever. So what is cancelled is the waiting: `read` then breaks the connection, and that
            # ends the transaction.
            if await asyncio.shield(feature_schema.migrate(connection)):
                log.info("made the feature store's tables")
        except feature_schema.SchemaError as error:
            # A newer release may have been here first, as in a rolling upgrade; rows that do not
            # fit are told by each view's fingerprint.
            log.warning("%s", error)
        except asyncpg.InsufficientPrivilegeError as error:
            log.warning("the feature store has no tables yet, and this role may not make them: %s", error)
        self._migrated = True

    async def _compare_clocks(self, connection: Any) -> None:
        """Finds out how far this server's clock is off; an answer that took too long tells nothing."""
        clock = self._clock
        sent, began = clock.wall(), clock.monotonic()
        self._compare_at = began + COMPARE_EVERY
        theirs: float = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        error = (clock.monotonic() - began) / 2
        ahead = sent + error - theirs
        if error > MAX_SKEW / 2:
            return
        before, self.ahead = self.ahead, ahead if abs(ahead) > error + _SAME else 0.0
        if abs(self.ahead) > MAX_SKEW >= abs(before):
            log.warning(
                "this server's clock is %.1f s %s the feature store's; ages are told by the store's",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
            )

    async def _check(self, connection: Any, view: View) -> None:
        """Compares the store's definition of a view with this server's."""
        found = await connection.fetchval(feature_schema.READ_FINGERPRINT, view.spec.name, view.spec.version)
        if found == view.fingerprint:
            self._trusted.add((view.ref, view.fingerprint))
            self._refused.discard(view.ref)
            return
        reason = (
            f"the feature store does not have {view.ref}; run `hedgerow features apply`"
            if found is None
            else f"the feature store's {view.ref} has other keys or fields than the model was published "
            "with; a changed view needs a new version"
        )
        if view.ref not in self._refused:
            self._refused.add(view.ref)
            log.warning("%s. Its models get defaults until then", reason)
        raise ViewRefused(reason)


async def _keep(connection: Any) -> None:
    """Leaves a connection as it is."""
    del connection
