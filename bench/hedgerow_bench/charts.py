"""A measurement's charts as SVG text, to stand inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

#: Told apart by colour-blind readers too (Okabe and Ito), and light enough for a dark page.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_WIDTH, _HEIGHT = 7.2, 3.6


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: what it shows in words, and the SVG itself."""

    caption: str
    svg: str


def charts(report: Row) -> list[Chart]:
    """The charts of a report; none for what a table says better."""
    draw = _CHARTS.get(report["measurement"])
    return [] if draw is None else draw(report)


def _throughput(report: Row) -> list[Chart]:
    rows = report["rows"]
    labels = [f"{row['concurrency']}\n({row['connections']}x{row['streams']})" for row in rows]
    bars = {server: [row["servers"][server]["per_second"] for row in rows] for server in rows[0]["servers"]}
    return [_bars("Answers per second by requests under way", labels, bars, "answers/s")]


def _tensors(report: Row) -> list[Chart]:
    rows = report["rows"]
    bars = {
        server: [row["servers"][server]["megabytes_per_second"] for row in rows]
        for server in rows[0]["servers"]
    }
    return [_bars("Megabytes a second by size of the input", [row["size"] for row in rows], bars, "MB/s")]


def _peers(report: Row) -> list[Chart]:
    best: dict[str, Row] = {}
    for row in report["rows"]:
        if "error" in row:
            continue
        theirs = list(row["servers"])[1]
        known = best.get(row["title"])
        if known is None or row["servers"][theirs]["per_second"]["median"] > known["median"]:
            best[row["title"]] = row["servers"][theirs]["per_second"]
    ours = [next(iter(row["servers"].values()))["per_second"] for row in report["rows"] if "servers" in row]
    if not ours:
        return []
    best["Hedgerow"] = max(ours, key=lambda spread: spread["median"])
    names = sorted(best, key=lambda name: best[name]["median"])

    def draw(axes: Any) -> None:
        for place, name in enumerate(names):
            spread = best[name]
            axes.barh(
                place,
                spread["median"],
                color=_COLOURS[0] if name == "Hedgerow" else _COLOURS[1],
                xerr=[[spread["median"] - spread["lowest"]], [spread["highest"] - spread["median"]]],
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("answers/s")

    return [_draw("Answers per second at each server's best concurrency", draw, height=1 + 0.35 * len(names))]


def _hedge(report: Row) -> list[Chart]:
    return _curves("Latency by percentile with stalls, open loop", report["rows"], "{server}")


def _overload(report: Row) -> list[Chart]:
    def draw(axes: Any) -> None:
        start = 0
        for row in report["rows"][1:]:
            seconds = [start + entry["second"] for entry in row["timeline"]]
            for place, (key, name) in enumerate((("offered", "offered"), ("in_time", "answered in time"))):
                label = name if start == 0 else None
                values = [entry[key] for entry in row["timeline"]]
                axes.plot(seconds, values, color=_COLOURS[place], label=label)
            start += len(seconds)
        axes.axhline(report["rows"][0]["goodput"], color=_COLOURS[2], linestyle="--", label="peak")
        axes.set_xlabel("seconds")
        axes.set_ylabel("requests/s")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)

    return [_draw("Overload of both regions, second by second", draw)]


def _latency(report: Row) -> list[Chart]:
    return _curves("Latency by percentile, open loop", report["rows"], "{server}, {rate:,.0f}/s")


def _curves(caption: str, rows: Sequence[Row], label: str) -> list[Chart]:
    """A curve for each row; `label` is filled in from the row."""

    def draw(axes: Any) -> None:
        for place, row in enumerate(rows):
            points = [(1 / (1 - percent / 100), value) for percent, value in row["curve_ms"] if percent < 100]
            name = label.format_map(row)
            axes.plot(*zip(*points, strict=True), label=name, color=_COLOURS[place % len(_COLOURS)])
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = [1, 2, 10, 100, 1000, 10_000, 100_000]
        names = ["0", "50", "90", "99", "99.9", "99.99", "99.999"]
        reach = axes.get_xlim()[1]
        shown = [place for place, tick in enumerate(ticks) if tick <= reach]
        axes.set_xticks([ticks[place] for place in shown], [names[place] for place in shown])
        axes.minorticks_off()
        axes.set_xlabel("percentile")
        axes.set_ylabel("ms")
        axes.legend(frameon=False, fontsize=8)

    return [_draw(caption, draw)] if rows else []


def _features(report: Row) -> list[Chart]:
    rows = [row for row in report["rows"] if row["what"] == "read" and len(row["readers"]) > 1]
    if not rows:
        return []
    labels = [f"{row['entities']} x {row['features']} features" for row in rows]
    bars = {reader: [row["readers"][reader]["p50_ms"] for row in rows] for reader in rows[0]["readers"]}
    return [_bars("Milliseconds to read features, one request at a time", labels, bars, "ms", log=True)]


def _scale(report: Row) -> list[Chart]:
    rows = [row for row in report["rows"] if "models" in row]
    if not rows:
        return []
    labels = list(dict.fromkeys(str(row["models"]) for row in rows))
    bars: dict[str, list[Row]] = {}
    for row in rows:
        bars.setdefault(f"{row['concurrency']} under way", []).append(row["per_second"])
    return [_bars("Answers per second by models loaded and asked", labels, bars, "answers/s")]


def _bars(
    caption: str,
    labels: Sequence[str],
    bars: Mapping[str, Sequence[Row]],
    unit: str,
    *,
    log: bool = False,
) -> Chart:
    """Groups of bars of medians; whiskers from the lowest to the highest round."""

    def draw(axes: Any) -> None:
        width = 0.8 / len(bars)
        for place, (name, spreads) in enumerate(bars.items()):
            middles = [spread["median"] for spread in spreads]
            below = [spread["median"] - spread["lowest"] for spread in spreads]
            above = [spread["highest"] - spread["median"] for spread in spreads]
            at = [number + (place - (len(bars) - 1) / 2) * width for number in range(len(labels))]
            axes.bar(at, middles, width, yerr=[below, above], label=name, color=_COLOURS[place], capsize=3)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_ylabel(unit)
        if log:
            axes.set_yscale("log")
        if len(bars) > 1:
            axes.legend(frameon=False)

    return _draw(caption, draw)


def _draw(caption: str, draw: Callable[[Any], None], height: float = _HEIGHT) -> Chart:
    # Takes a second, needed only here. Without pyplot, which is for the main thread and screens.
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Text as text: it can be read aloud and takes the page's colour.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": caption, "font.size": 9}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(visible=True, alpha=0.25, linewidth=0.6)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # Ids are the document's: charts on one page must not share them.
    mark = re.sub(r"\W+", "-", caption.lower())
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{mark}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{mark}-\1)", svg)
    # What matplotlib draws in black takes the page's colour, also in the dark.
    svg = svg.replace("#000000", "currentColor").replace("stroke: #b0b0b0", "stroke: currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace('<text style="', '<text fill="currentColor" style="')
    label = f'<svg role="img" aria-label="{caption}" '
    return Chart(caption, label + svg[len("<svg ") :])


_CHARTS: dict[str, Callable[[Row], list[Chart]]] = {
    "throughput": _throughput,
    "latency": _latency,
    "tensors": _tensors,
    "features": _features,
    "scale": _scale,
    "hedge": _hedge,
    "overload": _overload,
    "peers": _peers,
}
