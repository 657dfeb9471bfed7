"""What a load generator is told to do; travels to its process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from hedgerow_bench.schedule import Arrivals


@dataclass(frozen=True, slots=True)
class Plan:
    """One run against one model.

    Attributes:
        target: The server's gRPC address, `host:port`.
        model: The model's registered name; no version is asked for.
        inputs: An .npz of arrays by input name, one row for each different
            request; the n-th request sends row n modulo their number. Arrays
            named `expected:VERSION:OUTPUT` hold the right answers; replies
            that differ count as `WRONG`.
        records: Where the run's `Records` are written.
        mode: `open` for a fixed rate, `closed` for as fast as it goes.
        rate: Requests per second (open loop).
        callers: Requests under way at any time (closed loop).
        seconds: Length of the run.
        arrivals: Spacing of the requests (open loop).
        timeout: Seconds that a request may take.
        outstanding: Requests under way at most (open loop).
        channels: Connections to the server.
        seed: Of the Poisson process.
    """

    target: str
    model: str
    inputs: str
    records: str
    mode: Literal["open", "closed"] = "open"
    rate: float = 300.0
    callers: int = 16
    seconds: float = 10.0
    arrivals: Arrivals = "poisson"
    timeout: float = 2.0
    outstanding: int = 600
    channels: int = 2
    seed: int = 0

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
