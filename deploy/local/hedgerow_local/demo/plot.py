"""Latency over time, one dot a request, coloured by the version that answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hedgerow_bench.records import OK, Records

_COLOURS = {"1": "#3b6fb6", "2": "#e08a1e"}
#: What is drawn as a line: its words, and on which side of it they stand.
_MARKS = {
    "publish_started": ("publish v2", -1),
    "alias_moved": ("champion → v2", 1),
    "rollback": ("rollback", 1),
}


def draw(records: Records, marks: dict[str, float], to_served: float, path: Path) -> None:
    """Writes a PNG.

    Args:
        records: Every request.
        marks: `load_started`, and what to draw as a line; seconds of the records' clock.
        to_served: Seconds from the alias move to the first reply of version 2; shaded.
        path: The file.
    """
    # Takes a second, needed only here. Without pyplot, which is for the main thread and screens.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import FuncFormatter  # noqa: PLC0415

    zero = marks["load_started"]
    seconds, milliseconds = records.scheduled - zero, records.latency * 1000
    figure = Figure(figsize=(11, 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for version, colour in _COLOURS.items():
        mine = (records.version == version) & (records.status == OK)
        axes.scatter(
            seconds[mine],
            milliseconds[mine],
            s=5,
            alpha=0.45,
            color=colour,
            linewidths=0,
            label=f"version {version}: {np.count_nonzero(mine):,} answers",
            rasterized=True,
        )
    failed = records.status != OK
    if failed.any():
        label = f"failed: {np.count_nonzero(failed):,}"
        axes.scatter(seconds[failed], milliseconds[failed], s=30, marker="x", color="#c0262d", label=label)
    axes.set_yscale("log")
    # Room above for the words at the lines.
    low, high = float(milliseconds.min()) * 0.7, float(milliseconds.max()) * 3
    axes.set_ylim(low, high)
    axes.set_xlim(0, float(seconds.max()) * 1.005)
    for name, (text, side) in _MARKS.items():
        if name in marks:
            at = marks[name] - zero
            axes.axvline(at, color="#333333", linewidth=1.1, linestyle="--" if side > 0 else ":")
            axes.annotate(
                text,
                (at, high),
                (5 * side, -5),
                textcoords="offset points",
                va="top",
                ha="left" if side > 0 else "right",
                fontsize=10,
            )
    moved = marks["alias_moved"] - zero
    axes.axvspan(moved, moved + to_served, color="#333333", alpha=0.07, linewidth=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("seconds since the load began")
    axes.set_ylabel("latency in ms, from when the request was due")
    axes.set_title(
        f"{len(records):,} requests, {records.failed} failed",
        loc="left",
    )
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=3, markerscale=3, frameon=False, borderaxespad=0.2
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    figure.savefig(path)
