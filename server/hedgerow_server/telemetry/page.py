"""The metrics page: dumps of all workers as one Prometheus text."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hedgerow_server.telemetry import cost_metrics, feature_metrics, hedge_metrics, overload_metrics
from hedgerow_server.telemetry.families import counter, cumulative, gauge
from hedgerow_server.telemetry.metrics import BATCH_BOUNDS, REQUEST_BOUNDS, Dump, Process

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: gRPC status names by number, here so that the supervisor need not import grpc.
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


def render(
    live: Mapping[str, Dump],
    ended: Mapping[str, Dump],
    *,
    restarts: Mapping[str, int],
    supervisor: Process,
) -> bytes:
    """The page.

    Args:
        live: The last dump of each worker that runs, by its number.
        ended: What the predecessors of each worker counted in all.
        restarts: Of each worker.
        supervisor: This process.
    """
    registry = CollectorRegistry()
    registry.register(_Page(live, ended, restarts, supervisor))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(
        self,
        live: Mapping[str, Dump],
        ended: Mapping[str, Dump],
        restarts: Mapping[str, int],
        supervisor: Process,
    ) -> None:
        self._live = live
        self._ended = ended
        self._restarts = restarts
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        total = Dump()
        for counted in (*self._live.values(), *self._ended.values()):
            total.add_counters(counted)
        yield from _requests(total)
        yield from cost_metrics.families(total.versions)
        yield from _gauges(self._live)
        yield from overload_metrics.families(
            [(sums.model, sums.version, sums.shed) for sums in total.versions],
            {worker: dump.overload for worker, dump in self._live.items()},
        )
        yield from feature_metrics.families(total.features)
        yield from hedge_metrics.families(
            total.hedging, {worker: dump.hedging for worker, dump in self._live.items()}
        )
        yield from hedge_metrics.breaker_families(
            total.breakers, {worker: dump.breakers for worker, dump in self._live.items()}
        )
        yield counter(
            "swaps", "Route tables published, but for each worker's first.", (), [((), total.swaps)]
        )
        yield counter(
            "log_lines_dropped",
            "Request-log lines lost to a slow or broken sink.",
            (),
            [((), total.log_lines_dropped)],
        )
        yield counter(
            "packing_failures",
            "Times that a version stayed in its slower gear because its weights could not be packed.",
            (),
            [((), total.packing_failures)],
        )
        yield counter(
            "worker_restarts",
            "Times that a worker ended unasked and was started again.",
            ("worker",),
            [((worker,), count) for worker, count in self._restarts.items()],
        )
        yield from self._processes()
        build = GaugeMetricFamily(
            "hedgerow_build_info", "Releases; the value is 1.", labels=("release", "python", "onnxruntime")
        )
        build.add_metric((version("hedgerow"), platform.python_version(), version("onnxruntime")), 1)
        yield build

    def _processes(self) -> Iterator[Metric]:
        processes = {worker: dump.process for worker, dump in self._live.items()}
        processes["supervisor"] = self._supervisor
        before = {worker: dump.process.cpu_seconds for worker, dump in self._ended.items()}
        label = ("worker",)
        yield counter(
            "process_cpu_seconds",
            "CPU time, user and system, of each process and its predecessors.",
            label,
            [
                (
                    (worker,),
                    (processes[worker].cpu_seconds if worker in processes else 0) + before.get(worker, 0),
                )
                for worker in dict.fromkeys((*processes, *before))
            ],
        )
        yield gauge(
            "process_resident_memory_bytes",
            "Resident memory of each process.",
            label,
            [((worker,), process.resident_bytes) for worker, process in processes.items()],
        )
        yield gauge(
            "process_open_fds",
            "Open file descriptors of each process.",
            label,
            [((worker,), process.open_fds) for worker, process in processes.items()],
        )


def _requests(total: Dump) -> Iterator[Metric]:
    by_version = ("model", "version")
    yield counter(
        "requests",
        "Requests answered, by gRPC status.",
        (*by_version, "code"),
        [
            ((v.model, v.version, CODES[code] if code < len(CODES) else "UNKNOWN"), count)
            for v in total.versions
            for code, count in sorted(v.requests.items())
        ],
    )
    seconds = HistogramMetricFamily(
        "hedgerow_request_seconds", "From the request's arrival to its answer.", labels=by_version
    )
    batch = HistogramMetricFamily("hedgerow_batch_rows", "Rows in one run of the model.", labels=by_version)
    for v in total.versions:
        labels = (v.model, v.version)
        seconds.add_metric(
            labels, cumulative(REQUEST_BOUNDS, v.request_buckets), sum_value=v.request_ns * 1e-9
        )
        batch.add_metric(labels, cumulative(BATCH_BOUNDS, v.batch_buckets), sum_value=v.rows)
    yield seconds
    yield batch
    yield counter(
        "fallbacks",
        "Requests of which a fallback rule answered rows; several may answer one request's.",
        (*by_version, "rule"),
        [((v.model, v.version, rule), count) for v in total.versions for rule, count in v.fallbacks.items()],
    )
    yield counter(
        "fallback_rule_failures",
        "Rows for which a rule failed, so that a later one was asked.",
        (*by_version, "rule"),
        [((v.model, v.version, rule), n) for v in total.versions for rule, n in v.rule_failures.items()],
    )
    yield counter(
        "stage_seconds",
        "Time in each stage, added up over requests (join, queue) and runs (input, run, output).",
        (*by_version, "stage"),
        [
            ((v.model, v.version, stage), ns * 1e-9)
            for v in total.versions
            for stage, ns in (
                ("join", v.join_ns),
                ("queue", v.queue_ns),
                ("input", v.input_ns),
                ("run", v.run_ns),
                ("output", v.output_ns),
            )
        ],
    )


def _gauges(live: Mapping[str, Dump]) -> Iterator[Metric]:
    in_flight = sum(dump.in_flight for dump in live.values())
    yield gauge("in_flight", "Requests admitted and not yet answered.", (), [((), in_flight)])
    depth = sum(dump.queue_depth for dump in live.values())
    yield gauge("queue_depth", "Requests that wait for a runner.", (), [((), depth)])
    yield gauge(
        "snapshot_version",
        "The snapshot that each worker routes by; counted by the server itself without a control plane.",
        ("worker",),
        [((worker,), dump.snapshot_version) for worker, dump in live.items()],
    )
    newest = max(live.values(), key=lambda dump: dump.snapshot_version, default=Dump())
    yield gauge(
        "route_weight",
        "Weight of each route in the newest snapshot.",
        ("model", "version", "variant"),
        [((route.model, route.version, route.variant), route.weight) for route in newest.routes],
    )
    gears = Counter((gear.model, gear.version, gear.gear) for dump in live.values() for gear in dump.gears)
    yield gauge(
        "model_gear",
        "Workers that hold a version in this gear: mapped (weights in the file) or packed (faster runs).",
        ("model", "version", "gear"),
        gears.items(),
    )
