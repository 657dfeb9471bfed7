"""What one model version has done, in plain numbers.

One store for three readers: Triton's ModelStatistics, the Prometheus families
and the stats that go to the control plane. It is written on the request path,
so it only adds integers; whoever reads does the arithmetic.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
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
class RuleCounts:
    """What the fallback rules of a version have done, by name."""

    #: Requests of which they answered rows; several may answer one request's.
    answered: Counter[str] = field(default_factory=Counter)
    #: Rows for which one failed and a later one was asked.
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class VersionStatistics:
    """Counters of one version in one process; nanoseconds where a name ends in `_ns`.

    Each number is kept once: what follows from others is worked out by who reads it.
    """

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
    #: Runs by number of rows, above EXACT_ROWS rounded up:
    #: rows -> [runs, input_ns, run_ns, output_ns, rows in all].
    batches: dict[int, list[int]] = field(default_factory=dict)
    #: Requests refused because there was too much to do, by reason (gate.admission.REASONS).
    sheds: Counter[str] = field(default_factory=Counter)
    #: Requests that the economy variant got in this one's place, because of that.
    moved_to_economy: int = 0
    #: Wall clock of the last run in milliseconds since the epoch.
    last_inference_ms: int = 0
    #: Requests that its model answered, by the variant as which it was chosen.
    variants: dict[str, Tally] = field(default_factory=dict)
    #: Of the requests answered, those that others did: backups (hedge, failover) or rules (fallback).
    elsewhere: Counter[str] = field(default_factory=Counter)
    rules: RuleCounts = field(default_factory=RuleCounts)
    # What `waited` is more than `batches`: of each run of n requests the times for n - 1 of them.
    _company: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def tally(self, variant: str) -> Tally:
        """The counts of one variant; the caller keeps their number small."""
        return self.variants.setdefault(variant, Tally())

    def answered(self, code: int, *total_ns: int) -> None:
        """Counts requests that ended with gRPC status `code`, each after so many nanoseconds."""
        self.requests[code] = self.requests.get(code, 0) + len(total_ns)
        if code == 0:
            self.success_ns += sum(total_ns)
        else:
            self.fail_ns += sum(total_ns)
        latency = self.latency
        for ns in total_ns:
            latency[bisect_left(_BOUNDS_NS, ns)] += 1

    def ran(self, rows: int, input_ns: int, run_ns: int, output_ns: int, *, requests: int = 1) -> None:
        """Counts one run over `rows` rows of `requests` requests."""
        size = rows if rows <= EXACT_ROWS else 1 << (rows - 1).bit_length()
        batch = self.batches.get(size)
        if batch is None:
            batch = self.batches[size] = [0, 0, 0, 0, 0]
        batch[0] += 1
        batch[1] += input_ns
        batch[2] += run_ns
        batch[3] += output_ns
        batch[4] += rows
        if requests > 1:
            others, company = requests - 1, self._company
            company[0] += others
            company[1] += others * input_ns
            company[2] += others * run_ns
            company[3] += others * output_ns

    @property
    def rows(self) -> int:
        """Rows answered."""
        return self._sum(4)

    @property
    def runs(self) -> int:
        """Runs that gave outputs."""
        return self._sum(0)

    @property
    def input_ns(self) -> int:
        """What putting the inputs of all runs together took."""
        return self._sum(1)

    @property
    def run_ns(self) -> int:
        """What all runs took."""
        return self._sum(2)

    @property
    def output_ns(self) -> int:
        """What writing the replies of all runs took."""
        return self._sum(3)

    @property
    def waited(self) -> tuple[int, int, int, int]:
        """Runs seen from the requests, of which all in one wait for the whole of it.

        Requests, and the input_ns, run_ns and output_ns that they waited.
        """
        requests, input_ns, run_ns, output_ns = self._company
        return (
            requests + self.runs,
            input_ns + self.input_ns,
            run_ns + self.run_ns,
            output_ns + self.output_ns,
        )

    def _sum(self, part: int) -> int:
        return sum([batch[part] for batch in self.batches.values()])
