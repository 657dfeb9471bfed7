"""Two versions of the arrival-delay model, and how well each does.

Version 1 is a ridge regression over what an airline knows without looking
anything up. Version 2 fits a ridge over every column, then boosts trees on
what it leaves over: the linear part carries long delays, which trees cannot
extrapolate, the trees bring weather, routes and congestion. On held-out days
that sum beats either part alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from hedgerow_pipeline.features import NAMES

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained version: the sum of its parts' predictions."""

    version: int
    description: str
    #: scikit-learn regressors over float32 [rows, len(NAMES)].
    parts: tuple[Any, ...]

    def predict(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Minutes late on arrival, float64 [rows]."""
        total: npt.NDArray[np.float64] = np.sum([part.predict(rows) for part in self.parts], axis=0)
        return total


@dataclass(frozen=True, slots=True)
class Score:
    """Errors in minutes over held-out flights."""

    mae: float
    rmse: float
    rows: int


def fit_version_1(rows: Rows, delays: Rows) -> Fitted:
    """Ridge over departure delay, distance, hour, airline and origin."""
    model = make_pipeline(
        _columns(numbers=("dep_delay", "distance", "departure_hour"), codes=("carrier", "origin")), Ridge()
    )
    return Fitted(1, "ridge over 5 columns", (model.fit(rows, delays),))


def fit_version_2(rows: Rows, delays: Rows, *, trees: int = 150, seed: int = 0) -> Fitted:
    """Ridge over all columns, and gradient-boosted trees over its residuals."""
    codes = ("carrier", "origin", "dest", "month", "day_of_week")
    linear = make_pipeline(
        _columns(numbers=tuple(name for name in NAMES if name not in codes), codes=codes), Ridge()
    )
    linear.fit(rows, delays)
    residuals = delays - linear.predict(rows)
    # Large leaves: flights of one day share their luck, and small leaves learn single days.
    boosted = HistGradientBoostingRegressor(
        max_iter=trees, learning_rate=0.1, min_samples_leaf=100, early_stopping=False, random_state=seed
    )
    # Its OpenMP threads spin at every node's barrier: on a machine with other work two of
    # them took 54 s for what one does in 5.
    with threadpool_limits(1, user_api="openmp"):
        boosted.fit(rows, residuals)
    return Fitted(2, f"ridge and {trees} boosted trees over 20 columns", (linear, boosted))


def score(model: Fitted, rows: Rows, delays: Rows) -> Score:
    """Mean absolute and root mean squared error in minutes."""
    error = model.predict(rows) - delays
    return Score(
        mae=float(np.abs(error).mean()), rmse=float(np.sqrt(np.square(error).mean())), rows=len(delays)
    )


def _columns(*, numbers: tuple[str, ...], codes: tuple[str, ...]) -> ColumnTransformer:
    scaled = Pipeline([("fill", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    # A code that training never saw becomes all zeros, the average of the others.
    flags = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    return ColumnTransformer(
        [
            ("numbers", scaled, [NAMES.index(name) for name in numbers]),
            ("codes", flags, [NAMES.index(name) for name in codes]),
        ]
    )
