"""What happened to every request of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

#: Status of a request that was answered, and rightly.
OK = "OK"
#: Not sent: as many requests as allowed were still unanswered.
OVERFLOW = "OVERFLOW"
#: Answered with other numbers than the version that claims to have answered gives.
WRONG = "WRONG"

_ARRAYS = ("scheduled", "lag", "latency", "version", "status", "features")
_LOWEST_US, _HIGHEST_US, _DIGITS = 1, 120_000_000, 3


class Answer(NamedTuple):
    """How a request ended.

    Attributes:
        version: Who answered; empty for failures.
        status: As in `Records`.
        features: How old joined features were: `fresh`, `stale` or `default`; empty if none were.
    """

    version: str
    status: str
    features: str = ""


@dataclass(slots=True)
class Log:
    """Grows during a run, one entry a request, in the order in which they end."""

    scheduled: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    version: list[str] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)

    def add(
        self, scheduled: float, lag: float, latency: float, version: str, status: str, features: str = ""
    ) -> None:
        """Notes one request; see `Records` for what the numbers mean."""
        self.scheduled.append(scheduled)
        self.lag.append(lag)
        self.latency.append(latency)
        self.version.append(version)
        self.status.append(status)
        self.features.append(features)

    def records(self) -> Records:
        """Everything noted so far, by scheduled time."""
        order = np.argsort(np.asarray(self.scheduled), kind="stable")
        return Records(
            np.asarray(self.scheduled, np.float64)[order],
            np.asarray(self.lag, np.float64)[order],
            np.asarray(self.latency, np.float64)[order],
            np.asarray(self.version, np.str_)[order],
            np.asarray(self.status, np.str_)[order],
            np.asarray(self.features, np.str_)[order],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """One entry a request in every array, by scheduled time."""

    #: When the request was due: seconds of the monotonic clock, which all processes of a machine share.
    scheduled: npt.NDArray[np.float64]
    #: Seconds by which the load generator itself was late.
    lag: npt.NDArray[np.float64]
    #: Seconds from when it was due to its end. A request that was never sent
    #: counts with the run's timeout: it would have waited at least that long.
    latency: npt.NDArray[np.float64]
    #: The version that answered; empty for failures.
    version: npt.NDArray[np.str_]
    #: `OK`, `OVERFLOW`, `WRONG` or the name of a gRPC status.
    status: npt.NDArray[np.str_]
    #: `fresh`, `stale` or `default` as the reply says; empty where no features were joined.
    features: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.scheduled)

    @property
    def failed(self) -> int:
        """Requests that did not get a right answer."""
        return int(np.count_nonzero(self.status != OK))

    def window(self, start: float, end: float) -> Records:
        """Requests due in [start, end) of the monotonic clock."""
        return self.where((self.scheduled >= start) & (self.scheduled < end))

    def where(self, inside: npt.NDArray[np.bool_]) -> Records:
        """The requests for which `inside` is true: bool [requests]."""
        return Records(
            self.scheduled[inside],
            self.lag[inside],
            self.latency[inside],
            self.version[inside],
            self.status[inside],
            self.features[inside],
        )

    def answered_by(self, version: str) -> npt.NDArray[np.float64]:
        """When this version's replies came: seconds of the monotonic clock."""
        mine = (self.version == version) & (self.status == OK)
        replies: npt.NDArray[np.float64] = (self.scheduled + self.latency)[mine]
        return replies

    def percentiles_ms(self) -> Percentiles:
        """Latency over all requests, failed ones too: a failure is not a fast answer."""
        return percentiles_ms(self.latency)

    def summary(self) -> dict[str, Any]:
        """Counts and percentiles for a report."""
        return {
            "requests": len(self),
            "failed": self.failed,
            "statuses": dict(Counter(self.status.tolist())),
            "versions": dict(Counter(self.version[self.status == OK].tolist())),
            "latency_ms": self.percentiles_ms(),
            "generator_lag_ms": percentiles_ms(self.lag),
        }

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        np.savez_compressed(
            path,
            scheduled=self.scheduled,
            lag=self.lag,
            latency=self.latency,
            version=self.version,
            status=self.status,
            features=self.features,
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(*(file[name] for name in _ARRAYS))


Percentiles = dict[str, float]


def percentiles_ms(seconds: npt.NDArray[np.float64]) -> Percentiles:
    """Percentiles in milliseconds, through an HDR histogram (3 digits, 1 µs to 2 min); empty for nothing."""
    if not len(seconds):
        return {}
    histogram = HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)
    for value in np.clip(seconds * 1e6, _LOWEST_US, _HIGHEST_US).astype(np.int64).tolist():
        histogram.record_value(value)
    points = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
    found = {name: histogram.get_value_at_percentile(point) / 1000 for name, point in points.items()}
    return found | {"max": histogram.get_max_value() / 1000}


def curve_ms(seconds: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Percentile and milliseconds, ever closer to 100, as far as the values reach: what a chart draws."""
    found = []
    for nines in np.arange(0, 5.01, 0.25):
        left = 10.0 ** -float(nines)
        if len(seconds) * left < 1:
            break
        found.append((100 * (1 - left), float(np.quantile(seconds, 1 - left)) * 1000))
    return found
