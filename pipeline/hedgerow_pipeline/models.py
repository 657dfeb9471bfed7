"""Two versions of the arrival-delay model, and how well each does.

Version 1 is a ridge regression over the plane's build, the calendar and the
airports. Version 2 fits a ridge over every column, the delays of the last hours
and the weather among them, then boosts trees on what it leaves over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from hedgerow_pipeline.features import CODED, Rows, names


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained version: the sum of its parts' predictions."""

    version: int
    description: str
    #: scikit-learn regressors over float32 [rows, columns of the version].
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
    """Ridge over all its columns."""
    model = make_pipeline(_columns(1), Ridge())
    return Fitted(1, f"ridge over {rows.shape[1]} columns", (model.fit(rows, delays),))


def fit_version_2(rows: Rows, delays: Rows, *, trees: int = 150, seed: int = 0) -> Fitted:
    """Ridge over all columns, and gradient-boosted trees over its residuals."""
    linear = make_pipeline(_columns(2), Ridge())
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
    return Fitted(2, f"ridge and {trees} boosted trees over {rows.shape[1]} columns", (linear, boosted))


def score(model: Fitted, rows: Rows, delays: Rows) -> Score:
    """Mean absolute and root mean squared error in minutes."""
    error = model.predict(rows) - delays
    return Score(
        mae=float(np.abs(error).mean()), rmse=float(np.sqrt(np.square(error).mean())), rows=len(delays)
    )


def _columns(version: int) -> ColumnTransformer:
    columns = names(version)
    numbers = [place for place, name in enumerate(columns) if name not in CODED]
    codes = [place for place, name in enumerate(columns) if name in CODED]
    # A code that training never saw becomes all zeros, the average of the others.
    flags = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    return ColumnTransformer(
        [
            ("numbers", StandardScaler(), numbers),
            ("codes", flags, codes),
        ]
    )
