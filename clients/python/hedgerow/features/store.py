"""The feature store in PostgreSQL, as the one who fills it sees it: views, and a connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import asyncpg
from google.protobuf import json_format
from hedgerow_protos import feature_schema
from hedgerow_protos.feature_view import ViewError, canonical, differences, fingerprint, parse_ref, view_ref
from hedgerow_protos.hedgerow_control_pb2 import FeatureView
from hedgerow_protos.pool import POOL

from hedgerow.errors import FailedPrecondition, InvalidRequest, NotFound, StoreError, ViewRefused

CONNECT_SECONDS = 10.0
#: No statement but those of a load takes longer; what does is stuck.
STATEMENT_SECONDS = 30.0

_READ_VIEWS = """
    SELECT name, version, entity, fields, ttl, stale_ttl, max_age FROM feature_views
    WHERE ($1::text IS NULL OR name = $1) AND ($2::integer IS NULL OR version = $2)
    ORDER BY name, version
"""


@dataclass(frozen=True, slots=True)
class AppliedView:
    """What became of a view: `created`, or `unchanged` where the same definition was there."""

    view: str
    result: Literal["created", "unchanged"]


@contextlib.asynccontextmanager
async def connect(dsn: str) -> AsyncIterator[Store]:
    """A connection whose database has the schema of this release.

    Args:
        dsn: `postgresql://user:password@host:port/database`.

    Raises:
        InvalidRequest: `dsn` is none.
        StoreError: Nobody answers there, or PostgreSQL refuses.
        FailedPrecondition: The database belongs to a newer release.
    """
    where = shown(dsn)
    with errors(where):
        try:
            connection = await asyncpg.connect(
                dsn,
                timeout=CONNECT_SECONDS,
                command_timeout=STATEMENT_SECONDS
                + 5.0,  # for a server that hangs; PostgreSQL's own comes first
                server_settings={
                    "application_name": "hedgerow features",
                    "statement_timeout": str(int(STATEMENT_SECONDS * 1000)),
                },
            )
        except (ValueError, asyncpg.ClientConfigurationError) as error:
            raise InvalidRequest(f"the feature store's address {where}: {error}") from error
    try:
        store = Store(connection, where)
        with store.errors():
            await feature_schema.migrate(connection)
        yield store
    finally:
        # A connection in the middle of a COPY would wait for its end; nobody does any more.
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await asyncio.shield(connection.close(timeout=2.0))


class Store:
    """Views of one database.

    Args:
        connection: Open, its schema migrated.
        where: The address, without a password, for errors.
    """

    def __init__(self, connection: asyncpg.Connection[Any], where: str) -> None:
        self.connection = connection
        self.where = where

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turns what asyncpg raises inside into this package's errors."""
        return errors(self.where)

    async def apply(self, views: Sequence[FeatureView]) -> list[AppliedView]:
        """Adds views, all or none; those that are there with the same definition stay as they are.

        Raises:
            ViewRefused: A view breaks a rule, or its version is there with another definition.
        """
        try:
            wanted = [canonical(view) for view in views]
        except ViewError as error:
            raise ViewRefused(str(error)) from error
        with self.errors():
            async with self.connection.transaction():
                return [await self._apply(view) for view in wanted]

    async def views(self, name: str | None = None) -> list[FeatureView]:
        """All views, or all versions of one, by name and version."""
        with self.errors():
            rows = await self.connection.fetch(_READ_VIEWS, name, None)
        return [_view(row) for row in rows]

    async def view(self, ref: str) -> FeatureView:
        """One view by `name@version`.

        Raises:
            InvalidRequest: `ref` is written otherwise.
            NotFound: The store does not have it; the message lists what it has.
        """
        try:
            name, version = parse_ref(ref)
        except ViewError as error:
            known = [view_ref(view) for view in await self.views(ref)]
            raise InvalidRequest(f"{error}{_listed(known)}") from error
        with self.errors():
            row = await self.connection.fetchrow(_READ_VIEWS, name, version)
        if row is None:
            known = [view_ref(view) for view in await self.views(name) or await self.views()]
            raise NotFound(
                f"the store {self.where} has no view {ref}{_listed(known) or '; it has none at all'}"
            )
        return _view(row)

    async def _apply(self, view: FeatureView) -> AppliedView:
        plain = json_format.MessageToDict(view, descriptor_pool=POOL, preserving_proto_field_name=True)
        created = await self.connection.fetchval(
            "INSERT INTO feature_views (name, version, entity, fields, ttl, stale_ttl, max_age, fingerprint)"
            " VALUES ($1, $2, $3::jsonb, $4::jsonb, $5, $6, $7, $8)"
            " ON CONFLICT (name, version) DO NOTHING RETURNING true",
            *(view.name, view.version, json.dumps(plain["entity"]), json.dumps(plain["fields"])),
            *(view.ttl, view.stale_ttl, view.max_age, fingerprint(view)),
        )
        if created:
            return AppliedView(view_ref(view), "created")
        there = await self.view(view_ref(view))
        if changes := differences(there, view):
            latest = max(one.version for one in await self.views(view.name))
            raise ViewRefused(
                f"{view_ref(view)} is in the store with another definition; yours changes"
                f" {'; '.join(changes)}. A version never changes: write version: {latest + 1},"
                " and bind models to it"
            )
        return AppliedView(view_ref(view), "unchanged")


def shown(dsn: str) -> str:
    """A DSN or URL as it may be shown: without user and password."""
    try:
        parts = urlsplit(dsn)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(unreadable address)"
    if not parts.scheme:
        return "(no address)"
    socket = parse_qs(parts.query).get("host", [""])[0]  # a directory, where it is a Unix socket
    return f"{parts.scheme}://{parts.hostname or socket}{port}{parts.path}"


@contextlib.contextmanager
def errors(where: str) -> Iterator[None]:
    """Turns what asyncpg raises inside into this package's errors; `where` names the store."""
    try:
        yield
    except feature_schema.SchemaError as error:
        raise FailedPrecondition(f"{where}: {error}") from error
    except asyncpg.QueryCanceledError as error:
        raise StoreError(f"the feature store {where} took too long: {error}") from error
    except TimeoutError as error:
        raise StoreError(f"the feature store {where} did not answer in time") from error
    except OSError as error:
        raise StoreError(f"the feature store {where} cannot be reached: {error.strerror or error}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreError(f"the feature store {where}: {error}") from error


def _view(row: asyncpg.Record) -> FeatureView:
    plain = dict(row)
    plain["entity"] = json.loads(plain["entity"])
    plain["fields"] = json.loads(plain["fields"])
    return json_format.ParseDict(plain, FeatureView(), descriptor_pool=POOL)


def _listed(known: list[str]) -> str:
    return f"; it has {', '.join(known[:20])}" if known else ""
