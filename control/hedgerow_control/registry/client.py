"""The registry's calls, blocking: they run in the watcher's one thread.

MLflow's client is imported on first use, because importing it takes seconds
and the control plane has a last good snapshot to serve meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from hedgerow_control.mlflow_import import load_mlflow
from hedgerow_control.registry.desired import (
    ROLES,
    SERVE_TAG,
    VERSION_TAGS,
    DesiredVersion,
    ListedModel,
)

MAX_MODELS = 10_000
_PAGE = 1000


class RegistryError(Exception):
    """The registry cannot be reached or refused a call; the message is for the operator."""


class NoSuchVersion(Exception):
    """The registry has no such version (any more)."""


class RegistryClient(Protocol):
    """What the control plane asks of a model registry. Every method blocks."""

    calls: int
    seconds: float

    def served_models(self) -> list[ListedModel]:
        """All models tagged `hedgerow.serve=true`."""

    def version(self, name: str, version: str) -> DesiredVersion:
        """One version; raises `NoSuchVersion`."""

    def alias(self, name: str, alias: str) -> str | None:
        """The version that an alias points at."""

    def move_alias(self, name: str, alias: str, version: str) -> None:
        """Points an alias at a version."""


class MlflowRegistry:
    """MLflow over HTTP. Not thread-safe: one thread calls it. Counts its calls."""

    def __init__(self, uri: str, *, timeout_seconds: int) -> None:
        self.uri = uri
        self.calls = 0
        self.seconds = 0.0
        self._client: Any = None
        # Read by MLflow at each request. Retrying is the watcher's work, with its own backoff.
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_seconds)
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

    def served_models(self) -> list[ListedModel]:
        """See `RegistryClient`. Several pages only beyond 1,000 models."""
        found: dict[str, ListedModel] = {}
        token: str | None = None
        while True:
            page = self._call(partial(_search, token=token))
            for model in page:
                # Aliases come as {alias: version}; versions as numbers or text, by release.
                aliases = {str(k): str(v) for k, v in model.aliases.items() if k in ROLES}
                # The latest of each stage; versions without a stage are the stage "None".
                newest = max((int(version.version) for version in model.latest_versions), default="")
                found[model.name] = ListedModel(model.name, aliases, dict(model.tags), str(newest))
            token = page.token
            if not token:
                return list(found.values())
            if len(found) > MAX_MODELS:
                raise RegistryError(f"more than {MAX_MODELS} models carry the tag {SERVE_TAG}=true")

    def version(self, name: str, version: str) -> DesiredVersion:
        """See `RegistryClient`."""
        found = self._call(lambda client: client.get_model_version(name, version))
        tags = {key: str(found.tags[key]) for key in VERSION_TAGS if key in found.tags}
        return DesiredVersion(str(found.version), str(found.source), tags)

    def alias(self, name: str, alias: str) -> str | None:
        """See `RegistryClient`."""
        try:
            return str(self._call(lambda client: client.get_model_version_by_alias(name, alias)).version)
        except NoSuchVersion:
            return None

    def move_alias(self, name: str, alias: str, version: str) -> None:
        """See `RegistryClient`."""
        self._call(lambda client: client.set_registered_model_alias(name, alias, version))

    def _call(self, function: Callable[[Any], Any]) -> Any:
        load_mlflow()
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 - seconds to import, see above
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        if self._client is None:
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.calls += 1
        started = time.perf_counter()
        try:
            return function(self._client)
        except MlflowException as error:
            # INVALID_PARAMETER_VALUE is what a missing alias gives.
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}:
                raise NoSuchVersion(_short(error)) from None
            raise RegistryError(_short(error)) from None
        except Exception as error:  # noqa: BLE001 - see the next line
            # requests' own errors, and whatever a proxy's HTML does to the client's parser.
            raise RegistryError(_short(error)) from None
        finally:
            self.seconds += time.perf_counter() - started


def _search(client: Any, *, token: str | None) -> Any:
    return client.search_registered_models(
        f"tags.`{SERVE_TAG}` = 'true'", max_results=_PAGE, order_by=["name ASC"], page_token=token
    )


def _short(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 500 else text[:500] + "…"
