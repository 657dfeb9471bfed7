"""One measurement's report: run it, note where and when, print its table, write its JSON."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hedgerow import HedgerowError
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from hedgerow_bench import machine, page, tables
from hedgerow_bench.contender import WrongAnswer
from hedgerow_bench.load import LoadError
from hedgerow_bench.process import NotReady

Rows = list[dict[str, Any]]
#: Of `hedgerow bench`: done; requests failed; nothing measured; Ctrl-C.
DONE, FAILED, NOT_MEASURED, STOPPED = 0, 1, 2, 130

console = Console(highlight=False)
if not console.is_terminal:
    console.width = max(console.width, 120)


def tell(line: str) -> None:
    """Shows progress."""
    console.print(f"  {line}", style="dim", markup=False, soft_wrap=True)


@dataclass(slots=True)
class Report:
    """What a measurement adds to while it runs."""

    #: What a reader of the numbers must know.
    notes: list[str] = field(default_factory=list)
    #: Beside the rows: what does not fit into them.
    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, sentence: str) -> None:
        """Adds a sentence, unless it is empty or known."""
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)


def run(
    name: str,
    measurement: Callable[[Report], Awaitable[Rows]],
    out: Path,
    *,
    command: str,
    as_json: bool,
) -> int:
    """Runs a measurement to its report OUT/NAME.json.

    Args:
        name: Of the measurement, as `tables` knows it.
        measurement: Returns its rows.
        out: For the report.
        command: What repeats it.
        as_json: The report goes to stdout, all else to stderr.

    Returns:
        The exit code.
    """
    console.stderr = as_json
    console.print(f"[bold]{name}[/]")
    out.mkdir(parents=True, exist_ok=True)
    report = Report()
    report.note(machine.listen().note)
    company = machine.Company()
    date, began = datetime.now(UTC), time.monotonic()
    try:
        rows = asyncio.run(_until_told(measurement(report)))
    except (HedgerowError, LoadError, NotReady, WrongAnswer, ValueError, OSError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return NOT_MEASURED
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print(f"{name} was stopped; nothing of it is kept.", style="yellow")
        return STOPPED
    report.note(company.note())
    if any(row.get("generator_was_the_limit") for row in rows):
        report.note(
            "In some rows the load generator was busy or late itself: there the client was the limit."
        )
    whole = {
        "measurement": name,
        "date": date.isoformat(timespec="seconds"),
        "command": command,
        "took_seconds": round(time.monotonic() - began, 1),
        "machine": machine.describe(),
        "noise": report.notes,
        **report.facts,
        "rows": rows,
    }
    (out / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")
    _show(whole)
    console.print(f"{out}/{name}.json", style="dim", soft_wrap=True)
    show_page(out)
    if as_json:
        print(json.dumps(whole))
    return FAILED if any(row.get("failed") for row in rows) else DONE


def show_page(out: Path) -> int:
    """Makes the page of all reports in OUT anew; returns the exit code."""
    try:
        path = page.write(out)
    except ValueError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return NOT_MEASURED
    console.print(str(path), style="dim", soft_wrap=True)
    return DONE


async def _until_told(measurement: Awaitable[Rows]) -> Rows:
    """Ends the measurement, and with it all that it started, also on SIGTERM; asyncio sees to Ctrl-C."""
    task = asyncio.ensure_future(measurement)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _show(report: Mapping[str, Any]) -> None:
    for table in tables.tables(report):
        shown = RichTable(
            title=table.caption or None,
            title_justify="left",
            title_style="",
            box=None,
            padding=(0, 1),
            header_style="bold",
        )
        for place, heading in enumerate(table.headings):
            shown.add_column(escape(heading), justify="right" if place else "left")
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
    for note in report["noise"]:
        console.print(note, style="yellow", soft_wrap=True, markup=False)
