"""Processes as the kernel sees them: who started whom, CPU time, resident memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A line of /proc/PID/stat. Number and birth together are never used twice."""

    pid: int
    parent: int
    #: Clock ticks after the machine's start.
    birth: int
    #: User and system, without that of children.
    cpu_seconds: float
    #: Pages that lie in memory, shared ones too.
    resident_bytes: int

    @property
    def anonymous_bytes(self) -> int:
        """Resident pages of its own; the others belong to files, and the kernel may take them back."""
        try:
            status = (_PROC / str(self.pid) / "status").read_text()
        except OSError:
            return 0
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
        return self.resident_bytes


def read(pid: int) -> Process | None:
    """What /proc says about a process; None if there is none, or no /proc."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    # The name may hold blanks and brackets; what follows the last bracket starts with field 3 of proc(5).
    fields = text.rpartition(")")[2].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        birth=int(fields[19]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        resident_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
    )


def family(pid: int) -> list[Process]:
    """A process and all that descend from it, those in other sessions too; empty if it is gone."""
    everyone = [one for entry in _PROC.glob("[0-9]*") if (one := read(int(entry.name))) is not None]
    children: dict[int, list[Process]] = {}
    for process in everyone:
        children.setdefault(process.parent, []).append(process)
    found = [process for process in everyone if process.pid == pid]
    for process in found:  # grows on the way
        found += children.get(process.pid, [])
    return found


def cpu_seconds_of_family(pid: int) -> float:
    """CPU time of a process and of all that descend from it, those that live."""
    return sum([cpu_seconds(process.pid) for process in family(pid)])


def cpu_seconds(pid: int) -> float:
    """CPU time of a process's threads, to the nanosecond where the kernel tells; 0 if it is gone."""
    nanoseconds = [
        int(path.read_text().split()[0]) for path in (_PROC / str(pid) / "task").glob("*/schedstat")
    ]
    if nanoseconds:
        return sum(nanoseconds) / 1e9
    process = read(pid)
    return 0.0 if process is None else process.cpu_seconds
