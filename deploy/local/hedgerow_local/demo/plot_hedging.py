"""The tail of latency, with and without hedging."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from hedgerow_bench.records import Records, curve_ms

_COLOURS = {"without": "#c0262d", "with": "#3b6fb6"}


def draw(runs: Mapping[str, Records], path: Path) -> None:
    """Writes a PNG: latency by percentile, the tail stretched.

    Args:
        runs: `without` and `with` hedging.
        path: The file.
    """
    # Takes a second, needed only here. Without pyplot, which is for the main thread and screens.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = 1.0
    for name, records in runs.items():
        percentiles, milliseconds = np.asarray(curve_ms(records.latency)).T
        nines = -np.log10(1 - percentiles / 100)
        longest = max(longest, float(nines.max()))
        tail = float(np.quantile(records.latency, 0.999)) * 1000
        axes.plot(
            nines, milliseconds, color=_COLOURS[name], marker="o", markersize=3,
            label=f"{name} hedging: p99.9 {tail:.0f} ms of {len(records):,} requests",
        )  # fmt: skip
    ticks = {0.0: "0", 0.301: "50", 1.0: "90", 2.0: "99", 3.0: "99.9", 4.0: "99.99"}
    shown = {at: text for at, text in ticks.items() if at <= longest + 0.1}
    axes.set_xticks(list(shown), labels=list(shown.values()))
    axes.set_yscale("log")
    axes.set_xlabel("percentile")
    axes.set_ylabel("latency in ms, from when the request was due")
    axes.set_title("1 % of calls stall for 500 ms", loc="left")
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path)
