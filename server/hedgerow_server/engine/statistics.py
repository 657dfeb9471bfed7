"""What one model version has done, in plain numbers.

One store for three readers: Triton's ModelStatistics, the Prometheus families
and the stats that go to the control plane. It is written on the request path,
so it only adds integers; whoever reads does the arithmetic.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from hedgerow_server.engine.costs import Tally

#: Upper bounds in seconds of the latency buckets: 10 µs times 2^(i/4), i < 88 (41 s).
#: Part of the control protocol (hedgerow_control.proto, VersionStats).
LATENCY_BOUNDS: tuple[float, ...] = tuple(1e-5 * 2 ** (i / 4) for i in range(88))
_BOUNDS_NS = tuple(int(bound * 1e9) for bound in LATENCY_BOUNDS)

#: Runs of up to so many rows are told apart; larger ones only by the next power of two. A request
#: may bring as many rows as fit in a message, and each number that it ever was would stay.
EXACT_ROWS = 1024


@dataclass(slots=True)
class VersionStatistics:
    """Counters of one version in one process; nanoseconds where a name ends in `_ns`."""

    #: Requests answered, by gRPC status code number (0 is success).
    requests: dict[int, int] = field(default_factory=dict)
    success_ns: int = 0
    fail_ns: int = 0
    #: Requests by duration; one more bucket than bounds for what is slower than all.
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    #: Requests that reached a run, and how long they waited for it in sum.
    queued: int = 0
    queue_ns: int = 0
    #: How long requests waited for features, in sum.
    join_ns: int = 0
    #: Rows answered, runs, and their parts in sum.
    rows: int = 0
    runs: int = 0
    input_ns: int = 0
    run_ns: int = 0
    output_ns: int = 0
    #: Runs by number of rows, above EXACT_ROWS rounded up: rows -> [runs, input_ns, run_ns, output_ns].
    batches: dict[int, list[int]] = field(default_factory=dict)
    #: The same seen from the requests, of which all in a run wait for the whole of it:
    #: [requests, input_ns, run_ns, output_ns].
    waited: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    #: Wall clock of the last run in milliseconds since the epoch.
    last_inference_ms: int = 0
    #: Requests that its model answered, by the variant as which it was chosen.
    variants: dict[str, Tally] = field(default_factory=dict)

    def tally(self, variant: str) -> Tally:
        """The counts of one variant; the caller keeps their number small."""
        return self.variants.setdefault(variant, Tally())

    def answered(self, code: int, ns: int) -> None:
        """Counts one request that ended with gRPC status `code` after `ns` nanoseconds."""
        self.requests[code] = self.requests.get(code, 0) + 1
        if code == 0:
            self.success_ns += ns
        else:
            self.fail_ns += ns
        self.latency[bisect_left(_BOUNDS_NS, ns)] += 1

    def ran(self, rows: int, input_ns: int, run_ns: int, output_ns: int, *, requests: int = 1) -> None:
        """Counts one run over `rows` rows of `requests` requests."""
        self.rows += rows
        self.runs += 1
        self.input_ns += input_ns
        self.run_ns += run_ns
        self.output_ns += output_ns
        size = rows if rows <= EXACT_ROWS else 1 << (rows - 1).bit_length()
        batch = self.batches.get(size)
        if batch is None:
            batch = self.batches[size] = [0, 0, 0, 0]
        batch[0] += 1
        batch[1] += input_ns
        batch[2] += run_ns
        batch[3] += output_ns
        waited = self.waited
        waited[0] += requests
        waited[1] += requests * input_ns
        waited[2] += requests * run_ns
        waited[3] += requests * output_ns
