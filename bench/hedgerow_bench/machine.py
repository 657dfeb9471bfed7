"""The machine under a measurement: what it is, and whether others were at work on it."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

#: Packages whose releases move the numbers.
_PACKAGES = ("hedgerow", "grpcio", "pygrpc-native", "onnxruntime", "numpy", "mlflow", "uvloop")
#: Signs of company: part of the processors' time, and seconds that a 1 ms sleep overslept.
_STEAL, _BUSY, _OVERSLEPT = 0.02, 0.25, 0.002
#: The same, of other processes while we measure.
_OTHERS = 0.05


def describe() -> dict[str, Any]:
    """Python, processors and releases, for a report."""
    releases = {}
    for name in _PACKAGES:
        try:
            releases[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": releases,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


@dataclass(frozen=True, slots=True)
class Quiet:
    """How quiet the machine was while nothing of ours ran.

    Attributes:
        steal: Part of the processors' time that the hypervisor gave to others.
        busy: Part of the processors' time that other processes used.
        overslept_ms: The longest that a sleep of 1 ms took too long.
    """

    steal: float
    busy: float
    overslept_ms: float

    @property
    def note(self) -> str:
        """What a reader of the numbers must know; empty on a quiet machine."""
        signs = []
        if self.steal > _STEAL:
            signs.append(f"the hypervisor gave {self.steal:.0%} of the processors to others")
        if self.busy > _BUSY:
            signs.append(f"other processes used {self.busy:.0%} of the processors")
        if self.overslept_ms > _OVERSLEPT * 1000:
            signs.append(f"a sleep of 1 ms took {self.overslept_ms:.1f} ms longer")
        if not signs:
            return ""
        return f"Noisy machine: before the run {', and '.join(signs)}. Expect worse and varying numbers."


def listen(seconds: float = 1.0) -> Quiet:
    """Sleeps for a while in steps of 1 ms and watches. Blocking; run it before the load."""
    before = _ticks()
    overslept = 0.0
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        time.sleep(0.001)
        overslept = max(overslept, time.monotonic() - now - 0.001)
    spent = [after - earlier for earlier, after in zip(before, _ticks(), strict=True)]
    total = max(1, sum(spent))
    # The columns of proc(5)'s first line: [3] is idle, [4] waits for disks, [7] was stolen.
    return Quiet(spent[7] / total, 1 - (spent[3] + spent[4] + spent[7]) / total, overslept * 1000)


class Company:
    """Watches, from its making to `note`, what others do on the machine while we measure.

    Exact only after everything that was started has ended and was waited for:
    the kernel adds a child's CPU time to its parent's then.
    """

    def __init__(self) -> None:
        self._ticks = _ticks()
        self._ours = _our_cpu()

    def note(self) -> str:
        """What a reader of the numbers must know; empty on a quiet machine."""
        spent = [after - earlier for earlier, after in zip(self._ticks, _ticks(), strict=True)]
        total = sum(spent)
        if not total:
            return ""
        steal = spent[7] / total
        busy = (total - spent[3] - spent[4] - spent[7]) / total
        ours = (_our_cpu() - self._ours) * os.sysconf("SC_CLK_TCK") / total
        signs = []
        if steal > _STEAL:
            signs.append(f"the hypervisor gave {steal:.0%} of the processors to others")
        if busy - ours > _OTHERS:
            signs.append(f"other processes used {busy - ours:.0%} of the processors")
        return f"Noisy machine: during the run {', and '.join(signs)}." if signs else ""


def _our_cpu() -> float:
    kinds = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in kinds)


def _ticks() -> list[int]:
    try:
        with Path("/proc/stat").open() as file:
            return [int(word) for word in file.readline().split()[1:9]]
    except OSError:
        return [0] * 8
