"""Answers over time by how old their features were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hedgerow_bench.records import OK, Records

_COLOURS = {"fresh": "#3b6fb6", "stale": "#e08a1e", "default": "#8b8b8b", "failed": "#c0262d"}
_MARKS = {
    "postgres_killed": "kill -9\nPostgreSQL",
    "valkey_killed": "kill -9\nValkey",
    "restarted": "both\nstarted",
}
#: Seconds to a bar, and of undisturbed load to be seen before.
_WIDTH, _BEFORE = 0.25, 5.0


def draw(records: Records, marks: dict[str, float], path: Path) -> None:
    """Writes a PNG.

    Args:
        records: Every request.
        marks: What is drawn as a line; seconds of the records' clock.
        path: The file.
    """
    # Takes a second, needed only here. Without pyplot, which is for the main thread and screens.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    zero = marks["postgres_killed"]
    replied = records.scheduled + records.latency - zero
    edges = np.arange(-_BEFORE, max(float(replied.max()), 1.0), _WIDTH)
    kinds = {age: (records.features == age) & (records.status == OK) for age in ("fresh", "stale", "default")}
    kinds["failed"] = records.status != OK
    figure = Figure(figsize=(11, 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bottom = np.zeros(len(edges) - 1)
    for name, mine in kinds.items():
        counts = np.histogram(replied[mine], edges)[0] / _WIDTH
        axes.bar(
            edges[:-1],
            counts,
            _WIDTH,
            bottom=bottom,
            align="edge",
            color=_COLOURS[name],
            label=f"{name}: {int(np.count_nonzero(mine & (replied >= edges[0]))):,}",
        )
        bottom += counts
    top = float(bottom.max()) * 1.25
    for name, text in _MARKS.items():
        axes.axvline(marks[name] - zero, color="#333333", linewidth=1.1, linestyle="--")
        axes.annotate(
            text, (marks[name] - zero, top), (4, -4), textcoords="offset points", va="top", fontsize=9
        )
    axes.set_ylim(0, top)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("seconds since PostgreSQL was killed")
    axes.set_ylabel("replies per second")
    axes.set_title("how old the features were", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, borderaxespad=0.2)
    figure.savefig(path)
