"""A feature view as the server uses it: its codecs and its bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import random
from typing import TYPE_CHECKING

from hedgerow_protos.feature_entity import EntityCodec
from hedgerow_protos.feature_row import CacheCodec, RowLayout
from hedgerow_protos.feature_view import fingerprint, view_ref
from hedgerow_protos.hedgerow_control_pb2 import FeatureView

from hedgerow_server.features.counts import ViewCounts
from hedgerow_server.features.freshness import Bounds, Freshness, Known, judge, since

if TYPE_CHECKING:
    from hedgerow_server.features.sources import Row


class View:
    """One version of a feature view; shared by all models that bind it.

    Args:
        spec: A view that `check_view` accepts.
        jitter: The store is asked again before a value's ttl is over, by up to this share of it,
            so that values which were read together do not all grow old together.
    """

    __slots__ = (
        "_spread",
        "bounds",
        "cached",
        "counts",
        "entities",
        "fingerprint",
        "prefix",
        "ref",
        "rows",
        "spec",
    )

    def __init__(self, spec: FeatureView, *, jitter: float = 0.1) -> None:
        self.spec = spec
        self.ref = view_ref(spec)
        self.rows = RowLayout(spec)
        self.entities = EntityCodec(spec)
        self.cached = CacheCodec(spec)
        self.fingerprint = fingerprint(spec)
        #: Before an entity's id this makes the cache key, which names the value everywhere here.
        self.prefix = self.cached.key(b"")
        self.bounds = Bounds(spec.ttl, spec.stale_ttl, spec.max_age or math.inf)
        self.counts = ViewCounts()
        self._spread = spec.ttl * jitter

    def __repr__(self) -> str:
        return f"<View {self.ref}>"

    def from_cache(self, values: Sequence[bytes | None], wall: float, now: float) -> list[Known | None]:
        """Reads cached values and counts them; None for those that nobody should trust.

        Args:
            values: As found in the cache; None: it has none.
            wall: The wall clock now, in seconds.
            now: The monotonic clock now.
        """
        found: list[Known | None] = []
        for cached in self.cached.unpack_all(values):
            known = None
            if cached is not None:
                confirmed_us, event_us, row = cached
                confirmed = since(confirmed_us * 1e-6, wall, now)
                if confirmed is not None:
                    known = self._known(row, event_us, confirmed, wall, now)
            found.append(known)
        misses = found.count(None)
        self.counts.cache_hits += len(found) - misses
        self.counts.cache_misses += misses
        self.counts.corrupt += misses - values.count(None)
        return found

    def from_store(self, rows: Sequence[Row | None], asked: float, wall: float, now: float) -> list[Known]:
        """What the store answered, and counts it.

        Args:
            rows: None where it has none. What is no row of this view counts as none.
            asked: When the question was sent, on the monotonic clock.
            wall: As for `from_cache`.
            now: As for `from_cache`.
        """
        self.counts.stored += len(rows)
        fits = self.rows.fits
        return [
            self._known(row.values, row.event_us, asked, wall, now)
            if row is not None and fits(row.values)
            else self._known(None, 0, asked, wall, now)
            for row in rows
        ]

    def _known(self, row: bytes | None, event_us: int, confirmed: float, wall: float, now: float) -> Known:
        # An event in the future is as new as can be.
        event_age = wall - event_us * 1e-6
        event = now - event_age if event_age > 0 else now
        early = self._spread * random()  # noqa: S311 - spreads load, guards nothing
        return Known(row, confirmed, event, now, confirmed + self.bounds.ttl - early)

    def serve(self, known: Sequence[Known | None], now: float) -> tuple[list[bytes], Freshness]:
        """Rows as they may be served now, the default in place of others, and the worst of them; counts both.

        Args:
            known: What is known of each entity.
            now: As for `from_cache`.
        """
        bounds, default, reads = self.bounds, self.rows.default_row, self.counts.reads
        rows: list[bytes] = []
        ages: list[float] = []
        worst = Freshness.FRESH
        for one in known:
            freshness = judge(one, bounds, now)
            reads[freshness] += 1
            if freshness is not Freshness.FRESH:
                worst = max(worst, freshness)
            if one is None or one.row is None or freshness is Freshness.DEFAULT:
                rows.append(default)
            else:
                rows.append(one.row)
                ages.append(now - one.confirmed)
        if ages:
            self.counts.add_ages(ages)
        return rows, worst

    def to_cache(self, known: Known, wall: float, now: float) -> tuple[bytes, int]:
        """A value as the cache holds it, and for how many milliseconds.

        A row is kept as long as it may be served, an absence as long as it saves a question: the
        cache then bounds what it gives by its own clock, whatever those of its readers say.
        """
        shift = wall - now
        value = self.cached.pack(
            round((known.confirmed + shift) * 1e6), round((known.event + shift) * 1e6), known.row
        )
        keep = self.bounds.ttl if known.row is None else self.bounds.stale_ttl
        return value, max(1, round((known.confirmed + keep - now) * 1000))


#: Views that are told apart in metrics; a server that has seen more has had a long life.
MOST_COUNTED = 512


class Views:
    """The views that models are bound to, each once, however many models bind it.

    Holds: views by their definition; only the event loop's thread asks for them.
    """

    def __init__(self) -> None:
        self._views: dict[bytes, View] = {}
        self._counts: dict[str, ViewCounts] = {}

    def find(self, spec: FeatureView) -> View:
        """The view of this definition; one name and version has one set of counts."""
        key = spec.SerializeToString(deterministic=True)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = View(spec)
            label = view.ref if len(self._counts) < MOST_COUNTED or view.ref in self._counts else "others"
            view.counts = self._counts.setdefault(label, view.counts)
        return view

    def counts(self) -> dict[str, ViewCounts]:
        """What was counted, by `name@version`."""
        return self._counts
