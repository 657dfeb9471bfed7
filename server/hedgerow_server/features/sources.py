"""What features are read from, as the reader sees it: a store that knows, a cache that is fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from hedgerow_server.features.view import View


class SourceError(Exception):
    """The store or the cache did not answer, or not with an answer; it may be down."""


class ViewRefused(SourceError):
    """The store answers, but it cannot be asked for this view: unknown there, or defined otherwise."""


class Row(NamedTuple):
    """One entity's values in the store."""

    values: bytes
    #: Microseconds since 1970.
    event_us: int


class Store(Protocol):
    """The features' owner; what it says is true at the moment it is asked.

    Attributes:
        ahead: Seconds that this server's wall clock is ahead of the store's, as last compared; 0 for
            no difference that could be told. All servers tell ages by the store's clock.
    """

    ahead: float

    async def read(self, view: View, entities: Sequence[bytes]) -> Mapping[bytes, Row]:
        """The rows of those entities that it has; may be cancelled at any await.

        Raises:
            SourceError: It did not answer; `ViewRefused` if only this view is at fault.
        """

    async def close(self) -> None:
        """Ends its connections."""


class Cache(Protocol):
    """A memory shared by all servers; may forget anything, and may hold anything."""

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The value of each key, in order; may be cancelled at any await.

        Raises:
            SourceError: It did not answer.
        """

    async def write(self, values: Sequence[tuple[bytes, bytes, int]]) -> None:
        """Takes keys, values, and for how many milliseconds to keep them.

        Raises:
            SourceError: It did not answer; some may be written.
        """

    async def close(self) -> None:
        """Ends its connections."""
