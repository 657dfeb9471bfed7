"""Whether a model's inputs can be filled from views: one answer at publish, at trial and at load."""

from __future__ import annotations

import pytest
from feature_views import PLANES, WEATHER
from hedgerow_protos import serving_spec
from hedgerow_protos.feature_binding import (
    BindingError,
    CallerTensor,
    caller_tensors,
    check_binding,
    check_features,
    unknown_views,
)
from hedgerow_protos.feature_view import dump_views, parse_views
from hedgerow_protos.tensor_shape import TensorShape

X = TensorShape("x", "FP32", (-1, 3))


def _features(columns: str, views: str = "", rest: str = ""):
    views = views or dump_views(parse_views(PLANES, source="") + parse_views(WEATHER, source=""))
    body = views.replace("\n", "\n  ")
    inputs = f"\n  inputs:\n    - input: x\n      columns: {columns}{rest}"
    return serving_spec.parse(f"features:\n  {body}{inputs}", source="serving.yaml").features


GOOD = "[{view: planes@1, fields: [seats]}, {view: weather@3}, {request: {name: hours}}]"


def test_views_and_request_tensors_fill_an_input_left_to_right():
    features = _features(GOOD)
    check_binding(features, [X])
    assert caller_tensors(features, [X]) == [
        CallerTensor("tailnum", "BYTES", 1, entity=True),
        CallerTensor("airport", "BYTES", 1, entity=True),
        CallerTensor("hour", "INT64", 1, entity=True),
        CallerTensor("hours", "FP32", 1, entity=False),  # the input's datatype
    ]


def test_two_views_may_share_a_tensor_and_a_key_may_be_called_otherwise():
    two = "[{view: weather@3, entity: {airport: origin}}, {view: weather@3, entity: {airport: dest}}]"
    one = parse_views(WEATHER, source="")
    features = _features(two, dump_views(one))
    shape = TensorShape("x", "FP32", (-1, 2))
    check_binding(features, [shape])
    assert [tensor.name for tensor in caller_tensors(features, [shape])] == ["origin", "hour", "dest"]


@pytest.mark.parametrize("shape", [(-1, 3), (-1, -1), (4, 3)])
def test_a_width_that_varies_or_fits_will_do(shape):
    check_binding(_features(GOOD), [TensorShape("x", "FP32", shape)])


def test_a_single_value_also_fills_an_input_without_columns():
    only = _features("[{view: weather@3}]", dump_views(parse_views(WEATHER, source="")))
    check_binding(only, [TensorShape("x", "FP32", (-1,))])


def test_no_features_fit_every_model():
    check_binding(serving_spec.parse("", source="").features, [X])


PLANE = "{view: planes@1, fields: [seats]}"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            f"[{PLANE}, {{view: weather@3}}]",
            "lays out 2 values a row; the model takes 3: its shape is [-1, 3]",
        ),
        (
            "[{view: planes@1, fields: [year]}, {view: weather@3}, {request: {name: r}}]",
            "planes@1 has year as INT16; the model's input 'x' takes FP32",
        ),
        ("[{view: planes@1}, {view: weather@3}]", "planes@1 has year as INT16"),
        (f"[{PLANE}, {{view: weather@4}}]", "unknown view 'weather@4'; did you mean 'weather@3'?"),
        ("[{view: planes@1, fields: [seat]}, {view: weather@3}]", "no field 'seat'; did you mean 'seats'?"),
        (
            f"[{PLANE}, {{view: weather@3, entity: {{port: a}}}}]",
            "no entity key 'port'; did you mean 'airport'?",
        ),
        (f"[{PLANE}, {{view: weather@3, entity: {{airport: ''}}}}]", "entity key 'airport' has no tensor"),
        (f"[{PLANE}]", "no input is bound to weather@3"),
        (f"[{PLANE}, {{view: weather@3, request: {{name: r}}}}]", "both `request` and a view"),
        (f"[{PLANE}, {{view: weather@3}}, {{}}]", "neither `view` nor `request`"),
        (f"[{PLANE}, {{view: weather@3}}, {{request: {{}}}}]", "`request` without a name"),
        (
            f"[{PLANE}, {{view: weather@3}}, {{request: {{name: r, datatype: float}}}}]",
            "expected one of BOOL",
        ),
        (f"[{PLANE}, {{view: weather@3}}, {{request: {{name: r, datatype: FP64}}}}]", "'r' is FP64"),
        (f"[{PLANE}, {{view: weather@3}}, {{request: {{name: r, width: 4}}}}]", "lays out 6 values"),
        (f"[{PLANE}, {{view: weather@3}}, {{request: {{name: x}}}}]", "'x', which is also the bound input"),
        (
            f"[{PLANE}, {{view: weather@3}}, {{request: {{name: hour}}}}]",
            "'hour' both as ids of INT64, 1 wide",
        ),
        (f"[{PLANE}, {{view: weather@3}}, {{request: {{name: other}}}}]", "also an input of the model"),
        ("[]", "has no columns"),
    ],
)
def test_a_binding_that_does_not_fit_is_refused_with_what_is_expected(columns, message):
    with pytest.raises(BindingError) as caught:
        check_binding(_features(columns), [X, TensorShape("other", "FP32", (-1, 1))])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([TensorShape("y", "FP32", (-1, 3))], "the model has no input 'x'; known here: y"),
        ([TensorShape("x", "FP64", (-1, 3))], "seats as FP32; the model's input 'x' takes FP64"),
        ([TensorShape("x", "FP32", (-1, 3, 1))], "the shape [-1, 3, 1], expected [-1, 3]"),
        ([TensorShape("x", "FP32", (-1,))], "the shape [-1], expected [-1, 3]"),
    ],
)
def test_a_model_that_takes_something_else_is_refused(inputs, message):
    with pytest.raises(BindingError) as caught:
        check_binding(_features(GOOD), inputs)
    assert message in str(caught.value)


def test_an_input_is_bound_once_and_a_view_keeps_its_rules():
    twice = f"\n    - input: x\n      columns: {GOOD}"
    with pytest.raises(BindingError, match="'x' is bound twice"):
        check_features(_features(GOOD, rest=twice))
    features = _features(GOOD)
    features.views[0].stale_ttl = 1
    with pytest.raises(BindingError, match="planes@1: stale_ttl is 1 s, below the ttl"):
        check_features(features)


def test_views_without_a_definition_are_told():
    features = _features(GOOD)
    assert unknown_views(features) == []
    del features.views[:]
    assert unknown_views(features) == ["planes@1", "weather@3"]
