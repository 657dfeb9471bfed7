"""A server under several times the load that its model can answer, and afterwards.

    python tests/chaos/overload.py --seconds 60        # from the repository's root, prints the figures

The model is the limit, not the server: each of its runs takes a runner thread some milliseconds. First
its capacity is measured in closed loop; then requests come in open loop, at times fixed beforehand and
counted from then, whatever becomes of those before.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import zoo
from hedgerow_bench.contender import framed
from hedgerow_bench.load import Load, Outcome
from hedgerow_bench.wire_plan import WirePlan
from hedgerow_protos.open_inference_pb2 import ModelInferRequest
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, start_server

MODEL = "slow"
#: Seconds of the closed loop, and requests under way in it: more than there are runners.
PEAK_SECONDS, PEAK_CALLERS = 4.0, 8
#: Of the capacity, the load after the flood.
CALM = 0.5


@dataclass(frozen=True, slots=True)
class Flood:
    """What is done to the server.

    Attributes:
        times: The load, in multiples of the capacity.
        seconds: For which it lasts.
        deadline: Seconds, of every request.
        milliseconds: About what a run takes.
        batch: Rows in one run at most.
        high: The part of the requests that have priority 1 of 2; the others have 2. None: no priorities.
        calm: Seconds of ordinary load behind it.
        transport: Of the server.
    """

    times: float = 5.0
    seconds: float = 60.0
    deadline: float = 0.25
    milliseconds: float = 6.0
    batch: int = 1
    high: float | None = None
    calm: float = 10.0
    transport: str = "auto"
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Phase:
    """What became of the requests of one phase."""

    seconds: float
    outcomes: list[Outcome]
    deadline: float

    @property
    def offered(self) -> float:
        """Requests a second."""
        return sum(len(outcome.records) for outcome in self.outcomes) / self.seconds

    @property
    def goodput(self) -> float:
        """Answers in time a second."""
        return sum(self._good(outcome) for outcome in self.outcomes) / self.seconds

    def _good(self, outcome: Outcome) -> int:
        records = outcome.records
        return int(np.count_nonzero((records.status == "OK") & (records.latency <= self.deadline)))

    def served(self, number: int) -> float:
        """The part of one of the loads that was answered in time."""
        return self._good(self.outcomes[number]) / max(1, len(self.outcomes[number].records))

    def latency_ms(self, percent: float) -> float:
        """Of the answers, in milliseconds; counted from when their requests were due."""
        found = [outcome.records.latency[outcome.records.status == "OK"] for outcome in self.outcomes]
        return float(np.percentile(np.concatenate(found), percent)) * 1e3

    @property
    def statuses(self) -> Counter[str]:
        """Requests by status on the wire."""
        found: Counter[str] = Counter()
        for outcome in self.outcomes:
            found.update(outcome.records.status.tolist())
        return found

    def as_usual_after(self, part: float = 0.99) -> float:
        """Seconds from which on every second has so much of its requests answered in time."""
        scheduled = np.concatenate([outcome.records.scheduled for outcome in self.outcomes])
        good = np.concatenate(
            [
                (outcome.records.status == "OK") & (outcome.records.latency <= self.deadline)
                for outcome in self.outcomes
            ]
        )
        seconds = np.floor(scheduled - scheduled.min()).astype(int)
        bad = [second for second in range(seconds.max() + 1) if good[seconds == second].mean() < part]
        return float(max(bad, default=-1) + 1)


@dataclass(slots=True)
class Figures:
    """What was seen of one flood."""

    peak: float
    flood: Phase
    calm: Phase
    #: Of the flood: rows in a run, and rows that were run and answered nobody.
    rows_a_run: float
    in_vain: float
    #: Answers that the server gave later than their requests' deadline, by its own clock.
    late: int
    sheds: dict[str, float]
    limit: float

    def __str__(self) -> str:
        flood, calm = self.flood, self.calm
        lines = [
            f"capacity             {self.peak:8.0f} answers in time a second",
            f"flood                {flood.offered:8.0f} a second, in time {flood.goodput:.0f}",
            f"of the capacity      {flood.goodput / self.peak:8.1%}",
            f"accepted             p50 {flood.latency_ms(50):.1f} ms, p99 {flood.latency_ms(99):.1f} ms",
            f"statuses             {dict(flood.statuses)}",
            f"shed                 {self.sheds}; limit at the end {self.limit:.0f}",
            f"rows in a run        {self.rows_a_run:8.1f}",
            f"run in vain          {self.in_vain:8.0f} rows; answered late by the server's clock {self.late}",
            f"afterwards           {calm.offered:8.0f} a second, in time {calm.goodput:.0f}",
            f"as usual after       {calm.as_usual_after():8.0f} s; p99 {calm.latency_ms(99):.1f} ms",
        ]
        if len(flood.outcomes) > 1:
            high, low = flood.served(0), flood.served(1)
            lines.append(f"answered in time     {high:.1%} of priority 1, {low:.1%} of priority 2")
        return "\n".join(lines)


def message(priority: int = 0) -> bytes:
    """A framed request for one row."""
    request = ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.ones((1, 1), np.float32).tobytes())
    if priority:
        request.parameters["priority"].uint64_param = priority
    return framed(request.SerializeToString())


class Rig:
    """A running server and the loads on it."""

    def __init__(self, server: ServerProcess, flood: Flood) -> None:
        self.server = server
        self.flood = flood
        self._runs = 0

    async def load(self, seconds: float, priority: int = 0, **plan: object) -> Outcome:
        """One load, in a process of its own."""
        self._runs += 1
        bodies = self.server.directory / f"bodies-{priority}.bin"
        bodies.write_bytes(message(priority))
        planned = WirePlan(
            target=self.server.grpc,
            bodies=str(bodies),
            records=str(self.server.directory / f"records-{self._runs}.npz"),
            seconds=seconds,
            deadline=self.flood.deadline,
            seed=self._runs,
            spin=False,
            **plan,  # type: ignore[arg-type]
        )
        async with Load(planned) as load:
            return await load.finish()

    async def phase(self, rate: float, seconds: float) -> Phase:
        """An open loop; with priorities, one for each."""
        high = self.flood.high
        parts = [(0, 1.0)] if high is None else [(1, high), (2, 1.0 - high)]
        outcomes = await asyncio.gather(
            *(self.load(seconds, priority, rate=rate * part) for priority, part in parts)
        )
        return Phase(seconds, list(outcomes), self.flood.deadline)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        with urllib.request.urlopen(f"http://{self.server.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"hedgerow_{name}" and labels.items() <= sample.labels.items()
        )

    def _rows(self) -> tuple[float, float, float]:
        """Runs so far, rows in them, and requests answered."""
        return (
            self.metric("batch_rows_count", model=MODEL),
            self.metric("batch_rows_sum", model=MODEL),
            self.metric("requests_total", model=MODEL, code="OK"),
        )

    async def run(self) -> Figures:
        """Measures the capacity, floods, and looks how it is afterwards."""
        flood = self.flood
        closed = Phase(
            PEAK_SECONDS,
            [await self.load(PEAK_SECONDS, mode="closed", callers=PEAK_CALLERS * flood.batch)],
            flood.deadline,
        )
        peak = closed.goodput
        before, lines = self._rows(), len(self.server.log_lines())
        hot = await self.phase(peak * flood.times, flood.seconds)
        runs, rows, answered = (now - then for now, then in zip(self._rows(), before, strict=True))
        late = [
            line
            for line in self.server.log_lines()[lines:]
            if line["code"] == "OK" and line["total_ms"] > flood.deadline * 1e3
        ]
        limit = self.metric("concurrency_limit", model=MODEL)
        reasons = ("limit", "priority", "deadline")
        sheds = {reason: self.metric("sheds_total", model=MODEL, reason=reason) for reason in reasons}
        calm = await self.phase(peak * CALM, flood.calm)
        return Figures(peak, hot, calm, rows / max(1, runs), rows - answered, len(late), sheds, limit)


async def measure(directory: Path, flood: Flood) -> Figures:
    """Starts a server and floods it."""
    model = directory / "model"
    model.mkdir()
    zoo.slow(model / "model.onnx", flood.milliseconds)
    levels = "" if flood.high is None else ", priority_levels: 2, default_priority_level: 2"
    (model / "serving.yaml").write_text(f"batching: {{max_batch_size: {flood.batch}{levels}}}\n")
    flags = {"log__level": "warning", "transport": flood.transport, **flood.settings}
    server = await asyncio.to_thread(start_server, directory, {MODEL: model}, flags)
    try:
        return await Rig(server, flood).run()
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait)


def main() -> None:
    """Prints the figures of one flood."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--times", type=float, default=5.0)
    options.add_argument("--deadline", type=float, default=250.0, help="milliseconds")
    options.add_argument("--run", type=float, default=6.0, help="milliseconds of a run")
    options.add_argument("--batch", type=int, default=1, help="rows in a run")
    options.add_argument("--high", type=float, default=None, help="part of the requests with priority 1")
    options.add_argument("--transport", default="auto")
    options.add_argument("--without", action="store_true", help="no adaptive limit, no limit at all")
    given = options.parse_args()
    settings = {"admission__adaptive": "false"} if given.without else {}
    flood = Flood(
        given.times,
        given.seconds,
        given.deadline / 1e3,
        given.run,
        given.batch,
        given.high,
        transport=given.transport,
        settings=settings,
    )
    with tempfile.TemporaryDirectory() as directory:
        print(asyncio.run(measure(Path(directory), flood)))


if __name__ == "__main__":
    main()
