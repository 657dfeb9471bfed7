"""What callers send, four ids, and what the model is given for them: columns of feature views.

Both versions of the model answer to the same four tensors. Version 1 is bound to
`plane_profile@1`, version 2 to `plane_profile@2` and to more columns of the other
views; so features roll forward and back with the model, and no caller notices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]

#: Name under which the model is registered.
MODEL = "arrival-delay"
#: Name of the input tensor, FP32 [rows, columns of the version].
INPUT = "features"
#: Name of the output tensor, FP32 [rows, 1]: minutes late, negative when early.
OUTPUT = "arrival_delay"
#: What callers send, [rows] each: BYTES, but for `hour`, which is INT64, the
#: local hour of the scheduled departure, 2013070417 for 4 July 2013, 5 to 6 pm.
IDS: tuple[str, ...] = ("tailnum", "origin", "dest", "hour")


class Field(NamedTuple):
    """One FP32 field of a view."""

    name: str
    meaning: str


class View(NamedTuple):
    """A feature view of the pipeline's.

    Attributes:
        ref: `name@version`.
        entity: Key names and their datatypes.
        fields: In the order in which they lie in a row.
    """

    ref: str
    entity: tuple[tuple[str, str], ...]
    fields: tuple[Field, ...]

    @property
    def keys(self) -> list[str]:
        """Names of the entity's keys."""
        return [name for name, _ in self.entity]

    @property
    def names(self) -> list[str]:
        """Names of the fields."""
        return [field.name for field in self.fields]


_PLANE = (
    Field("seats", "seats"),
    Field("engines", "engines"),
    Field("built", "year of manufacture"),
)
VIEWS: tuple[View, ...] = (
    View("plane_profile@1", (("tailnum", "BYTES"),), _PLANE),
    View(
        "plane_profile@2",
        (("tailnum", "BYTES"),),
        (
            *_PLANE,
            Field("flights", "flights that the means are taken from"),
            Field("dep_delay", "the plane's mean departure delay, minutes"),
            Field("arr_delay", "the plane's mean arrival delay, minutes"),
            Field("carrier_arr_delay", "its airline's mean arrival delay, minutes"),
        ),
    ),
    View(
        "airport@1",
        (("airport", "BYTES"),),
        (
            Field("latitude", "degrees"),
            Field("longitude", "degrees"),
            Field("altitude", "feet"),
            Field("dep_delay", "mean departure delay from here, minutes"),
            Field("arr_delay", "mean arrival delay here, minutes"),
        ),
    ),
    View(
        "airport_hour@1",
        (("origin", "BYTES"), ("hour", "INT64")),
        (
            Field("month", "1 to 12"),
            Field("weekday", "0 is Monday"),
            Field("hour_of_day", "0 to 23, local"),
            Field("departures", "scheduled in the hour"),
            Field("recent_delay", "mean departure delay in the three hours before, minutes"),
            Field("temp", "Fahrenheit"),
            Field("wind_speed", "mph"),
            Field("precip", "inches in the hour"),
            Field("visib", "miles"),
            Field("pressure", "millibars"),
        ),
    ),
)


class Column(NamedTuple):
    """Fields of a view, looked up by ids of the caller's.

    Attributes:
        view: `name@version`.
        fields: Of the view, left to right.
        entity: Key name to the tensor that holds the ids, where the names differ.
    """

    view: str
    fields: tuple[str, ...]
    entity: Mapping[str, str] = {}


#: The columns of the input tensor, left to right, by version.
COLUMNS: Mapping[int, tuple[Column, ...]] = {
    1: (
        Column("plane_profile@1", ("seats", "engines", "built")),
        Column("airport@1", ("dep_delay",), {"airport": "origin"}),
        Column("airport@1", ("latitude", "longitude", "arr_delay"), {"airport": "dest"}),
        Column("airport_hour@1", ("month", "weekday", "hour_of_day", "departures", "visib")),
    ),
    2: (
        Column(
            "plane_profile@2",
            ("seats", "engines", "built", "flights", "dep_delay", "arr_delay", "carrier_arr_delay"),
        ),
        Column("airport@1", ("dep_delay",), {"airport": "origin"}),
        Column("airport@1", ("latitude", "longitude", "altitude", "arr_delay"), {"airport": "dest"}),
        Column(
            "airport_hour@1",
            (
                *("month", "weekday", "hour_of_day", "departures", "recent_delay"),
                *("temp", "wind_speed", "precip", "visib", "pressure"),
            ),
        ),
    ),
}
#: Columns that hold codes rather than amounts: each value gets a weight of its own in the linear part.
CODED: tuple[str, ...] = ("month", "weekday", "hour_of_day")


def view(ref: str) -> View:
    """The view of that name and version."""
    return next(view for view in VIEWS if view.ref == ref)


def names(version: int) -> list[str]:
    """Names of the input's columns, such as `dest.arr_delay` for a field that is there for two ids."""
    found = []
    for column in COLUMNS[version]:
        prefix = "".join(f"{tensor}." for tensor in column.entity.values())
        found += [prefix + field for field in column.fields]
    return found


class Lookup:
    """The values of the views, as a server would find them: a key that is not there gives the defaults.

    Args:
        tables: By view, a DataFrame with its keys and fields; NaN is the default.
        defaults: By view, a default for each field.
    """

    def __init__(self, tables: Mapping[str, Any], defaults: Mapping[str, Mapping[str, float]]) -> None:
        self._rows: dict[str, Rows] = {}
        self._places: dict[str, Any] = {}
        for ref, table in tables.items():
            fallback = [defaults[ref][name] for name in view(ref).names]
            values = table[view(ref).names].fillna(defaults[ref]).to_numpy(np.float32)
            # The last row is the defaults', where -1 for "not found" leads.
            self._rows[ref] = np.vstack([values, np.asarray([fallback], np.float32)])
            self._places[ref] = _index(table[view(ref).keys])

    def rows(self, version: int, ids: Any) -> Rows:
        """Lays out a version's input.

        Args:
            version: Of the model.
            ids: A DataFrame with the columns `IDS`.

        Returns:
            float32 [rows, columns of the version].
        """
        return np.hstack([self._column(column, ids) for column in COLUMNS[version]])

    def known(self, version: int, ids: Any) -> npt.NDArray[np.bool_]:
        """Which rows' keys are in every view that the version is bound to; bool [rows]."""
        return np.all([self._find(column, ids) >= 0 for column in COLUMNS[version]], axis=0)  # type: ignore[no-any-return]

    def _column(self, column: Column, ids: Any) -> Rows:
        fields = [view(column.view).names.index(name) for name in column.fields]
        return self._rows[column.view][self._find(column, ids)][:, fields]

    def _find(self, column: Column, ids: Any) -> npt.NDArray[np.intp]:
        keys = view(column.view).keys
        asked = ids[[column.entity.get(key, key) for key in keys]]
        places: npt.NDArray[np.intp] = self._places[column.view].get_indexer(_index(asked))
        return places


def _index(keys: Any) -> Any:
    import pandas as pd  # noqa: PLC0415 - whoever only wants the names above need not have it

    columns = [keys.iloc[:, place] for place in range(keys.shape[1])]
    return pd.Index(columns[0]) if len(columns) == 1 else pd.MultiIndex.from_arrays(columns)


def bindings(version: int) -> list[dict[str, Any]]:
    """What `features.inputs` in a version's serving.yaml says."""
    columns: Sequence[Column] = COLUMNS[version]
    return [
        {
            "input": INPUT,
            "columns": [
                {"view": column.view, "fields": list(column.fields)}
                | ({"entity": dict(column.entity)} if column.entity else {})
                for column in columns
            ],
        }
    ]
