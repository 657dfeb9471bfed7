"""Gathers a worker's metrics when the supervisor asks; nothing of it lies on the request path."""

from __future__ import annotations

from hedgerow_server.answer import Answerer
from hedgerow_server.engine.catalog import Catalog
from hedgerow_server.engine.statistics import VersionStatistics
from hedgerow_server.features.features import Features
from hedgerow_server.resilience.hedger import Hedger
from hedgerow_server.routing.table import RouteTable
from hedgerow_server.telemetry import metrics
from hedgerow_server.telemetry.feature_metrics import FeatureSums, dependency_sums, view_sums
from hedgerow_server.telemetry.hedge_metrics import breaker_sums, hedge_sums
from hedgerow_server.telemetry.overload_metrics import overload_sums
from hedgerow_server.telemetry.request_log import RequestLog


class Gatherer:
    """Holds what each version ever in the route table has counted, also after it is dropped."""

    def __init__(
        self,
        answerer: Answerer,
        catalog: Catalog,
        requests: RequestLog,
        features: Features,
        hedger: Hedger | None = None,
    ) -> None:
        self._features = features
        self._hedger = hedger
        self._answerer = answerer
        self._catalog = catalog
        self._requests = requests
        self._retired = metrics.Retired()
        # By identity: a version that was dropped and loaded again counts anew.
        self._known: dict[int, tuple[str, str, VersionStatistics]] = {}
        self._tables = 0

    def follow(self, table: RouteTable) -> None:
        """Takes note of a route table that comes into force, and counts by its prices."""
        self._tables += 1
        table.reprice()
        for routes in table.models.values():
            for choice in routes.versions.values():
                model = choice.model
                self._known[id(model.statistics)] = (model.name, model.version, model.statistics)

    def dump(self) -> bytes:
        """The metrics as they are now, for the supervisor."""
        table = self._answerer.table
        held = {id(model.statistics) for model in self._catalog.models()}
        for gone in self._known.keys() - held:
            self._retired.add(*self._known.pop(gone))
        models = [choice.model for routes in table.models.values() for choice in routes.versions.values()]
        return metrics.dump(
            versions=[*self._known.values(), (metrics.UNKNOWN_MODEL, "", self._answerer.books.unrouted)],
            retired=self._retired,
            in_flight=self._answerer.in_flight,
            queue_depth=sum(len(model.queue) for model in models),
            snapshot_version=table.version,
            routes=_weights(table),
            swaps=max(0, self._tables - 1),
            log_lines_dropped=self._requests.dropped,
            gears=[
                metrics.ModelGear(model.name, model.version, gear.value)
                for model, gear in self._catalog.gears()
            ],
            packing_failures=self._catalog.packing_failures,
            features=self._feature_sums(),
            hedging=hedge_sums(self._hedger),
            breakers=[
                *(breaker_sums(breaker) for breaker in self._features.breakers.values()),
                *(breaker_sums(breaker) for breaker in (self._hedger.breakers if self._hedger else ())),
                *(breaker_sums(model.breaker) for model in models),
            ],
            overload=overload_sums(models, self._answerer.utilization),
        )

    def _feature_sums(self) -> FeatureSums:
        features = self._features
        writer = features.writer
        return FeatureSums(
            views=[view_sums(ref, counts) for ref, counts in features.views.counts().items()],
            dependencies=[dependency_sums(name, counts) for name, counts in features.counts().items()],
            written=writer.written if writer else 0,
            dropped=writer.dropped if writer else 0,
        )


def _weights(table: RouteTable) -> list[metrics.RouteWeight]:
    weights = []
    for routes in table.models.values():
        begin = 0.0
        for end, choice in routes.shares:
            weights.append(
                metrics.RouteWeight(
                    routes.name, choice.model.version, choice.variant, round(100 * (end - begin))
                )
            )
            begin = end
    return weights
