"""Fallback rules: refused before anything is uploaded, and again in the trial of what came another way."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest
import zoo
from feature_views import PLANES
from hedgerow.errors import FailedPrecondition, ModelRefused
from hedgerow.publishing import publish
from hedgerow.publishing import serving as serving_yaml
from hedgerow_control.artifacts.trial import TrialLimits, TrialRefused, trial
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import serving_spec

LIMITS = TrialLimits(memory_bytes=2 << 30, cpu_seconds=60, wall_seconds=60.0)

#: For y, FP32 [batch, 3].
GOOD = """
fallback:
  rules:
    - name: large
      when: x[0] > 1.0 && x.exists(v, v < 0.0)
      outputs: {y: "[x[0], x[1], 0.5]"}
    - name: flat
      outputs: {y: [0, 0.5, 1]}  # by hand
"""


def _serving(**outputs: object) -> dict[str, object]:
    return {"fallback": {"rules": [{"name": "flat", "outputs": outputs}]}}


@pytest.fixture
def model(tmp_path) -> onnx.ModelProto:
    """Takes x, gives y, FP32 [batch, 3] both."""
    return onnx.load(zoo.identity(tmp_path / "m.onnx"))


def test_rules_that_fit_are_published_as_they_were_written(model, tmp_path):
    path = tmp_path / "serving.yaml"
    path.write_text(GOOD)
    assert serving_yaml.read(path, model) == GOOD
    rules = serving_spec.parse(GOOD, source="").fallback.rules
    assert rules[1].outputs["y"] == "[0.0, 0.5, 1.0]"


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        (_serving(y="zzz"), "serving: fallback.rules: rule 'flat': output 'y': \"zzz\": column 1: unknown"),
        (_serving(y=[1, 2]), "it lists 2 elements; the output takes list(double) with 3 elements"),
        (_serving(y="x.map(v, v > 1.0)"), "it gives list(bool); the output takes list(double)"),
        (_serving(z=1), "the model has no output 'z'; its outputs are 'y'"),
        (_serving(y="[0.0, 0.0, x" + ".map(v, [v, v])[0].map(v, v)" * 3 + "[0]]"), None),
        (_serving(y="x.all(v, " * 9 + "v > 0.0" + ")" * 9 + " ? x : x"), "steps; expected at most"),
        (
            _serving(y={"a": 1}),
            "fallback.rules[0].outputs.y is a mapping; expected an expression, in quotes, or",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused_before_anything_is_uploaded(model, serving, message):
    if message is None:
        serving_yaml.read(serving, model)
        return
    with pytest.raises(ModelRefused) as caught:
        publish(model, "fine", serving=serving, registry_uri="http://127.0.0.1:1")
    assert message in caught.value.details


def test_fields_of_bound_views_are_variables(model, tmp_path):
    views = tmp_path / "planes.yaml"
    views.write_text(PLANES)
    columns = [{"view": "planes@1", "fields": ["seats"]}, {"request": {"name": "r", "width": 2}}]
    bound = {"features": {"inputs": [{"input": "x", "columns": columns}]}}
    serving_yaml.read(bound | _serving(y="[seats, planes.seats, r[1]]"), model, views=[views])
    with pytest.raises(ModelRefused, match="unknown variable 'seat'; did you mean 'seats'"):
        serving_yaml.read(bound | _serving(y="[seat, seat, seat]"), model, views=[views])


def test_an_output_whose_shape_is_not_known_cannot_be_given(model):
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelRefused, match="does not say what shape its output 'y' has"):
        serving_yaml.read(_serving(y=[1, 2, 3]), model)


@pytest.mark.parametrize(
    ("build", "outputs"),
    [
        (zoo.identity, {"y": "x"}),
        (zoo.mlp, {"y": "x[0]"}),
        (zoo.several, {"sum": "[a[0], a[1]]", "difference": "a", "larger": "[b[0] > 0.5, false]"}),
        (zoo.no_batch, {"y": "x"}),
        (zoo.scalar, {"y": "x"}),
        (zoo.total, {"total": "x[0][0]"}),
    ],
)
async def test_publishing_and_loading_agree_on_what_a_row_is(tmp_path, build, outputs):
    proto = onnx.load(build(tmp_path / "m.onnx"))
    serving = serving_spec.parse(serving_yaml.read(_serving(**outputs), proto), source="")
    await trial(tmp_path, pb.ModelVersion(path="m.onnx", serving=serving), LIMITS)


async def test_the_control_planes_trial_refuses_what_publishing_would_have(model, tmp_path):
    serving = serving_spec.parse(GOOD, source="")
    await trial(tmp_path, pb.ModelVersion(path="m.onnx", serving=serving), LIMITS)
    serving.fallback.rules[0].when = "x[0] > 1"
    with pytest.raises(TrialRefused, match=r"rule 'large': when: .*`>` does not take double, int"):
        await trial(tmp_path, pb.ModelVersion(path="m.onnx", serving=serving), LIMITS)


def test_the_library_is_loaded_only_where_there_are_rules(model, tmp_path):
    """It takes 16 MB; and whoever lacks it is told what to install."""
    onnx.save(model, tmp_path / "m.onnx")
    code = """
import sys, onnx
from hedgerow.publishing import serving
model = onnx.load(sys.argv[1])
serving.read({"batching": {"max_batch_size": 8}}, model)
assert not any(name.startswith("cel_expr_python") for name in sys.modules)
sys.modules["cel_expr_python"] = None
try:
    serving.read({"fallback": {"rules": [{"name": "a", "outputs": {"y": [1, 2, 3]}}]}}, model)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(FailedPrecondition.__name__)
    assert "pip install 'hedgerow[publish]'" in done.stdout
