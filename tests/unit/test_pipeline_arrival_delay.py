"""The arrival-delay model and its feature views, on a made-up year of flights that follow a known rule."""

import json

import numpy as np
import onnx
import pandas as pd
import pytest
from hedgerow_pipeline import export, features, flights, models, train, views
from hedgerow_protos.feature_binding import check_binding
from hedgerow_protos.feature_view import parse_views, view_ref
from hedgerow_protos.serving_spec import parse
from hedgerow_protos.tensor_shape import TensorShape


def made_up_tables(count: int = 4000, seed: int = 0) -> flights.Tables:
    """Flights whose delays are their plane's and their destination's, and noise of three minutes."""
    random = np.random.default_rng(seed)
    moment = pd.Timestamp("2013-01-01", tz=flights.ZONE) + pd.to_timedelta(
        np.sort(random.integers(0, 364 * 24, count)), unit="h"
    )
    frame = pd.DataFrame({"year": moment.year, "month": moment.month, "day": moment.day})
    frame["time_hour"] = moment.tz_convert("UTC").strftime("%Y-%m-%dT%H:%M:%SZ")
    frame["sched_dep_time"] = moment.hour * 100 + 30
    planes = [f"N{number}" for number in range(40)]
    frame["tailnum"] = random.choice(planes, count)
    frame["origin"] = random.choice(["EWR", "JFK", "LGA"], count)
    frame["dest"] = random.choice(["BOS", "LAX", "SJU"], count)
    frame["carrier"] = "C" + frame["tailnum"].str[1]
    own = frame["tailnum"].str[1:].astype(float)
    frame["dep_delay"] = own + random.normal(0, 3, count)
    frame["arr_delay"] = frame["dep_delay"] + frame["dest"].map({"BOS": -10.0, "LAX": 0.0, "SJU": 20.0})
    frame.loc[frame.index % 50 == 0, "arr_delay"] = np.nan
    weather = frame[["origin", "time_hour"]].drop_duplicates().iloc[::2].copy()
    for name in ("temp", "wind_speed", "precip", "visib", "pressure"):
        weather[name] = random.normal(size=len(weather))
    airports = pd.DataFrame(
        {"faa": ["EWR", "JFK", "LGA", "BOS", "LAX"], "lat": 40.0, "lon": -74.0, "alt": 9.0}
    )
    table = pd.DataFrame({"tailnum": planes[:30], "year": 2003.0, "seats": 180, "engines": 2})
    return flights.Tables(frame, weather, table, airports)


@pytest.fixture(scope="module")
def tables():
    return made_up_tables()


@pytest.fixture(scope="module")
def timetable(tables):
    return flights.timetable(tables)


@pytest.fixture(scope="module")
def values(tables, timetable):
    return views.build(tables, timetable, ~train.held_out(timetable))


@pytest.fixture(scope="module")
def data(timetable):
    return train.split(timetable)


@pytest.fixture(scope="module")
def lookup(values):
    return views.lookup(values)


@pytest.fixture(scope="module")
def versions(data, lookup):
    return [
        models.fit_version_1(lookup.rows(1, data.train), data.train_delays),
        models.fit_version_2(lookup.rows(2, data.train), data.train_delays, trees=20),
    ]


def test_the_versions_take_inputs_of_different_width_and_the_same_ids(versions):
    """A caller must not notice which version answers: the ids are the same, only the binding differs."""
    for model, width in zip(versions, (12, 22), strict=True):
        graph = export.export(model).graph
        (given,), (answer,) = graph.input, graph.output
        assert (given.name, answer.name) == (features.INPUT, features.OUTPUT)
        for value, last in ((given, width), (answer, 1)):
            tensor = value.type.tensor_type
            assert tensor.elem_type == onnx.TensorProto.FLOAT
            assert tensor.shape.dim[0].dim_param == "batch"
            assert tensor.shape.dim[1].dim_value == last
        assert len(features.names(model.version)) == width


def test_onnx_answers_like_scikit_learn_also_for_defaults(versions, data, lookup):
    """An unknown plane, airport and hour are ordinary input."""
    unknown = pd.DataFrame({"tailnum": ["N?"], "origin": ["?"], "dest": ["?"], "hour": [0]})
    for model in versions:
        rows = np.vstack([lookup.rows(model.version, ids) for ids in (data.test[:200], unknown)])
        assert export.check(model, export.export(model), rows) < export.TOLERANCE


def test_an_export_that_differs_is_refused(versions, data, lookup):
    """The check compares: the file of another model must not pass."""
    rows = lookup.rows(2, data.test)
    other = models.fit_version_2(lookup.rows(2, data.train), -data.train_delays, trees=1)
    with pytest.raises(export.ExportError, match="differs from scikit-learn"):
        export.check(versions[1], export.export(other), rows)


def test_the_second_version_learns_what_the_first_cannot_see(versions, data, lookup):
    first, second = (
        models.score(model, lookup.rows(model.version, data.test), data.test_delays) for model in versions
    )
    assert second.mae < first.mae * 0.7


def test_no_day_is_both_learned_from_and_judged_on(data):
    """Flights of one day share their weather; a day on both sides would flatter the score."""
    assert not set(data.train["day_of_year"]) & set(data.test["day_of_year"])
    assert len(data.train) > 3 * len(data.test) > 0


def test_what_came_true_on_days_that_are_judged_is_in_no_view(tables, timetable, values):
    """Were a mean taken over those flights, the model would be shown the answers."""
    judged = train.held_out(timetable)
    other = timetable.copy()
    other.loc[judged, "arr_delay"] += 1000
    again = views.build(tables, other, ~judged)
    for ref, table in values.items():
        pd.testing.assert_frame_equal(table, again[ref])


def test_an_hour_knows_nothing_of_what_happened_in_it_or_later(tables, timetable, values):
    """Not even of a flight that left before it was due: it would foretell its own delay."""
    at = timetable["scheduled"].iloc[len(timetable) // 2]
    other = timetable.copy()
    other.loc[other["left_in"] >= at, "dep_delay"] += 1000
    again = views.build(tables, other, ~train.held_out(other))["airport_hour@1"]
    table = values["airport_hour@1"]
    until = table["event_time"] <= at
    pd.testing.assert_frame_equal(table[until], again[until])
    assert not table[~until].equals(again[~until])
    assert (timetable["left_in"].dropna() >= timetable["scheduled"][timetable["left_in"].notna()]).all()


def test_recent_delay_is_the_mean_of_the_three_hours_before():
    day = [("07:10", 10.0), ("07:20", 20.0), ("08:00", 60.0), ("11:00", -5.0)]
    at = pd.to_datetime([f"2013-03-01T{clock}Z" for clock, _ in day], utc=True)
    tables = made_up_tables(100)
    frame = pd.DataFrame(
        {
            "year": 2013, "month": 3, "day": 1,
            "tailnum": "N1", "origin": "JFK", "dest": "BOS", "carrier": "C1",
            "dep_delay": [delay for _, delay in day], "arr_delay": 0.0,
            "sched_dep_time": at.tz_convert(flights.ZONE).hour * 100 + at.minute,
            "time_hour": at.floor("h").strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )  # fmt: skip
    table = flights.Tables(frame, tables.weather[:0], tables.planes, tables.airports)
    timetable = flights.timetable(table)
    hours = views.build(table, timetable, timetable["arr_delay"].notna())["airport_hour@1"]
    recent = dict(zip(hours["event_time"].dt.hour, hours["recent_delay"], strict=True))
    # The flight of 8:00 left at 9:00; that of 11:00 at 10:55, and counts from 11:00 on.
    assert np.isnan(recent[7])
    assert recent[8] == 15.0
    assert recent[11] == 60.0


def test_what_is_not_known_is_the_default(values, lookup):
    """A plane that nobody registered, an airport without coordinates, an hour without weather."""
    defaults = views.defaults(values)
    ids = pd.DataFrame(
        {"tailnum": ["N39", "N1"], "origin": ["JFK", "?"], "dest": ["SJU", "BOS"], "hour": [1999010100, 0]}
    )
    rows = lookup.rows(2, ids)
    names = features.names(2)
    assert rows.dtype == np.float32
    assert rows[0, names.index("seats")] == defaults["plane_profile@2"]["seats"]
    assert rows[0, names.index("arr_delay")] != defaults["plane_profile@2"]["arr_delay"]
    assert rows[0, names.index("dest.latitude")] == defaults["airport@1"]["latitude"]
    assert rows[1, names.index("origin.dep_delay")] == np.float32(defaults["airport@1"]["dep_delay"])
    assert rows[1, names.index("pressure")] == np.float32(defaults["airport_hour@1"]["pressure"])
    assert lookup.known(2, ids).tolist() == [False, False]


def test_an_hour_is_a_number_that_people_read():
    moments = pd.Series(pd.to_datetime(["2013-07-04T21:59:00Z", "2013-01-01T04:00:00Z"], utc=True))
    assert flights.local_hour(moments).tolist() == [2013070417, 2012123123]


def test_training_writes_models_views_sample_and_report(tmp_path, tables, monkeypatch):
    """The files fit each other: the views that are written are those that the models are bound to."""
    monkeypatch.setattr(flights, "load", lambda: tables)
    lines: list[str] = []
    report = train.train(tmp_path, ttl="1s", stale_ttl="9s", tell=lines.append)
    assert [entry["version"] for entry in report["versions"]] == [1, 2]
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    assert any("MAE" in line for line in lines)

    written = parse_views((tmp_path / "features/views.yaml").read_text(), source="views.yaml")
    assert [view_ref(view) for view in written] == [view.ref for view in features.VIEWS]
    assert {(view.ttl, view.stale_ttl) for view in written} == {(1.0, 9.0)}
    by_ref = {view_ref(view): view for view in written}
    for ref in by_ref:
        (file,) = (tmp_path / "features").glob(f"{ref}.*")
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
        assert list(table.columns) == [*features.view(ref).keys, *features.view(ref).names, "event_time"]
        assert not table[features.view(ref).keys].duplicated().any()

    sample = np.load(tmp_path / "sample.npz")
    for entry in report["versions"]:
        version = entry["version"]
        onnx.checker.check_model(entry["path"])
        spec = parse((tmp_path / f"v{version}/serving.yaml").read_text(), source="serving.yaml")
        rows = sample[f"{features.INPUT}:{version}"]
        check_binding(spec.features, [TensorShape(features.INPUT, "FP32", (-1, rows.shape[1]))])
        assert [by_ref[view_ref(view)] for view in spec.features.views] == list(spec.features.views)
        assert {len(sample[name]) for name in (*features.IDS, features.OUTPUT)} == {len(rows)}
    assert {sample[name].dtype.kind for name in features.IDS} == {"U", "i"}
