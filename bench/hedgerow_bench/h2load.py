"""Closed-loop load by nghttp2's h2load: a C program, so that the generator is not what is measured.

It knows HTTP, not gRPC: it counts answers with HTTP status 200, and gRPC says
in the trailers whether a call failed. So whoever uses its counts checks them:
a failed call has no body (`Shot.answered`), and a server's own metrics tell
its statuses.
"""

from __future__ import annotations

import asyncio
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hedgerow_bench.contender import Contender
from hedgerow_bench.cores import pinned
from hedgerow_bench.load import LoadError

#: Debian's package is nghttp2-client, Homebrew's nghttp2.
HINT = "h2load is not installed (apt-get install nghttp2-client)"

_RATE = re.compile(r"^finished in [\d.]+\w+, ([\d.]+) req/s", re.MULTILINE)
_REQUESTS = re.compile(
    r"^requests: \d+ total, \d+ started, (?P<done>\d+) done, (?P<succeeded>\d+) succeeded, "
    r"(?P<failed>\d+) failed, (?P<errored>\d+) errored, (?P<timeout>\d+) timeout",
    re.MULTILINE,
)
_TRAFFIC = re.compile(r"^traffic: .*\((\d+)\) data$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Shot:
    """One run against one server.

    Attributes:
        requests: Answers in the measured time.
        per_second: The same for each second.
        failed: Answers that were none: HTTP errors, broken streams, missing bodies.
        cpu: Processor time of the generator, in parts of one core.
        server_us: Processor time of the server for each answer, in microseconds; 0: it was not watched.
    """

    requests: int
    per_second: float
    failed: int
    cpu: float
    server_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What h2load prints about the measured time."""

    per_second: float
    succeeded: int
    failed: int
    body_bytes: int


def installed() -> bool:
    """Whether h2load is on the path."""
    return shutil.which("h2load") is not None


def version() -> str:
    """As it calls itself, `h2load nghttp2/1.52.0`; empty if it is not installed."""
    if not installed():
        return ""
    return subprocess.run(
        ["h2load", "--version"],  # noqa: S607 - found on the path, as it is run
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    ).stdout.strip()


def parse(text: str) -> Counts:
    """Reads h2load's closing lines.

    Raises:
        LoadError: It has none.
    """
    rate, requests, traffic = _RATE.search(text), _REQUESTS.search(text), _TRAFFIC.search(text)
    if rate is None or requests is None or traffic is None:
        raise LoadError(f"h2load did not finish: {' '.join(text.split())[-300:]}")
    failed = sum(int(requests[kind]) for kind in ("failed", "errored", "timeout"))
    return Counts(float(rate[1]), int(requests["succeeded"]), failed, int(traffic[1]))


def missing(counts: Counts, reply_bytes: int, under_way: int) -> int:
    """Answers without the body that a right one has.

    Args:
        counts: Of the run.
        reply_bytes: Size of a right answer's body.
        under_way: Requests under way at most: at either end of the measured
            time as many bodies may be counted whose requests are not, or the reverse.
    """
    bodies = counts.body_bytes / reply_bytes
    # A number in JSON may be some digits shorter when other rows shared its batch.
    short = counts.succeeded * 0.97 - under_way - bodies
    return round(counts.succeeded - bodies) if short > 0 else 0


async def closed_loop(
    contender: Contender,
    *,
    connections: int,
    streams: int,
    seconds: float,
    warm_up: float,
    body: Path,
    cores: Sequence[int] | None,
    log: Path | None = None,
) -> Shot:
    """Keeps connections x streams requests under way.

    Args:
        contender: Who is asked.
        connections: To it; over HTTP/1.1 one for each request under way.
        streams: Requests under way on each.
        seconds: Measured time.
        warm_up: Seconds before it.
        body: A file for the request.
        cores: Where h2load runs.
        log: Gets a line for each request; see `latencies`.

    Raises:
        LoadError: It did not finish.
    """
    body.write_bytes(contender.body)  # noqa: ASYNC240 - before the run; nothing else is under way
    under_way = connections * streams
    split = (
        ("--h1", "-c", str(under_way)) if contender.http1 else ("-c", str(connections), "-m", str(streams))
    )
    command = ["h2load", *split, "-D", _ms(seconds), f"--warm-up-time={_ms(warm_up)}", "-d", str(body)]
    for name, value in contender.headers:
        command += ["-H", f"{name}: {value}"]
    if log is not None:
        log.unlink(missing_ok=True)  # noqa: ASYNC240 - as above; h2load would append
        command += ["--log-file", str(log)]
    used, began = _children_cpu(), time.monotonic()
    with pinned(cores):
        process = await asyncio.create_subprocess_exec(
            *command,
            contender.url,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(seconds + warm_up + 20):
            output, _ = await process.communicate()
    except TimeoutError:
        raise LoadError(f"h2load against {contender.name} did not end") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    cpu = (_children_cpu() - used) / (time.monotonic() - began)
    counts = parse(output.decode(errors="replace"))
    failed = counts.failed + missing(counts, contender.reply_bytes, under_way)
    return Shot(counts.succeeded, counts.per_second, failed, round(cpu, 3))


def latencies(log: Path, seconds: float) -> npt.NDArray[np.float64]:
    """Seconds that each answered request of the last `seconds` took, from h2load's log (µs)."""
    rows = np.loadtxt(log, dtype=np.int64, ndmin=2)
    if not len(rows):
        return np.zeros(0)
    start, status, took = rows[:, 0], rows[:, 1], rows[:, 2]
    measured = (start >= start.max() - seconds * 1e6) & (status >= 200) & (status < 300)
    found: npt.NDArray[np.float64] = took[measured] / 1e6
    return found


def _ms(seconds: float) -> str:
    # h2load reads whole numbers only.
    return f"{max(1, round(seconds * 1000))}ms"


def _children_cpu() -> float:
    """Of ended children: the servers live on, so between two calls it is h2load's."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
