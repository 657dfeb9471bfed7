"""The feature store's tables in PostgreSQL: their SQL, and how they come to be.

Migrations only go forward. Each runs once, in a transaction under an advisory lock, whoever
starts first: a server, or a `hedgerow features` command.
"""

from __future__ import annotations

from typing import Any, Protocol

#: Entry i brings the schema from version i to i + 1. Released entries never change.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE feature_views (
        name        text             NOT NULL,
        version     integer          NOT NULL CHECK (version > 0),
        -- Lists of EntityKey and FeatureField (defaults inside), in protobuf's JSON.
        entity      jsonb            NOT NULL,
        fields      jsonb            NOT NULL,
        -- Seconds.
        ttl         double precision NOT NULL,
        stale_ttl   double precision NOT NULL,
        max_age     double precision NOT NULL,
        -- Equal for two definitions whose rows and ids mean the same.
        fingerprint bigint           NOT NULL,
        applied_at  timestamptz      NOT NULL DEFAULT now(),
        PRIMARY KEY (name, version)
    );
    -- No foreign key: it would look up the view once for every row loaded. A load locks its view's
    -- row instead, and views are never deleted.
    CREATE TABLE feature_values (
        view       text        NOT NULL,
        version    integer     NOT NULL,
        entity_id  bytea       NOT NULL,
        "values"   bytea       NOT NULL,
        event_time timestamptz NOT NULL,
        PRIMARY KEY (view, version, entity_id)
    );
    """,
)
VERSION = len(MIGRATIONS)

#: Of the advisory lock, in PostgreSQL's space of 64 bits: "hedgerow" in ASCII.
LOCK = int.from_bytes(b"hedgerow", "big")

#: $1 view, $2 version, $3 entity ids (bytea[]): entity_id, values, event time in microseconds since
#: 1970, of those that the store has.
READ_VALUES = """
    SELECT entity_id, "values", (extract(epoch FROM event_time) * 1000000)::bigint AS event_time_us
    FROM feature_values
    WHERE view = $1 AND version = $2 AND entity_id = ANY($3::bytea[])
"""

#: $1 view, $2 version: the fingerprint of the rows the store holds, or no row. A reader whose own
#: definition has another must not read them.
READ_FINGERPRINT = "SELECT fingerprint FROM feature_views WHERE name = $1 AND version = $2"

_CREATE_VERSION_TABLE = """
    CREATE TABLE IF NOT EXISTS feature_schema (
        version    integer     PRIMARY KEY,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""
_READ_VERSION = "SELECT coalesce(max(version), 0) FROM feature_schema"


class SchemaError(RuntimeError):
    """The database cannot be used by this release; the message says what to do."""


class Connection(Protocol):
    """What a migration needs of `asyncpg.Connection`."""

    async def execute(self, query: str, *args: Any) -> Any:
        """Runs statements."""

    async def fetchval(self, query: str, *args: Any) -> Any:
        """The first column of the first row, or None."""

    def transaction(self, *, isolation: Any) -> Any:
        """An async context manager: committed at its end, rolled back by an exception."""


async def migrate(connection: Connection) -> int:
    """Brings the tables to this release's version, however many do so at once.

    A database that is there already is only read, so that a role without the right to create
    tables will do.

    Returns:
        How many migrations ran here: 0 if the schema was there.

    Raises:
        SchemaError: The database is of a newer release.
    """
    found = await _version(connection)
    if found != VERSION:
        # Who waited for the lock must then see what the other did.
        async with connection.transaction(isolation="read_committed"):
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
            await connection.execute(_CREATE_VERSION_TABLE)
            found = await _version(connection)
            for number, statements in enumerate(MIGRATIONS[found:], start=found + 1):
                await connection.execute(statements)
                await connection.execute("INSERT INTO feature_schema (version) VALUES ($1)", number)
    return VERSION - found


async def _version(connection: Connection) -> int:
    there = await connection.fetchval("SELECT to_regclass('feature_schema') IS NOT NULL")
    found = int(await connection.fetchval(_READ_VERSION)) if there else 0
    if found > VERSION:
        raise SchemaError(
            f"the feature store's schema has version {found}, this release knows up to {VERSION};"
            " upgrade hedgerow here, or point it at a store of its own"
        )
    return found
