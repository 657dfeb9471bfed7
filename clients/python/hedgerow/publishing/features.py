"""The views that a serving.yaml binds inputs to: looked up, written in, and checked against the model."""

from __future__ import annotations

import os
from collections.abc import Sequence

import onnx
from hedgerow_protos.feature_binding import BindingError, check_binding, unknown_views
from hedgerow_protos.feature_view import ViewError, parse_ref, view_ref
from hedgerow_protos.hedgerow_control_pb2 import Features, FeatureView

from hedgerow.errors import FailedPrecondition, ModelRefused, NotFound
from hedgerow.publishing.shapes import input_shapes
from hedgerow.view_files import read_views


def complete(
    features: Features, *, views: Sequence[str | os.PathLike[str]], store: str | None, source: str
) -> bool:
    """Adds the definitions of bound views that `features` does not hold; whether there were any.

    Args:
        features: Of the serving spec; changed.
        views: YAML files in which they are looked up. Without any, the store is asked.
        store: The store's DSN; None: HEDGEROW_FEATURES__STORE.
        source: The serving.yaml, for errors.

    Raises:
        ModelRefused: A bound view is nowhere to be found.
        StoreError: The store cannot be reached.
    """
    wanted = unknown_views(features)
    if not wanted:
        return False
    for ref in wanted:
        try:
            parse_ref(ref)
        except ViewError as error:
            raise ModelRefused(f"{source}: features: {error}") from error
    features.views.extend(_from_files(wanted, views, source) if views else _from_store(wanted, store, source))
    return True


def check(features: Features, proto: onnx.ModelProto, *, source: str) -> None:
    """Checks that the model's inputs can be filled as bound.

    Raises:
        ModelRefused: They cannot; the message says what was expected.
    """
    try:
        check_binding(features, input_shapes(proto.graph))
    except BindingError as error:
        raise ModelRefused(f"{source}: {error}") from error


def _from_files(wanted: list[str], paths: Sequence[str | os.PathLike[str]], source: str) -> list[FeatureView]:
    found = {view_ref(view): view for view in read_views(paths)}
    for ref in wanted:
        if ref not in found:
            files = ", ".join(os.fspath(path) for path in paths)
            raise ModelRefused(f"{source} binds {ref}, which is not in {files}; there: {', '.join(found)}")
    return [found[ref] for ref in wanted]


def _from_store(wanted: list[str], store: str | None, source: str) -> list[FeatureView]:
    dsn = store or os.environ.get("HEDGEROW_FEATURES__STORE")
    if not dsn:
        raise ModelRefused(
            f"{source} binds {', '.join(wanted)} without its definition; name the feature store"
            " (HEDGEROW_FEATURES__STORE), or the YAML file of the view"
        )
    try:
        from hedgerow import features  # noqa: PLC0415 - needs packages that publishing a plain model does not
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"looking up feature views needs the package {error.name}: pip install 'hedgerow[features]'"
        ) from error
    try:
        return features.stored_views(wanted, store=dsn)
    except NotFound as error:
        raise ModelRefused(f"{source}: {error.details}; `hedgerow features apply` adds views") from error
