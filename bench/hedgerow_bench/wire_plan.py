"""What `wire_generator` is told to do; travels to its process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from hedgerow_bench.contender import GRPC_HEADERS, METHOD
from hedgerow_bench.schedule import Arrivals


@dataclass(frozen=True, slots=True)
class WirePlan:
    """One run over gRPC.

    Attributes:
        target: The server, `host:port`.
        bodies: A file of framed messages, one behind the other; the n-th
            request sends the n-th of them, and then from the first again.
        records: Where the run's `Records` are written; their versions are empty.
        method: What is called.
        mode: `open` for a fixed rate, `closed` for as fast as it goes.
        rate: Requests per second (open loop).
        callers: Requests under way at any time (closed loop).
        seconds: Length of the run.
        arrivals: Spacing of the requests (open loop).
        timeout: Seconds after the last request in which answers are waited for.
        outstanding: Requests under way or due at most (open loop).
        connections: To the server.
        deadline: Seconds that each request asks for (`grpc-timeout`); 0: none.
        seed: Of the Poisson process.
        spin: Polls instead of sleeping when a request is due within a tenth of
            a millisecond. For a generator with a core of its own.
    """

    target: str
    bodies: str
    records: str
    method: str = METHOD
    mode: Literal["open", "closed"] = "open"
    rate: float = 1000.0
    callers: int = 1
    seconds: float = 10.0
    arrivals: Arrivals = "poisson"
    timeout: float = 5.0
    outstanding: int = 100_000
    connections: int = 4
    deadline: float = 0.0
    seed: int = 0
    spin: bool = True

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Reads `to_json`'s line."""
        return cls(**json.loads(line))

    @property
    def records_path(self) -> Path:
        """`records` as a path."""
        return Path(self.records)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Of every request."""
        timeout = (("grpc-timeout", f"{self.deadline * 1000:.0f}m"),) if self.deadline else ()
        return (*GRPC_HEADERS, *timeout)
