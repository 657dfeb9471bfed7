"""Whether a model's inputs can be filled from the feature views its serving.yaml binds them to.

Asked when a version is published, when the control plane tries it, and when a server loads it:
one answer everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hedgerow_protos.feature_datatypes import DTYPES
from hedgerow_protos.feature_view import ViewError, check_view, view_ref
from hedgerow_protos.hedgerow_control_pb2 import FeatureColumn, FeatureInput, Features, FeatureView
from hedgerow_protos.tensor_shape import TensorShape


class BindingError(ValueError):
    """A binding that cannot work; the message says where, what is wrong and what is expected."""


@dataclass(frozen=True, slots=True)
class CallerTensor:
    """What callers send in place of bound inputs.

    Attributes:
        name: Of the tensor.
        datatype: Of its elements.
        width: Columns; where it is 1, the shape [n] will do as well as [n, 1].
        entity: Whether it holds entity ids.
    """

    name: str
    datatype: str
    width: int
    entity: bool


def unknown_views(features: Features) -> list[str]:
    """The views, `name@version`, that inputs are bound to and whose definitions are not in `features`."""
    known = {view_ref(view) for view in features.views}
    asked = (column.view for bound in features.inputs for column in bound.columns if column.view)
    return [ref for ref in dict.fromkeys(asked) if ref not in known]


def check_features(features: Features) -> None:
    """Checks what can be checked without the model.

    Raises:
        BindingError: A view breaks a rule, a column names a view or field that is not there, or
            callers would have to send one tensor as two things.
    """
    views: dict[str, FeatureView] = {}
    for view in features.views:
        try:
            check_view(view)
        except ViewError as error:
            raise BindingError(f"features.views: {error}") from None
        if view_ref(view) in views:
            raise BindingError(f"features.views: {view_ref(view)} is there twice")
        views[view_ref(view)] = view
    bound: set[str] = set()
    for entry in features.inputs:
        if not entry.input:
            raise BindingError("features.inputs: an entry without `input`; name the model's input")
        if entry.input in bound:
            raise BindingError(f"features.inputs: {entry.input!r} is bound twice")
        bound.add(entry.input)
        if not entry.columns:
            raise BindingError(f"{_place(entry)} has no columns; name views or tensors of the request")
        for index, column in enumerate(entry.columns):
            _check_column(column, f"{_place(entry)}, column {index}", views)
    used = {column.view for entry in features.inputs for column in entry.columns}
    if unused := [ref for ref in views if ref not in used]:
        raise BindingError(f"features.views: no input is bound to {', '.join(unused)}; take it out")
    for tensor in _callers(features, views, {}):
        if tensor.name in bound:
            raise BindingError(
                f"features: callers would send {tensor.name!r}, which is also the bound input;"
                " give the tensor another name"
            )


def check_binding(features: Features, inputs: Sequence[TensorShape]) -> None:
    """Checks that the model's inputs can be laid out as `features` says; empty features always can.

    Args:
        features: From the serving spec.
        inputs: All inputs of the model.

    Raises:
        BindingError: As `check_features`, or an input is unknown, or its datatype or width differs from
            the columns'.
    """
    check_features(features)
    views = {view_ref(view): view for view in features.views}
    known = {shape.name: shape for shape in inputs}
    for entry in features.inputs:
        shape = known.get(entry.input)
        if shape is None:
            raise BindingError(
                f"features.inputs: the model has no input {entry.input!r}{_hint(entry.input, known)}"
            )
        width = 0
        for index, column in enumerate(entry.columns):
            width += _fitting_width(column, shape, f"{_place(entry)}, column {index}", views)
        _check_shape(entry, shape, width)
    unbound = set(known) - {entry.input for entry in features.inputs}
    for tensor in _callers(features, views, known):
        if tensor.name in unbound:
            raise BindingError(
                f"features: callers would send {tensor.name!r}, which is also an input of the model;"
                " give the tensor another name"
            )


def caller_tensors(features: Features, inputs: Sequence[TensorShape]) -> list[CallerTensor]:
    """What callers send in place of the bound inputs, each tensor once, in the order of the columns.

    Args:
        features: Accepted by `check_binding`.
        inputs: All inputs of the model.
    """
    views = {view_ref(view): view for view in features.views}
    return list(_callers(features, views, {shape.name: shape for shape in inputs}))


def selected_fields(column: FeatureColumn, view: FeatureView) -> list[str]:
    """The fields that a column lays out, in order."""
    return list(column.fields) or [field.name for field in view.fields]


def _check_column(column: FeatureColumn, place: str, views: dict[str, FeatureView]) -> None:
    if column.HasField("request"):
        if column.view or column.fields or column.entity:
            raise BindingError(f"{place} has both `request` and a view; make them two columns")
        if not column.request.name:
            raise BindingError(f"{place}: `request` without a name; name the tensor that callers send")
        if column.request.datatype and column.request.datatype not in DTYPES:
            raise BindingError(
                f"{place}: request {column.request.name!r} has the datatype {column.request.datatype!r};"
                f" expected one of {', '.join(DTYPES)}"
            )
        return
    if not column.view:
        raise BindingError(f"{place} has neither `view` nor `request`")
    view = views.get(column.view)
    if view is None:
        raise BindingError(f"{place}: unknown view {column.view!r}{_hint(column.view, views)}")
    fields = [field.name for field in view.fields]
    for name in column.fields:
        if name not in fields:
            raise BindingError(f"{place}: {column.view} has no field {name!r}{_hint(name, fields)}")
    keys = [key.name for key in view.entity]
    for name, tensor in column.entity.items():
        if name not in keys:
            raise BindingError(f"{place}: {column.view} has no entity key {name!r}{_hint(name, keys)}")
        if not tensor:
            raise BindingError(f"{place}: entity key {name!r} has no tensor; name what callers send")


def _callers(
    features: Features, views: dict[str, FeatureView], inputs: dict[str, TensorShape]
) -> Iterable[CallerTensor]:
    """The tensors of callers, each once; without `inputs`, a request's datatype may be empty."""
    found: dict[str, CallerTensor] = {}
    for entry in features.inputs:
        for column in entry.columns:
            for tensor in _tensors(column, entry, views, inputs):
                before = found.setdefault(tensor.name, tensor)
                if _differ(before, tensor):
                    raise BindingError(
                        f"features: callers would send {tensor.name!r} both as {_shown(before)} and as"
                        f" {_shown(tensor)}; give one of them another name"
                    )
    return found.values()


def _tensors(
    column: FeatureColumn,
    entry: FeatureInput,
    views: dict[str, FeatureView],
    inputs: dict[str, TensorShape],
) -> list[CallerTensor]:
    if column.HasField("request"):
        request = column.request
        implied = inputs[entry.input].datatype if entry.input in inputs else ""
        return [CallerTensor(request.name, request.datatype or implied, request.width or 1, entity=False)]
    return [
        CallerTensor(column.entity.get(key.name) or key.name, key.datatype, 1, entity=True)
        for key in views[column.view].entity
    ]


def _differ(one: CallerTensor, other: CallerTensor) -> bool:
    datatypes = {one.datatype, other.datatype} - {""}
    return one.width != other.width or len(datatypes) > 1


def _shown(tensor: CallerTensor) -> str:
    what = "ids" if tensor.entity else "a column"
    return f"{what} of {tensor.datatype or 'the input`s datatype'}, {tensor.width} wide"


def _fitting_width(
    column: FeatureColumn, shape: TensorShape, place: str, views: dict[str, FeatureView]
) -> int:
    if column.HasField("request"):
        request = column.request
        if request.datatype and request.datatype != shape.datatype:
            raise BindingError(
                f"{place}: request {request.name!r} is {request.datatype}; the model's input {shape.name!r}"
                f" takes {shape.datatype}"
            )
        return request.width or 1
    view = views[column.view]
    fields = {field.name: field for field in view.fields}
    width = 0
    for name in selected_fields(column, view):
        field = fields[name]
        if field.datatype != shape.datatype:
            raise BindingError(
                f"{place}: {column.view} has {name} as {field.datatype}; the model's input {shape.name!r}"
                f" takes {shape.datatype}: bind a version of the view that declares it so"
            )
        width += field.width or 1
    return width


def _check_shape(entry: FeatureInput, shape: TensorShape, width: int) -> None:
    laid_out = f"{_place(entry)} lays out {width} value{'s' * (width != 1)} a row"
    shown = f"[{', '.join(str(size) for size in shape.shape)}]"
    if len(shape.shape) == 1 and width == 1:
        return
    if len(shape.shape) != 2:
        raise BindingError(f"{laid_out}; the model takes the shape {shown}, expected [-1, {width}]")
    if shape.shape[1] not in (-1, width):
        raise BindingError(f"{laid_out}; the model takes {shape.shape[1]}: its shape is {shown}")


def _place(entry: FeatureInput) -> str:
    return f"features.inputs: input {entry.input!r}"


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known[:20]) or 'none'}"
