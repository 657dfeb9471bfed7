"""The books of the request path: every call that ends is counted and has its line in the request log."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hedgerow_server.call import Call
from hedgerow_server.engine.statistics import VersionStatistics
from hedgerow_server.telemetry.request_log import LogLine, RequestLog

_OK = 0


class Books:
    """Owns: the counts of calls that no version answered.

    Args:
        requests: gets a line for each call.
    """

    def __init__(self, requests: RequestLog) -> None:
        self._requests = requests
        #: Calls that no model answered: unknown models, refusals before the choice.
        self.unrouted = VersionStatistics()

    def of(self, call: Call) -> VersionStatistics:
        """Where a call is counted."""
        return self.unrouted if call.choice is None else call.choice.model.statistics

    def enter(
        self, calls: Sequence[Call], now_ns: int, code: int, status: str, error_id: str | None = None
    ) -> None:
        """Counts and logs calls that have just ended alike.

        Args:
            calls: those of one version one after the other.
            now_ns: when they ended, on the clock of `Call.received_ns`.
            code: the gRPC status of all of them.
            status: its name.
            error_id: of the defect that ended them.
        """
        now, is_on = time.time(), self._requests.is_on
        lines: list[LogLine] = []
        statistics = self.of(calls[0])
        took_ns: list[int] = []
        for call in calls:
            choice = call.choice
            if choice is None:
                name = version = variant = ""
                mine = self.unrouted
            else:
                model = choice.model
                name, version, variant = model.name, model.version, choice.variant
                mine = model.statistics
            if mine is not statistics:
                statistics.answered(code, *took_ns)
                statistics, took_ns = mine, []
            total_ns = now_ns - call.received_ns
            took_ns.append(total_ns)
            waited_ns = 0
            if call.queued_ns or call.joining_ns:
                # Counted even if no run began: perf_analyzer finds the version that
                # answered by which one's queue count grew.
                if call.queued_ns:
                    waited_ns = (call.started_ns or now_ns) - call.queued_ns
                mine.queued += 1
                mine.queue_ns += waited_ns
            if code == _OK:
                if call.outcome == "primary":
                    assert choice is not None
                    tally = choice.tally
                    tally.requests += 1
                    tally.predictions += call.rows
                else:
                    mine.elsewhere[call.outcome] += 1
            if is_on:
                trace = call.trace
                lines.append(
                    LogLine(
                        now,
                        trace.trace_id,
                        trace.request_id,
                        trace.caller,
                        name,
                        version,
                        variant,
                        call.outcome if code == _OK else "",
                        call.features,
                        # Nanoseconds to milliseconds with four digits.
                        waited_ns // 100 / 10_000,
                        call.run_ns // 100 / 10_000,
                        total_ns // 100 / 10_000,
                        status,
                        error_id,
                        call.join_ns // 100 / 10_000 if call.join_ns else 0.0,
                        call.rule,
                    )
                )
        statistics.answered(code, *took_ns)
        self._requests.record(*lines)
