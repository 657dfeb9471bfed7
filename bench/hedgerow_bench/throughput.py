"""Answers per second in a closed loop: so many requests under way, each followed by the next.

Through h2load where it is installed, else through the generator of `wire`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from hedgerow_bench import counters, h2load, procfs, wire_load
from hedgerow_bench.contender import Contender
from hedgerow_bench.cores import Cores
from hedgerow_bench.process import NotReady
from hedgerow_bench.spread import interleaved, ratios, spread

Tell = Callable[[str], None]
#: Above this part of a core the generator was the limit.
BUSY = 0.9
#: Connections that a closed loop opens, at most one for each request under way. See docs/performance.md.
CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class Loop:
    """How a closed loop is run.

    Attributes:
        rounds: How often each server is asked.
        seconds: Measured time of each.
        warm_up: Seconds before it.
        directory: For files.
        cores: Of servers and load.
    """

    rounds: int
    seconds: float
    warm_up: float
    directory: Path
    cores: Cores


def split(concurrency: int, connections: int = CONNECTIONS) -> tuple[int, int]:
    """Connections, and streams on each, for so many requests under way.

    As many connections as are wanted, or the next lower number that divides evenly.
    """
    used = min(connections, concurrency)
    while concurrency % used:
        used -= 1
    return used, concurrency // used


async def shoot(contender: Contender, loop: Loop, connections: int, streams: int) -> h2load.Shot:
    """One run against one server, its answers verified.

    Raises:
        NotReady: The server speaks HTTP/1.1 and h2load is not installed.
    """
    before = await counters.read(contender.metrics) if contender.metrics else None
    if not h2load.installed():
        if contender.http1:
            raise NotReady(h2load.HINT)
        shot = await shoot_varied(contender, loop, connections, streams)
    else:
        with _Watch(contender, loop) as watch:
            shot = await h2load.closed_loop(
                contender,
                connections=connections,
                streams=streams,
                seconds=loop.seconds,
                warm_up=loop.warm_up,
                body=loop.directory / "request.bin",
                cores=loop.cores.load,
            )
        shot = watch.add_to(shot)
    if before is None:
        return shot
    after = await counters.read(contender.metrics)
    return replace(shot, failed=max(shot.failed, counters.unanswered(before, after, shot.requests)))


async def shoot_varied(contender: Contender, loop: Loop, connections: int, streams: int) -> h2load.Shot:
    """The same by the generator of `wire`, which sends all requests in the contender's body in turn."""
    with _Watch(contender, loop) as watch:
        outcome = await wire_load.closed_loop(
            contender,
            connections=connections,
            streams=streams,
            seconds=loop.seconds,
            warm_up=loop.warm_up,
            directory=loop.directory,
            cores=loop.cores,
        )
    failed = outcome.records.failed
    answered = len(outcome.records) - failed
    return watch.add_to(h2load.Shot(answered, answered / loop.seconds, failed, outcome.cpu))


class _Watch:
    """Watches how much processor time a server of ours takes during a run."""

    def __init__(self, contender: Contender, loop: Loop) -> None:
        self._pid = contender.pid
        self._seconds = loop.seconds + loop.warm_up
        self._busy = 0.0

    def __enter__(self) -> Self:
        self._busy = -self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._busy += self._read()

    def _read(self) -> float:
        return procfs.cpu_seconds_of_family(self._pid) if self._pid else 0.0

    def add_to(self, shot: h2load.Shot) -> h2load.Shot:
        """The same run, with the server's time for each answer."""
        # Those of the warm-up were not counted, and came about as fast.
        answers = shot.per_second * self._seconds
        return replace(shot, server_us=self._busy * 1e6 / answers) if answers else shot


async def measure(
    contenders: Sequence[Contender], splits: Sequence[tuple[int, int]], loop: Loop, tell: Tell
) -> list[dict[str, Any]]:
    """Runs every server at every split, interleaved in rounds.

    Args:
        contenders: The servers; the first is held against each other.
        splits: Connections, and streams on each.
        loop: How.
        tell: Hears the progress.

    Returns:
        A row for each split: `servers` by name with the spreads of `per_second` and, where it is
        known, of `server_us` (processor time for each answer), and `ratios` of the first to each other.
    """
    shots: dict[tuple[int, int], dict[str, list[h2load.Shot]]] = {
        each: {contender.name: [] for contender in contenders} for each in splits
    }
    for number in range(loop.rounds):
        for connections, streams in splits:
            told = []
            for _, contender in interleaved(1, contenders[:: 1 if number % 2 == 0 else -1]):
                shot = await shoot(contender, loop, connections, streams)
                shots[connections, streams][contender.name].append(shot)
                told.append(f"{contender.name} {shot.per_second:,.0f}/s")
            tell(
                f"round {number + 1}/{loop.rounds}, {connections * streams} under way: "
                f"{', '.join(sorted(told, reverse=True))}"
            )
    return [_row(connections, streams, shots[connections, streams]) for connections, streams in splits]


def _row(connections: int, streams: int, shots: dict[str, list[h2load.Shot]]) -> dict[str, Any]:
    rates = {name: [shot.per_second for shot in each] for name, each in shots.items()}
    first, *others = rates
    everything = [shot for each in shots.values() for shot in each]
    cpu = max(shot.cpu for shot in everything)
    return {
        "concurrency": connections * streams,
        "connections": connections,
        "streams": streams,
        "servers": {
            name: {"per_second": spread(rates[name]), "server_us": spread([shot.server_us for shot in each])}
            for name, each in shots.items()
        },
        "ratios": {other: ratios(rates[first], rates[other]) for other in others if min(rates[other]) > 0},
        "requests": sum(shot.requests for shot in everything),
        "failed": sum(shot.failed for shot in everything),
        "generator_cpu": cpu,
        "generator_was_the_limit": cpu > BUSY,
    }
