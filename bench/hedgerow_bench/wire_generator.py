"""The fast load generator's process: a `WirePlan` on stdin, news as JSON lines on stdout.

    {"event": "started", "at": 12.3}        seconds of the monotonic clock
    {"event": "finished", "cpu": 0.31}      the records are written

A line, or the end of stdin, stops the sending early; so it does not outlive
whoever started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading
import time
from pathlib import Path

import numpy as np

from hedgerow_bench.generator import HEAD_START, tell
from hedgerow_bench.records import Log
from hedgerow_bench.schedule import offsets
from hedgerow_bench.wire import Line, Lines, drive_closed, drive_open
from hedgerow_bench.wire_plan import WirePlan

_PR_SET_TIMERSLACK = 29


def bodies(data: bytes) -> list[bytes]:
    """Cuts a file of framed messages."""
    found, at = [], 0
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        found.append(data[at:end])
        at = end
    return found


def run(plan: WirePlan, stop: threading.Event) -> None:
    """Carries out a plan and writes its records."""
    log = Log()
    lines = Lines(
        lambda: Line(plan.target, plan.method, plan.headers),
        plan.connections,
        bodies(Path(plan.bodies).read_bytes()),
    )
    random = np.random.default_rng(plan.seed)
    planned = offsets(plan.rate, plan.seconds, plan.arrivals, random) if plan.mode == "open" else None
    # A pause of the collector would be charged to the server. What is kept here has no cycles.
    gc.collect()
    gc.disable()
    start = time.monotonic() + HEAD_START
    tell("started", at=start)
    time.sleep(HEAD_START)
    cpu = time.process_time()
    if planned is None:
        until = start + plan.seconds
        drive_closed(lines, log, callers=plan.callers, until=until, timeout=plan.timeout, stopped=stop.is_set)
    else:
        drive_open(
            lines,
            (start + planned).tolist(),
            log,
            outstanding=plan.outstanding,
            timeout=plan.timeout,
            spin=plan.spin,
            stopped=stop.is_set,
        )
    seconds = max(1e-9, time.monotonic() - start)
    cpu = time.process_time() - cpu
    lines.close()
    log.records().save(plan.records_path)
    tell("finished", cpu=round(cpu / seconds, 3))


def _precise_sleep() -> None:
    """Linux may wake a sleeper 50 µs late to save power, unless told not to."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def main() -> None:
    """Reads the plan, runs it, stops when told to."""
    plan = WirePlan.from_json(sys.stdin.readline())
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        stop.set()

    # A daemon: at the end it still waits for the line.
    threading.Thread(target=listen, daemon=True).start()
    _precise_sleep()
    run(plan, stop)


if __name__ == "__main__":
    main()
