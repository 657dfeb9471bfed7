"""Which cores the servers get and which the load, and how a program is put there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cores:
    """A division of the cores that this process may use."""

    server: tuple[int, ...]
    load: tuple[int, ...]

    @property
    def note(self) -> str:
        """What a reader of the numbers must know; empty if servers and load are apart."""
        common = set(self.server) & set(self.load)
        if not common:
            return ""
        if len(set(self.server) | set(self.load)) == 1:
            return "One core only: the servers and the load generator share it, and each slows the other."
        return f"Servers and load generator share {len(common)} cores, and each slows the other."


def available() -> tuple[int, ...]:
    """The cores that this process may use, in order; none where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def divide(cores: Sequence[int], servers: int = 1) -> Cores:
    """The first cores to the server and the rest to the load; all to both where none would be left.

    Args:
        cores: As `available` says.
        servers: Cores that the server wants.
    """
    everything = tuple(cores)
    if len(everything) <= servers:
        return Cores(everything, everything)
    return Cores(everything[:servers], everything[servers:])


@contextlib.contextmanager
def pinned(cores: Sequence[int] | None) -> Iterator[None]:
    """Programs started inside run on these cores; None or no cores: wherever they like.

    A child inherits the affinity of the thread that starts it, from its first
    instruction on. Setting it from outside would miss the threads of its start.
    """
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def moved(cores: Sequence[int] | None) -> Iterator[None]:
    """This process keeps to these cores, with all its threads; None or no cores: it stays as it is.

    gRPC has threads from its first call on, which would go on where they are under `pinned`.
    """
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    _move_threads(cores)
    try:
        yield
    finally:
        _move_threads(before)


def _move_threads(cores: Iterable[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)
