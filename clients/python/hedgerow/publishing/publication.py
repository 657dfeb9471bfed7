"""One call from a model file to a version that servers pick up."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hedgerow.errors import FailedPrecondition
from hedgerow.publishing.names import check_alias, check_model_name, check_tags

if TYPE_CHECKING:
    import onnx

    from hedgerow.publishing.serving import Serving

#: Called when a step begins, with its name and the part of the work done, 0 to 1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A registered version; `registry` is MLflow's URI, `seconds` what publishing took."""

    name: str
    version: str
    alias: str | None
    registry: str
    seconds: float


def publish(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    name: str,
    *,
    registry_uri: str | None = None,
    serving: Serving | None = None,
    alias: str | None = "champion",
    tags: Mapping[str, str] | None = None,
    version_tags: Mapping[str, str] | None = None,
    views: Sequence[str | os.PathLike[str]] = (),
    store: str | None = None,
    progress: Progress | None = None,
) -> PublishedVersion:
    """Logs an ONNX model and its serving.yaml to MLflow, registers them, and moves an alias there.

    Everything is checked first; what no server could serve is not uploaded. The
    alias moves last, so servers never see half a version. Nothing is pickled.

    Args:
        model: The path of a .onnx file, its bytes, or the message.
        name: The registered model: letters, digits, '.', '_' and '-'.
        registry_uri: MLflow's tracking URI; None: MLFLOW_REGISTRY_URI, MLFLOW_TRACKING_URI, or
            http://127.0.0.1:5000.
        serving: What serving.yaml holds: its path, a mapping, or None for every default.
        alias: The role the version takes: champion, challenger, economy or shadow. None registers
            it without serving it.
        tags: Further tags of the model, such as {"hedgerow.weight.challenger": "10"}.
        version_tags: Tags of the version; owner, cost_center and cost_per_1k travel to servers.
        views: YAML files with the feature views that serving.yaml binds inputs to and does not
            define itself.
        store: The feature store that has them, where there are no such files; None:
            HEDGEROW_FEATURES__STORE.
        progress: Called as the work goes on.

    Raises:
        ModelRefused: The model, its name, alias, tags or serving.yaml will not do; nothing was uploaded.
        RegistryError: MLflow cannot be reached or refused.
        StoreError: The feature store cannot be reached.
    """
    began = time.monotonic()
    say = progress or (lambda step, done: None)  # noqa: ARG005 - the names a callback sees
    say("check the model", 0.0)
    check_model_name(name)
    if alias is not None:
        check_alias(alias)
    check_tags(tags or {}, version_tags or {})
    with _needed_packages():
        from hedgerow.publishing import address, model_check  # noqa: PLC0415
        from hedgerow.publishing import serving as serving_yaml  # noqa: PLC0415
    proto = model_check.read(model)
    text = serving_yaml.read(serving, proto, views=views, store=store)
    say("connect to MLflow", 0.1)
    uri = address.uri_or_default(registry_uri)
    address.knock(uri)
    say("load MLflow", 0.15)
    with _needed_packages():
        # Takes seconds, which a refused model need not wait for.
        from hedgerow.publishing import bundle  # noqa: PLC0415
        from hedgerow.publishing.registry import Registry, quiet  # noqa: PLC0415
    with quiet(), tempfile.TemporaryDirectory(prefix="hedgerow-publish-") as scratch:
        registry = Registry(uri)
        say("write the files", 0.35)
        directory = Path(scratch) / "model"
        bundle.write(proto, text, directory)
        say("upload", 0.4)
        model_id = registry.upload(name, directory)
        say("register", 0.8)
        version = registry.register(name, model_id, version_tags or {})
        registry.tag(name, {"hedgerow.serve": "true", **(tags or {})})
        if alias is not None:
            say(f"point {alias} at version {version}", 0.95)
            registry.point(name, alias, version)
    say("published", 1.0)
    return PublishedVersion(name, version, alias, registry.uri, time.monotonic() - began)


@contextlib.contextmanager
def _needed_packages() -> Iterator[None]:
    """Says which extra to install where the base install is not enough."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"publishing needs the package {error.name}: pip install 'hedgerow[publish]'"
        ) from error
