"""All reports of a directory as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hedgerow_bench import charts, tables
from hedgerow_bench.cells import Table

NAME = "report.html"
#: In this order, with what each asks.
SECTIONS = {
    "throughput": "How many requests a second?",
    "latency": "How long does a request take?",
    "peers": "And other servers?",
    "tensors": "How fast are large inputs?",
    "features": "How fast are features joined?",
    "scale": "What do more workers, more models and no traffic change?",
    "hedge": "What does hedging make of stalls?",
    "overload": "What happens when there is too much?",
    "loads": "What does a caller notice while a model is loaded?",
    "swap": "What does a caller notice while versions change?",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --paper: #ffffff; --faint: #5b6670; --line: #d5dbe0;
  --warn: #fff4d6; --link: #00528a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8eb; --paper: #15191d; --faint: #a3afb9; --line: #39424a; --warn: #3a3113;
    --link: #7cc4f5; }
}
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
a { color: var(--link); } code { font-size: .9em; overflow-wrap: anywhere; }
.facts { color: var(--faint); font-size: .9rem; }
.note { background: var(--warn); padding: .5rem .8rem; border-radius: .3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tbody th { font-weight: 400; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dd { margin: 0; }
"""


_HOW_TO_READ = """Ratios compare servers that were asked in turn, within seconds, on the same core;
absolute numbers belong to this machine on this day. A cell gives the median of the rounds, and in
brackets the lowest and the highest."""


def read(directory: Path) -> list[dict[str, Any]]:
    """The reports that lie in a directory, in the page's order.

    Raises:
        ValueError: One is no report.
    """
    found = []
    for name in SECTIONS:
        path = directory / f"{name}.json"
        if not path.is_file():
            continue
        try:
            report = json.loads(path.read_text())
            tables.tables(report)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no report of this release ({error!r}); measure again") from None
        found.append(report)
    return found


def write(directory: Path) -> Path:
    """Writes report.html from the JSON files beside it.

    Raises:
        ValueError: There is none, or one is no report.
    """
    reports = read(directory)
    if not reports:
        raise ValueError(f"{directory} holds no report; run `hedgerow bench` first")
    path = directory / NAME
    path.write_text(render(reports), encoding="utf-8")
    return path


def render(reports: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Hedgerow: measurements</title><style>{_STYLE}</style></head><body><main>",
        "<h1>Hedgerow: measurements</h1>",
        f"<p>{_HOW_TO_READ}</p><nav><ul>",
        *(
            f'<li><a href="#{report["measurement"]}">{escape(SECTIONS[report["measurement"]])}</a></li>'
            for report in reports
        ),
        "</ul></nav>",
        *map(_section, reports),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _section(report: Mapping[str, Any]) -> str:
    name = report["measurement"]
    parts = [f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(SECTIONS[name])}</h2>']
    parts += [f'<p class="note" role="note">{escape(note)}</p>' for note in report["noise"]]
    for chart in charts.charts(report):
        parts.append(f"<figure><figcaption>{escape(chart.caption)}</figcaption>{chart.svg}</figure>")
    parts += [_table(table) for table in tables.tables(report)]
    parts.append(_facts(report))
    parts.append("</section>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.caption)}">'
        f"<table><caption>{escape(table.caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _facts(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    packages = ", ".join(f"{name} {release}" for name, release in machine["packages"].items())
    facts = {
        "measured": f"{report['date']}, in {report['took_seconds']:,.0f} s",
        "again with": f"<code>{escape(report['command'])}</code>",
        "machine": escape(
            f"{machine['cpus']} cores of {machine['processor']}, {machine['system']}, "
            f"Python {machine['python']}"
        ),
        "releases": escape(packages),
    }
    if report.get("generator"):
        facts["load"] = escape(report["generator"])
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{body}</dl>'
