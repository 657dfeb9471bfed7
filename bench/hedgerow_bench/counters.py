"""What a Hedgerow server has counted, read from its metrics page."""

from __future__ import annotations

import asyncio
import http.client
from collections import Counter
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

#: Calls that a load generator drops at the end of a run.
_DROPPED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over all versions and workers since the server started."""

    #: Requests by gRPC status.
    statuses: Counter[str] = field(default_factory=Counter)
    log_lines_dropped: int = 0
    #: CPU seconds and resident bytes by worker, with `supervisor`.
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    resident_bytes: dict[str, int] = field(default_factory=dict)
    #: Requests by worker; empty where the server does not tell.
    workers: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> Counters:
    """Reads a metrics page."""
    found = Counters()
    statuses: Counter[str] = Counter()
    dropped = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            match sample.name:
                case "hedgerow_requests_total":
                    statuses[sample.labels["code"]] += int(sample.value)
                case "hedgerow_worker_requests_total":
                    found.workers[sample.labels["worker"]] = int(sample.value)
                case "hedgerow_log_lines_dropped_total":
                    dropped = int(sample.value)
                case "hedgerow_process_cpu_seconds_total":
                    found.cpu_seconds[sample.labels["worker"]] = sample.value
                case "hedgerow_process_resident_memory_bytes":
                    found.resident_bytes[sample.labels["worker"]] = int(sample.value)
    return Counters(statuses, dropped, found.cpu_seconds, found.resident_bytes, found.workers)


def unanswered(before: Counters, after: Counters, answers: int) -> int:
    """Of the answers that a generator counted, those that the server does not call OK.

    A generator leaves requests under way at its end and does not count those of
    its warm-up, so the server may have answered more; it must not have answered less.
    """
    grown = after.statuses - before.statuses
    bad = sum(count for status, count in grown.items() if status not in ("OK", _DROPPED))
    return max(bad, answers - grown["OK"], 0)


def total(text: str, name: str) -> float:
    """The sum of a counter over all its labels."""
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


async def page(address: str) -> str:
    """The metrics page at HOST:PORT."""
    return await asyncio.to_thread(_get, address)


async def read(address: str) -> Counters:
    """Scrapes the page at HOST:PORT."""
    return parse(await page(address))


def _get(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
