"""The calls to MLflow that make a directory of files a registered version."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from hedgerow.errors import RegistryError

#: Models are logged without a run, but MLflow files every logged model under an experiment.
EXPERIMENT = "hedgerow"


class Registry:
    """One MLflow server.

    Args:
        uri: Its tracking URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with self._errors("connect"):
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def upload(self, name: str, directory: Path) -> str:
        """Logs the files as a model of MLflow's and returns its id."""
        with self._errors("upload the files"):
            logged = self._client.create_logged_model(self._experiment(), name=name)
            model_id = str(logged.model_id)
            try:
                self._client.log_model_artifacts(model_id, str(directory))
            except BaseException:
                with contextlib.suppress(MlflowException):
                    self._client.finalize_logged_model(model_id, "FAILED")
                raise
            self._client.finalize_logged_model(model_id, "READY")
        return model_id

    def register(self, name: str, model_id: str, version_tags: Mapping[str, str]) -> str:
        """Makes an uploaded model the next version of `name` and returns the version."""
        with self._errors(f"register a version of {name!r}"):
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = self._client.create_model_version(
                name, source=f"models:/{model_id}", model_id=model_id, tags=dict(version_tags)
            )
        return str(version.version)

    def tag(self, name: str, tags: Mapping[str, str]) -> None:
        """Sets tags of the model, which hold for all its versions."""
        with self._errors(f"tag {name!r}"):
            for key, value in tags.items():
                self._client.set_registered_model_tag(name, key, value)

    def point(self, name: str, alias: str, version: str) -> None:
        """Moves an alias; servers follow it."""
        with self._errors(f"set the alias {alias!r} of {name!r}"):
            self._client.set_registered_model_alias(name, alias, version)

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(EXPERIMENT))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment()  # somebody else published first at the same moment

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RegistryError(f"MLflow at {self.uri}: could not {what}: {text}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps MLflow's warnings about the caller's environment off the terminal meanwhile."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
