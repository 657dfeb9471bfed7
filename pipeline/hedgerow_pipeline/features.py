"""What a caller sends: one float32 row per flight, the same for every version of the model.

Text columns travel as codes, positions in a fixed list. What a version makes
of them (one-hot, means, nothing) is inside its ONNX graph, so callers do not
change when the model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: Name of the input tensor, FP32 [rows, len(FEATURES)].
INPUT = "features"
#: Name of the output tensor, FP32 [rows, 1]: minutes late, negative when early.
OUTPUT = "arrival_delay"
#: Name under which the model is registered.
MODEL = "arrival-delay"


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the input tensor."""

    name: str
    meaning: str


FEATURES: tuple[Feature, ...] = (
    Feature("dep_delay", "minutes late at the gate, negative when early"),
    Feature("distance", "miles"),
    Feature("departure_hour", "scheduled local time, 17.5 is half past five in the afternoon"),
    Feature("month", "1 to 12"),
    Feature("day_of_week", "0 is Monday"),
    Feature("origin", "code; EWR, JFK, LGA"),
    Feature("carrier", "code; two-letter airline"),
    Feature("dest", "code; three-letter airport"),
    Feature("planned_minutes", "gate to gate by the timetable"),
    Feature("departures_that_hour", "scheduled at the origin"),
    Feature("dest_latitude", "degrees"),
    Feature("dest_longitude", "degrees"),
    Feature("plane_age", "years, NaN when unknown"),
    Feature("plane_seats", "NaN when unknown"),
    Feature("temp", "Fahrenheit at the origin, NaN when unknown, as all weather"),
    Feature("wind_speed", "mph"),
    Feature("headwind", "mph against the course to the destination"),
    Feature("precip", "inches in the hour"),
    Feature("visib", "miles"),
    Feature("pressure", "millibars"),
)
NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
#: Columns sent as codes.
CODED: tuple[str, ...] = ("origin", "carrier", "dest")
#: Code of a value that was not in the training data.
UNKNOWN = -1.0


def vocabulary(frame: Any) -> dict[str, list[str]]:
    """Lists the values of each coded column in order; a value's position is its code."""
    return {name: sorted(frame[name].unique().tolist()) for name in CODED}


def encode(frame: Any, words: Mapping[str, Sequence[str]]) -> npt.NDArray[np.float32]:
    """Lays a frame's columns out as the model's input.

    Args:
        frame: A DataFrame with the columns of `FEATURES`.
        words: The vocabulary that the model was trained with.

    Returns:
        float32 [rows, len(FEATURES)]; values outside the vocabulary are `UNKNOWN`.
    """
    rows = np.empty((len(frame), len(NAMES)), np.float32)
    for column, name in enumerate(NAMES):
        if name in CODED:
            codes = {word: float(code) for code, word in enumerate(words[name])}
            rows[:, column] = frame[name].map(codes).fillna(UNKNOWN)
        else:
            rows[:, column] = frame[name]
    return rows
