"""What a report's rows look like to a reader: the same words in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable

from hedgerow_bench.cells import POINTS, Row, Table, number, points, quotient, share, taken, with_spread


def tables(report: Row) -> list[Table]:
    """The tables of a report.

    Raises:
        KeyError: There is no such measurement, or the report is of another release.
    """
    return _TABLES[report["measurement"]](report)


def _throughput(report: Row) -> list[Table]:
    rows = report["rows"]
    servers = list(rows[0]["servers"])
    others = servers[1:]
    return [
        Table(
            "Answers per second, median of the rounds (lowest-highest)",
            (
                "requests under way",
                *(f"{name}/s" for name in servers),
                *(f"{servers[0]} / {name}" for name in others),
                *(f"{name}'s µs" for name in servers),
                "failed",
            ),
            tuple(
                (
                    f"{row['concurrency']} ({row['connections']} x {row['streams']})",
                    *(with_spread(row["servers"][name]["per_second"]) for name in servers),
                    *(with_spread(row["ratios"].get(name), ratio=True) for name in others),
                    *(taken(row["servers"][name]) for name in servers),
                    number(row["failed"]),
                )
                for row in rows
            ),
        )
    ]


def _latency(report: Row) -> list[Table]:
    found = []
    alone = report.get("alone", [])
    if alone:
        cells = []
        for row in alone:
            ours: Row = next(iter(row.get("ratios", {}).values()), {})
            cells.append(
                (
                    row["server"],
                    with_spread(row["p50_ms"]),
                    with_spread(row["p99_ms"]),
                    with_spread(ours.get("p50"), ratio=True),
                    with_spread(ours.get("p99"), ratio=True),
                    number(row["latency_ms"].get("p99_9")),
                    number(row["requests"]),
                    number(row["failed"]),
                )
            )
        headings = ("server", "p50 ms", "p99 ms", "p50 ratio", "p99 ratio", "p99.9 ms", "requests", "failed")
        found.append(
            Table("One request at a time, median of the rounds (lowest-highest)", headings, tuple(cells))
        )
    found.append(
        Table(
            "Open loop, from when a request was due to its answer",
            (
                "server",
                "requests/s",
                "of capacity",
                "of its core",
                *POINTS.values(),
                "p99.9 / p50",
                "requests",
                "failed",
            ),
            tuple(
                (
                    row["server"],
                    number(row["rate"]),
                    share(row.get("load")),
                    share(row.get("server_cpu")),
                    *points(row["latency_ms"]),
                    number(quotient(row["latency_ms"], "p99_9", "p50")),
                    number(row["requests"]),
                    number(row["failed"]),
                )
                for row in report["rows"]
            ),
        )
    )
    return found


def _swap(report: Row) -> list[Table]:
    return [
        Table(
            "Alias moves under load: from move to first reply, and latency of the requests meanwhile",
            (
                "moves",
                "served",
                "move p50 ms",
                "move p99 ms",
                *POINTS.values(),
                "requests",
                "failed",
            ),
            tuple(
                (
                    number(row["moves"]),
                    number(row["moves_served"]),
                    number(row["alias_to_served_ms"].get("p50")),
                    number(row["alias_to_served_ms"].get("p99")),
                    *points(row["latency_ms"]),
                    number(row["requests"]),
                    number(row["failed"]),
                )
                for row in report["rows"]
            ),
        )
    ]


def _tensors(report: Row) -> list[Table]:
    rows = report["rows"]
    servers = list(rows[0]["servers"])
    return [
        Table(
            "Megabytes of input a second, median of the rounds (lowest-highest)",
            (
                "input",
                "bytes",
                *(f"{name} MB/s" for name in servers),
                *(f"{servers[0]} / {name}" for name in servers[1:]),
                "failed",
            ),
            tuple(
                (
                    row["size"],
                    number(row["bytes"]),
                    *(with_spread(row["servers"][name]["megabytes_per_second"]) for name in servers),
                    *(with_spread(row["ratios"].get(name), ratio=True) for name in servers[1:]),
                    number(row["failed"]),
                )
                for row in rows
            ),
        )
    ]


def _features(report: Row) -> list[Table]:
    by: dict[str, list[Row]] = {"read": [], "join": [], "server": []}
    for row in report["rows"]:
        by[row["what"]].append(row)
    read = tuple(
        (
            f"{row['entities']} x {row['features']}",
            *(
                with_spread(row["readers"].get(name, {}).get(point))
                for name in ("hedgerow", "feast")
                for point in ("p50_ms", "p99_ms")
            ),
            with_spread(row.get("times_faster"), ratio=True),
            with_spread(row.get("times_faster_before_dict"), ratio=True),
            number(row["failed"]),
        )
        for row in by["read"]
    )
    join = tuple(
        (
            f"{row['entities']} x {row['features']}",
            number(row["rate"]),
            *points(row["latency_ms"]),
            number(row["target_p99_ms"]),
            f"{row['cpu']:.0%}",
            number(row["requests"]),
            number(row["failed"]),
        )
        for row in by["join"]
    )
    server = tuple(
        (
            f"{row['entities']}, {row['sent']} sent",
            number(row["rate"]),
            *points(row["latency_ms"]),
            number(row["requests"]),
            number(row["failed"]),
        )
        for row in by["server"]
    )
    return [
        Table(
            "Entities x features read, one request at a time, median of the rounds (lowest-highest)",
            (
                "read",
                "hedgerow p50 ms",
                "p99 ms",
                "feast p50 ms",
                "p99 ms",
                "feast / hedgerow",
                "without to_dict",
                "failed",
            ),
            read,
        ),
        Table(
            "Hedgerow's join, open loop, from when a request was due",
            ("read", "requests/s", *POINTS.values(), "target p99", "core used", "requests", "failed"),
            join,
        ),
        Table(
            "The whole server over gRPC, open loop, from when a request was due",
            ("entities", "requests/s", *POINTS.values(), "requests", "failed"),
            server,
        ),
    ]


def _scale(report: Row) -> list[Table]:
    models = [row for row in report["rows"] if "models" in row]
    workers = [row for row in report["rows"] if "workers" in row]
    found = []
    cells: tuple[tuple[str, ...], ...]
    headings: tuple[str, ...]
    if models:
        cells = tuple(
            (
                number(row["models"]),
                number(row["concurrency"]),
                with_spread(row["per_second"]),
                with_spread(row["to_first"], ratio=True),
                taken(row),
                with_spread(row.get("server_to_first"), ratio=True),
                f"{row['generator_cpu']:.0%}",
                number(row["failed"]),
            )
            for row in models
        )
        first = number(models[0]["models"])
        headings = (
            "models",
            "under way",
            "answers/s",
            f"to {first} loaded",
            "server's µs",
            "as speed",
            "generator's core",
            "failed",
        )
        found.append(Table("Models loaded, with traffic on all of them", headings, cells))
    if workers:
        cells = tuple(
            (
                number(row["workers"]),
                with_spread(next(iter(row["servers"].values()))["per_second"]),
                ", ".join(f"{part:.0%}" for part in row["shares"]["of_workers"].values())
                + (" of CPU time" if row["shares"]["by"] == "cpu" else " of requests"),
                f"{row['generator_cpu']:.0%}",
                number(row["failed"]),
            )
            for row in workers
        )
        headings = ("workers", "answers/s", "each worker's share", "generator's core", "failed")
        found.append(Table("Worker processes", headings, cells))
    idle = report.get("idle")
    if idle:
        used = (f"{idle['seconds']:g} s", f"{idle['worker']:.3%}", f"{idle['supervisor']:.3%}")
        found.append(Table("Idle, in parts of one core", ("watched", "worker", "supervisor"), (used,)))
    return found


def _loads(report: Row) -> list[Table]:
    rows = report["rows"]
    latency, memory = [], []
    for row in rows:
        size = f"{row['weights']}, {row['megabytes']} MB"
        for name, key in (("quiet", "quiet_ms"), ("loading", "loading_ms")):
            ratio = number(row["p99_ratio"]) if key == "loading_ms" else "-"
            busy = share(row.get("quiet_cpu")) if key == "quiet_ms" else "-"
            latency.append((f"{size}: {name}", number(row["rate"]), busy, *points(row[key]), ratio))
        memory.append(
            (
                size,
                number(row["cycles"]),
                number(row["load_took_ms"].get("p50")),
                number(row["load_took_ms"].get("max")),
                number(row["resident_before"] / 1e6),
                number(row["resident_after"] / 1e6),
                f"{row['resident_ratio']:.3f}",
                " to ".join(
                    number(row[key] / 1e6) for key in ("anonymous_before", "anonymous_after") if key in row
                ),
                number(row["failed"]),
            )
        )
    return [
        Table(
            "A small model while a large one is loaded and dropped",
            ("weights", "requests/s", "of its core", *POINTS.values(), "p99 / quiet"),
            tuple(latency),
        ),
        Table(
            "The loads, and what they leave in memory",
            (
                "weights",
                "times",
                "load p50 ms",
                "max ms",
                "before MB",
                "after MB",
                "after / before",
                "of these anonymous",
                "failed requests",
            ),
            tuple(memory),
        ),
    ]


def _hedge(report: Row) -> list[Table]:
    cells = tuple(
        (
            row["server"],
            *points(row["latency_ms"]),
            with_spread(row["p99_9_ms"]),
            with_spread(row["times_shorter"], ratio=True),
            number(row["at_backup"]),
            f"{row['extra_percent']:.2f} %",
            number(row["requests"]),
            number(row["failed"]),
        )
        for row in report["rows"]
    )
    first = report["rows"][0]
    return [
        Table(
            f"{first['stalled_percent']:g} % of calls stall for {first['stall_ms']:g} ms, "
            f"{first['rate']:,.0f} requests a second in open loop",
            (
                "server",
                *POINTS.values(),
                "p99.9 of rounds",
                "times shorter",
                "at the backup",
                "more requests",
                "requests",
                "failed",
            ),
            cells,
        )
    ]


def _overload(report: Row) -> list[Table]:
    cells = []
    for row in report["rows"]:
        if row["phase"] == "peak":
            cells.append(("peak", "-", number(row["goodput"]), *["-"] * 8))
            continue
        hedged = row.get("hedge_percent")
        cells.append(
            (
                row["phase"],
                number(row["offered"]),
                number(row["goodput"]),
                f"{row['of_peak']:.0%}",
                number(row["accepted_ms"].get("p50")),
                number(row["accepted_ms"].get("p99")),
                number(row["deadline_ms"]),
                "-" if hedged is None else f"{hedged:.2f} %",
                number(row.get("runs_after_deadline")),
                number(row.get("as_usual_after_seconds")),
                number(row["failed"]),
            )
        )
    return [
        Table(
            "Two regions, each the other's backup: requests a second, both together",
            (
                "phase",
                "offered/s",
                "in time/s",
                "of peak",
                "accepted p50 ms",
                "p99 ms",
                "deadline",
                "hedged",
                "late answers",
                "as usual after s",
                "failed",
            ),
            tuple(cells),
        )
    ]


def _peers(report: Row) -> list[Table]:
    cells = []
    for row in report["rows"]:
        title = row["title"] + (f" ({row['version']})" if row["version"] else "")
        if "error" in row:
            cells.append((title, "-", "-", "-", "left out", "-", "-", "-"))
            continue
        ours, theirs = row["servers"]
        cells.append(
            (
                title,
                number(row["concurrency"]),
                with_spread(row["servers"][theirs]["per_second"]),
                with_spread(row["servers"][ours]["per_second"]),
                with_spread(row["ratios"].get(theirs), ratio=True),
                taken(row["servers"][theirs]),
                taken(row["servers"][ours]),
                number(row["failed"]),
            )
        )
    headings = (
        "peer",
        "under way",
        "peer/s",
        "hedgerow/s",
        "hedgerow / peer",
        "peer's µs",
        "hedgerow's µs",
        "failed",
    )
    return [Table("Answers per second, median of the rounds (lowest-highest)", headings, tuple(cells))]


_TABLES: dict[str, Callable[[Row], list[Table]]] = {
    "throughput": _throughput,
    "latency": _latency,
    "tensors": _tensors,
    "features": _features,
    "scale": _scale,
    "loads": _loads,
    "swap": _swap,
    "hedge": _hedge,
    "overload": _overload,
    "peers": _peers,
}
