"""The feature views' values, from the tables: what is known of planes, airports and hours.

Means of delays come from the flights that the model learns from, and from no
others. What an hour's row says was known when the hour began: its weather, its
timetable, and the delays of flights that had left by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from hedgerow_pipeline.features import VIEWS, Lookup, View
from hedgerow_pipeline.flights import ZONE, Tables, local_hour

#: A mean over few flights says little: it is drawn towards the mean of all by as many imagined ones.
PRIOR_FLIGHTS = 50
#: Hours whose departures make up `recent_delay`.
RECENT_HOURS = 3


def build(tables: Tables, timetable: Any, learned: Any) -> dict[str, Any]:
    """Makes the values of every view.

    Args:
        tables: As shipped.
        timetable: From `flights.timetable`.
        learned: bool, which of its flights the model may learn from.

    Returns:
        By `name@version`, a DataFrame with the view's keys, its fields (NaN where
        nothing is known) and `event_time` in UTC.
    """
    landed = timetable[learned & timetable["arr_delay"].notna()]
    made = {
        "plane_profile@1": _planes(tables),
        "plane_profile@2": _plane_profiles(_planes(tables), landed),
        "airport@1": _airports(tables, landed),
        "airport_hour@1": _hours(tables, timetable),
    }
    last = timetable["scheduled"].max()
    return {
        view.ref: made[view.ref].assign(event_time=made[view.ref].get("event_time", last))[
            [*view.keys, *view.names, "event_time"]
        ]
        for view in VIEWS
    }


def defaults(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The middle of what each field holds, rounded: what is served where nothing better is known."""
    return {
        view.ref: {name: round(float(values[view.ref][name].median()), 2) for name in view.names}
        for view in VIEWS
    }


def lookup(values: Mapping[str, Any]) -> Lookup:
    """Reads of the views as a server makes them."""
    return Lookup(values, defaults(values))


def write(values: Mapping[str, Any], out: Path, *, ttl: str, stale_ttl: str) -> None:
    """Writes `views.yaml`, and each view's values as `name@version.csv` or `.parquet`.

    Args:
        values: From `build`.
        out: A directory, made if missing.
        ttl: How long a value is fresh, such as `60s`.
        stale_ttl: How old it may be while the store is down.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "views.yaml").write_text(
        yaml.safe_dump({"views": definitions(values, ttl=ttl, stale_ttl=stale_ttl)}, sort_keys=False)
    )
    for ref, table in values.items():
        # The long one in the format for long ones.
        if ref == "airport_hour@1":
            table.to_parquet(out / f"{ref}.parquet", index=False)
        else:
            table.to_csv(out / f"{ref}.csv", index=False, date_format="%Y-%m-%dT%H:%M:%SZ")


def definitions(values: Mapping[str, Any], *, ttl: str, stale_ttl: str) -> list[dict[str, Any]]:
    """The views as YAML has them; see docs/features.md."""
    fallback = defaults(values)
    return [_definition(view, fallback[view.ref], ttl, stale_ttl) for view in VIEWS]


def _definition(view: View, fallback: Mapping[str, float], ttl: str, stale_ttl: str) -> dict[str, Any]:
    name, _, version = view.ref.partition("@")
    return {
        "name": name,
        "version": int(version),
        "entity": [{"name": key, "datatype": datatype} for key, datatype in view.entity],
        "fields": [{"name": field, "datatype": "FP32", "default": fallback[field]} for field in view.names],
        "ttl": ttl,
        "stale_ttl": stale_ttl,
    }


def _planes(tables: Tables) -> Any:
    planes = tables.planes[["tailnum", "seats", "engines", "year"]].rename(columns={"year": "built"})
    return planes.reset_index(drop=True)


def _plane_profiles(planes: Any, landed: Any) -> Any:
    by_plane = landed.groupby("tailnum")
    profiles = pd.DataFrame(
        {
            "flights": by_plane.size().astype(np.float64),
            "dep_delay": _mean(landed, "tailnum", "dep_delay"),
            "arr_delay": _mean(landed, "tailnum", "arr_delay"),
            "carrier_arr_delay": by_plane["carrier"].first().map(_mean(landed, "carrier", "arr_delay")),
        }
    )
    return planes.set_index("tailnum").join(profiles, how="outer").reset_index()


def _airports(tables: Tables, landed: Any) -> Any:
    used = pd.Index(sorted({*landed["origin"], *landed["dest"]}), name="airport")
    places = tables.airports.set_index("faa")[["lat", "lon", "alt"]].reindex(used)
    places.columns = pd.Index(["latitude", "longitude", "altitude"])
    places["dep_delay"] = _mean(landed, "origin", "dep_delay")
    places["arr_delay"] = _mean(landed, "dest", "arr_delay")
    return places.reset_index()


def _hours(tables: Tables, timetable: Any) -> Any:
    """One row for each airport and hour of which the timetable or the weather says something."""
    place = ["origin", "scheduled"]
    weather = tables.weather.assign(scheduled=pd.to_datetime(tables.weather["time_hour"], utc=True))
    weather = weather.drop_duplicates(place).set_index(place)
    hours = weather[["temp", "wind_speed", "precip", "visib", "pressure"]].join(
        timetable.groupby(place).size().rename("departures").astype(np.float64), how="outer"
    )
    hours["recent_delay"] = _recent_delay(timetable, hours.index)
    hours = hours.reset_index()
    hours["hour"] = local_hour(hours["scheduled"])
    local = hours["scheduled"].dt.tz_convert(ZONE)
    hours["month"], hours["weekday"] = local.dt.month, local.dt.dayofweek
    hours["hour_of_day"] = local.dt.hour
    # The hour that comes twice when summer ends has one number.
    return hours.drop_duplicates(["origin", "hour"]).rename(columns={"scheduled": "event_time"})


def _recent_delay(timetable: Any, hours: Any) -> Any:
    """Mean delay of the flights that left each airport in the hours before each hour; NaN where none did."""
    left = timetable[timetable["left_in"].notna()].groupby(["origin", "left_in"])["dep_delay"]
    parts = []
    for origin, sums in pd.DataFrame({"sum": left.sum(), "count": left.size()}).groupby(level="origin"):
        every_hour = sums.droplevel("origin").asfreq("h", fill_value=0)
        until = hours.get_level_values("scheduled").max()
        every_hour = every_hour.reindex(pd.date_range(every_hour.index.min(), until, freq="h"), fill_value=0)
        # Shifted by one: the hour itself is not over.
        before = every_hour.shift(1).rolling(RECENT_HOURS, min_periods=1).sum()
        mean = before["sum"] / before["count"].where(before["count"] > 0)
        parts.append(pd.concat({origin: mean}))
    return pd.concat(parts).reindex(hours)


def _mean(landed: Any, key: str, column: str) -> Any:
    group = landed.groupby(key)[column]
    return (group.sum() + PRIOR_FLIGHTS * landed[column].mean()) / (group.size() + PRIOR_FLIGHTS)
