"""A primary region that is killed, cut off, frozen or slowed under load, and clients with a backup region.

The servers hedge nothing: what callers see is the client's doing alone.

    PYTHONPATH=tests python tests/chaos/client_outages.py --seconds 60

has each outage once, a minute of load each, half of it without the primary. The figures are in
docs/measurements.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hedgerow
from asker import Ask, Load, Record, asking, client_of, outcomes, percentile, perceptron_questions
from regions import Region, two_regions

#: Each outage: how it begins and how it ends.
OUTAGES: dict[str, tuple[Callable[[Region], Any], Callable[[Region], Any]]] = {
    "killed": (Region.kill, Region.start),
    "black-holed": (lambda region: region.proxy.do("blackhole"), lambda region: region.proxy.do("heal")),
    "frozen": (Region.pause, Region.resume),
    "slowed": (lambda region: region.proxy.do("latency 300"), lambda region: region.proxy.do("heal")),
}

#: Seconds after the end of an outage in which a client may still be finding out.
RETURN = 4.0


@dataclass(frozen=True)
class Figures:
    """What an outage did; times in milliseconds, counts of requests.

    Attributes:
        outage: Which.
        client: `asyncio` or `blocking`.
        requests: Asked in all.
        failed: Without a right answer within the deadline, by code; `LATE` is an answer after it.
        outcomes: Who answered.
        during: Requests that were due while the primary was away.
        p50_calm: Median latency before the outage.
        p50_away: Median latency from a second after its beginning to its end.
        p99_9_away: Of the same requests.
        worst: The longest from due to answer of all.
        calm: Requests that were due before the outage, or `RETURN` seconds after it and later.
        extra_calm: Attempts that both regions counted then, beyond one for each request.
        primary_again: Seconds from the end of the outage until the primary answers one after the other.
    """

    outage: str
    client: str
    requests: int
    failed: dict[str, int]
    outcomes: dict[str, int]
    during: int
    p50_calm: float
    p50_away: float
    p99_9_away: float
    worst: float
    calm: int
    extra_calm: int
    primary_again: float

    @property
    def is_good(self) -> bool:
        """All answered in time; no more attempts beside the outage than the budget allows."""
        return not self.failed and self.extra_calm <= 0.02 * self.calm + 10


@contextlib.asynccontextmanager
async def blocking_client_of(
    target: str, *, seconds: float, backups: list[str], threads: int
) -> AsyncIterator[Ask]:
    """Asks by a `hedgerow.Client` that threads share, so many at most; each call has so many seconds."""
    questions = perceptron_questions()
    loop = asyncio.get_running_loop()
    with (
        ThreadPoolExecutor(threads) as pool,
        hedgerow.Client(target, timeout=seconds, backups=backups) as client,
    ):

        async def ask(number: int) -> hedgerow.InferResult:
            inputs = questions.inputs[number % len(questions.inputs)]
            return await loop.run_in_executor(pool, client.infer, questions.model, inputs)

        yield ask


def suffer(
    east: Region,
    west: Region,
    outage: str,
    *,
    seconds: float,
    rate: float,
    client: str = "asyncio",
    timeout: float = 1.0,
) -> Figures:
    """Loads both regions through a client, and takes the primary away for the middle half of the time.

    Args:
        east: The primary.
        west: The backup.
        outage: One of `OUTAGES`.
        seconds: Of load.
        rate: Requests per second, in open loop.
        client: `asyncio` or `blocking`.
        timeout: Seconds of each call. One that was sent late, since the machine was busy, has as long.
    """
    begin, end = OUTAGES[outage]
    opened = (
        client_of(east.address, timeout=timeout, backups=[west.address], retries=2)
        if client == "asyncio"
        else blocking_client_of(
            east.address,
            seconds=timeout,
            backups=[west.address],
            threads=math.ceil(rate * timeout),  # so that none waits for a thread while all calls hang
        )
    )

    def attempts() -> float:
        return sum(region.count("hedgerow_requests_total") for region in (east, west))

    at_first = attempts()
    with asking(opened, rate=rate, seconds=seconds, timeout=timeout) as load:
        load.wait_until(seconds / 4)
        calm_before = attempts() - at_first
        away = load.now()
        begin(east)
        load.wait_until(3 * seconds / 4)
        end(east)
        back = load.now()
        returned = load.wait_until(back + RETURN)
        at_last = attempts()
    calm_after = attempts() - at_last
    attempts_calm = int(calm_before + calm_after)
    return _figures(load, outage, client, timeout, (away, back, returned), attempts_calm)


def _figures(
    load: Load,
    outage: str,
    client: str,
    timeout: float,
    times: tuple[float, float, float],
    attempts_calm: int,
) -> Figures:
    away, back, returned = times
    failed = Counter(
        one.code if one.code != "OK" else "LATE"
        for one in load.records
        if one.code != "OK" or one.latency - one.lag > timeout
    )
    during = load.between(away + 1, back)
    calm = [one for one in load.records if one.due < away or one.due >= returned]
    return Figures(
        outage=outage,
        client=client,
        requests=len(load.records),
        failed=dict(failed),
        outcomes=outcomes(load.records),
        during=len(load.between(away, back)),
        p50_calm=_ms(percentile(load.between(1, away), 50)),
        p50_away=_ms(percentile(during, 50)),
        p99_9_away=_ms(percentile(during, 99.9)),
        worst=_ms(max(one.latency for one in load.records)),
        calm=len(calm),
        extra_calm=attempts_calm - len(calm),
        primary_again=round(_primary_again(load.between(back, math.inf)) - back, 2),
    )


def _primary_again(records: list[Record]) -> float:
    """When the first of 20 requests in a row was due that the primary answered; hedges come again later."""
    row: list[float] = []
    for record in records:
        row = [*row, record.due] if record.outcome == "primary" else []
        if len(row) == 20:
            return row[0]
    return math.inf


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def main() -> None:
    """Prints the figures; exits with 1 if one of them is bad."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load for each outage")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second")
    parser.add_argument("--client", choices=["asyncio", "blocking"], default="asyncio")
    parser.add_argument("outages", nargs="*", default=list(OUTAGES), help=f"of {', '.join(OUTAGES)}")
    asked = parser.parse_args()
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="hedgerow-") as directory,
        two_regions(Path(directory)) as regions,
    ):
        for outage in asked.outages:
            figures = suffer(*regions, outage, seconds=asked.seconds, rate=asked.rate, client=asked.client)
            found.append(figures)
            print(json.dumps(asdict(figures)), flush=True)
    sys.exit(not all(figures.is_good for figures in found))


if __name__ == "__main__":
    main()
