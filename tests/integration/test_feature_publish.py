"""A model's binding to features: completed and checked when it is published, checked again in its trial."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import zoo
from feature_views import PLANES, planes
from hedgerow import features
from hedgerow.errors import ModelRefused, StoreError, ViewRefused
from hedgerow.publishing import publish
from hedgerow.publishing import serving as serving_yaml
from hedgerow_control.artifacts.trial import TrialLimits, TrialRefused, trial
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import serving_spec
from hedgerow_protos.feature_view import canonical

LIMITS = TrialLimits(memory_bytes=2 << 30, cpu_seconds=60, wall_seconds=60.0)


def _serving(
    fields: tuple[str, ...] = ("seats",), view: str = "planes@1", datatype: str = ""
) -> dict[str, object]:
    """x, three wide: fields of a view, and two columns of a request tensor."""
    request = {"name": "r", "width": 2} | ({"datatype": datatype} if datatype else {})
    columns = [{"view": view, "fields": list(fields)}, {"request": request}]
    return {"features": {"inputs": [{"input": "x", "columns": columns}]}}


@pytest.fixture
def model(tmp_path) -> onnx.ModelProto:
    """Takes x, FP32 [batch, 3]."""
    return onnx.load(zoo.identity(tmp_path / "m.onnx"))


@pytest.fixture
def views(tmp_path) -> Path:
    path = tmp_path / "planes.yaml"
    path.write_text(PLANES)
    return path


def test_definitions_come_from_the_store(model, views, database, monkeypatch):
    features.apply([views], store=database)
    text = serving_yaml.read(_serving(), model, store=database)
    spec = serving_spec.parse(text, source="published")
    assert list(spec.features.views) == [canonical(planes())]
    monkeypatch.setenv("HEDGEROW_FEATURES__STORE", database)
    assert serving_yaml.read(_serving(), model) == text
    with pytest.raises(ModelRefused, match=r"no view planes@2; it has planes@1; `hedgerow features apply`"):
        serving_yaml.read(_serving(view="planes@2"), model, store=database)


def test_definitions_come_from_files_without_any_store(model, views):
    spec = serving_spec.parse(serving_yaml.read(_serving(), model, views=[views]), source="published")
    assert list(spec.features.views) == [canonical(planes())]
    # What holds its definitions is published as it was written.
    whole = serving_spec.dump(spec) + "# by hand\n"
    path = views.with_name("serving.yaml")
    path.write_text(whole)
    assert serving_yaml.read(path, model) == whole
    with pytest.raises(ModelRefused, match=r"binds planes@2, which is not in .*; there: planes@1"):
        serving_yaml.read(_serving(view="planes@2"), model, views=[views])
    views.write_text("name: 7")
    with pytest.raises(ViewRefused, match="name is a number"):
        serving_yaml.read(_serving(), model, views=[views])


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        (_serving(("seats", "seats")), "lays out 4 values a row; the model takes 3"),
        (_serving(("position",)), "position as FP64; the model's input 'x' takes FP32"),
        (_serving(("seat",)), "no field 'seat'; did you mean 'seats'?"),
        (_serving(datatype="INT64"), "'r' is INT64"),
        (_serving(view="planes"), "expected NAME@VERSION"),
    ],
)
def test_a_binding_that_does_not_fit_is_refused_before_anything_is_uploaded(model, views, serving, message):
    with pytest.raises(ModelRefused) as caught:
        publish(model, "fine", serving=serving, views=[views], registry_uri="http://127.0.0.1:1")
    assert message in caught.value.details


def test_a_store_that_is_away_or_unnamed_is_told(model, monkeypatch, tmp_path):
    with pytest.raises(StoreError, match="cannot be reached"):
        serving_yaml.read(_serving(), model, store=f"postgresql:///x?host={tmp_path}")
    monkeypatch.delenv("HEDGEROW_FEATURES__STORE", raising=False)
    with pytest.raises(ModelRefused, match="name the feature store"):
        serving_yaml.read(_serving(), model)


async def test_the_control_planes_trial_refuses_what_publishing_would_have(model, views, tmp_path):
    """For versions that came into the registry by another way."""
    good = serving_spec.parse(serving_yaml.read(_serving(), model, views=[views]), source="")
    await trial(tmp_path, pb.ModelVersion(path="m.onnx", serving=good), LIMITS)
    bad = pb.ServingSpec()
    bad.CopyFrom(good)
    bad.features.inputs[0].columns[1].request.width = 1
    with pytest.raises(TrialRefused, match="lays out 2 values a row; the model takes 3"):
        await trial(tmp_path, pb.ModelVersion(path="m.onnx", serving=bad), LIMITS)


def test_a_published_binding_survives_json(model, views):
    """As it travels to the trial."""
    from google.protobuf import json_format
    from hedgerow_protos.pool import POOL

    views.write_text(PLANES.replace("default: 150", "default: .nan"))
    spec = serving_spec.parse(serving_yaml.read(_serving(), model, views=[views]), source="")
    said = json.loads(json_format.MessageToJson(spec, descriptor_pool=POOL))
    assert str(json_format.ParseDict(said, pb.ServingSpec(), descriptor_pool=POOL)) == str(spec)
