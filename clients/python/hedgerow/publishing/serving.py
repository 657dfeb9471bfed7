"""serving.yaml as the caller gives it, checked against the model it belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import yaml
from hedgerow_protos import serving_spec, yaml_message
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec

from hedgerow.errors import ModelRefused
from hedgerow.publishing import features, rules
from hedgerow.publishing.model_check import feeds

#: A serving spec as a caller may give it.
Serving = Mapping[str, object] | str | os.PathLike[str] | ServingSpec


def read(
    serving: Serving | None,
    proto: onnx.ModelProto,
    *,
    views: Sequence[str | os.PathLike[str]] = (),
    store: str | None = None,
) -> str:
    """The text of serving.yaml, checked against the model.

    The definitions of feature views that it binds inputs to, and does not hold, are written in.

    Args:
        serving: The path of a serving.yaml, whose comments are kept; its content as a mapping or
            message; or None for every default.
        proto: The model it belongs to.
        views: YAML files of feature views.
        store: The feature store's DSN, where there are no such files; None: HEDGEROW_FEATURES__STORE.

    Raises:
        ModelRefused: It cannot be read, has an unknown key, names an input the model lacks, binds
            one to features that do not fit it, or has rules that do not.
        StoreError: The feature store cannot be reached.
    """
    source = "serving"
    try:
        if serving is None:
            text = "# Every default.\n"
        elif isinstance(serving, ServingSpec):
            text = serving_spec.dump(serving)
        elif isinstance(serving, Mapping):
            text = yaml_message.dump(dict(serving))
        else:
            source = os.fspath(serving)
            text = Path(serving).read_text(encoding="utf-8")
        spec = serving_spec.parse(text, source=source)
    except OSError as error:
        raise ModelRefused(f"{source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelRefused(f"{source} is not UTF-8 text: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ModelRefused(f"serving holds something that YAML cannot: {error}") from error
    except serving_spec.SpecError as error:
        raise ModelRefused(str(error)) from error
    if features.complete(spec.features, views=views, store=store, source=source):
        text = serving_spec.dump(spec)
    features.check(spec.features, proto, source=source)
    rules.check(spec, proto, source=source)
    names = [value.name for value in feeds(proto.graph)]
    for name in spec.warmup.inputs:
        if name not in names:
            raise ModelRefused(
                f"{source}: warmup names the input {name!r}, the model has {', '.join(map(repr, names))}"
            )
    return text
