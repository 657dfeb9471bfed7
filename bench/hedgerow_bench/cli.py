"""`hedgerow bench`: measures this machine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from hedgerow import HedgerowError
from rich.console import Console
from rich.table import Table

from hedgerow_bench import machine, measure
from hedgerow_bench.load import LoadError
from hedgerow_bench.process import NotReady
from hedgerow_bench.subject import Subject, own_server, own_stack, running_server

app = cyclopts.App(
    name="hedgerow bench",
    help="Measures throughput, latency and swaps on this machine.",
    help_epilogue="Exit codes: 0 done; 1 a request failed; 2 nothing could be measured.",
    help_prologue="""Examples:
  hedgerow bench                                  all three, on servers of its own
  hedgerow bench throughput --callers 1 --callers 64
  hedgerow bench latency --rate 300 --rate 1000 --seconds 20
  hedgerow bench latency --target 127.0.0.1:8001 --model arrival-delay
  hedgerow bench swap --moves 20 --seconds 60""",
    help_format="plaintext",
)
console = Console(highlight=False)

Target = Annotated[str | None, cyclopts.Parameter(help="A running server; without it, one is started.")]
Model = Annotated[str, cyclopts.Parameter(help="The model to ask, with --target.")]
Seconds = Annotated[float, cyclopts.Parameter(help="Length of each run.")]
Transport = Annotated[
    Literal["auto", "native", "grpcio"], cyclopts.Parameter(help="Of the server that is started.")
]
Workers = Annotated[int, cyclopts.Parameter(help="Of the server that is started.")]
AsJson = Annotated[
    bool,
    cyclopts.Parameter(
        name="--json", negative="", help="Print the report as JSON; progress to standard error."
    ),
]
Out = Annotated[Path, cyclopts.Parameter(help="For NAME.json, the records of every request and logs.")]


@app.command
def throughput(
    *,
    callers: Annotated[
        tuple[int, ...], cyclopts.Parameter(help="Callers that ask without pause; repeatable.")
    ] = (1, 16, 64),
    seconds: Seconds = 5.0,
    target: Target = None,
    model: Model = "mlp",
    transport: Transport = "auto",
    workers: Workers = 1,
    out: Out = Path("var/bench"),
    as_json: AsJson = False,
) -> int:
    """Answers per second by number of callers (closed loop, one client process)."""

    async def run() -> Any:
        async with _subject(target, model, out, transport, workers) as subject:
            return await measure.throughput(subject, callers, seconds, out, _tell)

    return _report("throughput", run, out, ("callers", "answers_per_second"), as_json=as_json)


@app.command
def latency(
    *,
    rate: Annotated[tuple[float, ...], cyclopts.Parameter(help="Requests per second; repeatable.")] = (
        300.0,
        1000.0,
    ),
    seconds: Seconds = 10.0,
    target: Target = None,
    model: Model = "mlp",
    transport: Transport = "auto",
    workers: Workers = 1,
    out: Out = Path("var/bench"),
    as_json: AsJson = False,
) -> int:
    """Latency at fixed rates (open loop, counted from when each request was due)."""

    async def run() -> Any:
        async with _subject(target, model, out, transport, workers) as subject:
            return await measure.latency(subject, rate, seconds, out, _tell)

    return _report("latency", run, out, ("rate",), as_json=as_json)


@app.command
def swap(
    *,
    moves: Annotated[int, cyclopts.Parameter(help="How often the alias champion moves.")] = 20,
    seconds: Seconds = 60.0,
    rate: Annotated[float, cyclopts.Parameter(help="Requests per second meanwhile.")] = 300.0,
    out: Out = Path("var/bench"),
    as_json: AsJson = False,
) -> int:
    """Alias moves under load, on a local stack of its own."""

    async def run() -> Any:
        _tell("starting MLflow, control plane and servers")
        async with own_stack(out) as at:
            return [await measure.swap(at["server"], at["mlflow"], moves, seconds, rate, out, _tell)]

    return _report("swap", run, out, ("moves", "moves_served", "alias_to_served_ms"), as_json=as_json)


@app.default
def everything(*, out: Out = Path("var/bench"), as_json: AsJson = False) -> int:
    """Throughput, latency and swap, one after the other."""
    return max(one(out=out, as_json=as_json) for one in (throughput, latency, swap))


@asynccontextmanager
async def _subject(
    target: str | None, model: str, out: Path, transport: str, workers: int
) -> AsyncIterator[Subject]:
    if target is not None:
        yield await running_server(target, model, out)
        return
    async with own_server(out, transport=transport, workers=workers) as subject:
        yield subject


def _tell(line: str) -> None:
    console.print(f"  {line}", style="dim", markup=False, soft_wrap=True)


def _report(name: str, run: Any, out: Path, columns: tuple[str, ...], *, as_json: bool) -> int:
    """Runs a measurement, prints its table, writes its JSON; 1 if a request failed."""
    console.stderr = as_json
    console.print(f"[bold]{name}[/]")
    quiet = machine.listen()
    try:
        rows: list[Mapping[str, Any]] = asyncio.run(run())
    except (HedgerowError, LoadError, NotReady, ValueError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    report = {"measurement": name, "machine": machine.describe(), "noise": quiet.note, "rows": rows}
    (out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(_table(rows, columns))
    if quiet.note:
        console.print(quiet.note, style="yellow", soft_wrap=True)
    if any(row["generator_was_the_limit"] for row in rows):
        console.print(
            "In some rows the load generator used a whole core: there the client was the limit.",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"{out}/{name}.json", style="dim")
    if as_json:
        print(json.dumps(report))
    return 1 if any(row["failed"] for row in rows) else 0


def _table(rows: list[Mapping[str, Any]], columns: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for column in (*columns, "requests", "failed", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms"):
        table.add_column(_HEADINGS.get(column, column), justify="right")
    for row in rows:
        percentiles = row["latency_ms"]
        table.add_row(
            *(_cell(row[column]) for column in columns),
            _cell(row["requests"]),
            _cell(row["failed"]),
            *(_cell(percentiles.get(point)) for point in ("p50", "p90", "p99", "p99_9")),
        )
    return table


#: Of columns that are not named as they are in the JSON.
_HEADINGS = {
    "answers_per_second": "answers/s",
    "moves_served": "served",
    "alias_to_served_ms": "alias to served ms",
}


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"p50 {_cell(value.get('p50'))}, p99 {_cell(value.get('p99'))}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "-" if value is None else f"{value:,}"


def run(arguments: list[str] | None = None) -> int:
    """Returns 0, 1 if a request failed, 2 if nothing could be measured."""
    return int(app(arguments, result_action="return_value") or 0)


def main() -> None:
    """Exits as `run` returns."""
    sys.exit(run())
