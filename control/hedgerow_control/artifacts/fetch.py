"""Downloads a version's files from the registry's artifact store. Blocking: runs in a thread.

Bytes are read and nothing else: no pickle is opened, no flavor is loaded. What
MLflow adds for itself (MLmodel, conda.yaml, ...) is left out, so the same model
logged twice has the same digest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import yaml
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import manifest, serving_spec

from hedgerow_control.artifacts.externalize import externalize
from hedgerow_control.mlflow_import import load_mlflow

#: MLflow's own files beside a model; none of them takes part in serving.
BOOKKEEPING = frozenset(
    {
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "registered_model_meta",
        "input_example.json",
        "serving_input_example.json",
    }
)
_BOOKKEEPING_FOLDERS = ("metadata", "code")
_MLMODEL_BYTES = 1 << 20


class ArtifactRefused(Exception):
    """These files cannot be served, now or later; the message says why and what would do."""


class FetchFailed(Exception):
    """The files could not be had this time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one version may bring."""

    max_bytes: int
    max_files: int


class ArtifactSource(Protocol):
    """One version's files in a store."""

    def list(self, path: str | None) -> list[tuple[str, bool, int]]:
        """(path, whether a folder, bytes) of each entry in a folder."""

    def download(self, path: str, directory: Path) -> None:
        """Writes one file to `directory / path`."""


class MlflowArtifacts:
    """The files of a registered version, wherever MLflow keeps them."""

    def __init__(self, uri: str, name: str, version: str) -> None:
        load_mlflow()
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        where = client.get_model_version_download_uri(name, version)
        self._repository: Any = get_artifact_repository(where, tracking_uri=uri, registry_uri=uri)

    def list(self, path: str | None) -> list[tuple[str, bool, int]]:
        """See `ArtifactSource`."""
        return [
            (e.path, bool(e.is_dir), int(e.file_size or 0)) for e in self._repository.list_artifacts(path)
        ]

    def download(self, path: str, directory: Path) -> None:
        """See `ArtifactSource`."""
        self._repository.download_artifacts(path, str(directory))


def fetch(
    connect: Callable[[], ArtifactSource],
    directory: Path,
    limits: Limits,
    abandoned: Callable[[], bool] = lambda: False,
) -> pb.ModelVersion:
    """Downloads, checks and describes one version.

    Args:
        connect: finds the version's files.
        directory: empty; receives them.
        limits: what they may take.
        abandoned: asked before each file; true when nobody wants them any more.

    Returns:
        digest, files, path and serving, after large weights were moved out of the model's file;
        `version` and `tags` are the caller's.

    Raises:
        ArtifactRefused: the files are wrong and will stay so.
        FetchFailed: anything else.
    """
    try:
        source = connect()
        listing = _walk(source, limits)
        entry = _entry(source, listing, directory)
        _download(source, listing, directory, limits, abandoned)
    except (ArtifactRefused, manifest.ManifestError) as error:
        raise ArtifactRefused(str(error)) from None
    except Exception as error:
        # Each kind of store has its own errors; none says more than that it did not work.
        raise FetchFailed(
            f"the files could not be fetched: {str(error)[:500] or type(error).__name__}"
        ) from error
    try:
        files = manifest.scan(directory, max_files=limits.max_files, max_bytes=limits.max_bytes)
        spec_path = str(PurePosixPath(entry).with_name("serving.yaml"))
        spec = pb.ServingSpec()
        size = next((file.size for file in files if file.path == spec_path), None)
        if size is not None:
            if size > serving_spec.MAX_BYTES:
                raise ArtifactRefused(
                    f"{spec_path} has {size} bytes; expected at most {serving_spec.MAX_BYTES}"
                )
            spec = serving_spec.parse((directory / spec_path).read_text(encoding="utf-8"), source=spec_path)
        digest, source_digest = manifest.digest(files), ""
        if len(files) < limits.max_files and externalize(directory, entry):
            files = manifest.scan(directory)
            digest, source_digest = manifest.digest(files), digest
        return pb.ModelVersion(
            digest=digest, files=files, path=entry, serving=spec, source_digest=source_digest
        )
    except (manifest.ManifestError, serving_spec.SpecError, UnicodeDecodeError) as error:
        raise ArtifactRefused(str(error)) from None
    except OSError as error:
        raise FetchFailed(f"the fetched files could not be read: {error}") from error


def _walk(source: ArtifactSource, limits: Limits) -> dict[str, int]:
    """Lists all files with their sizes before any is downloaded."""
    found: dict[str, int] = {}
    folders: list[tuple[str | None, int]] = [(None, 0)]
    while folders:
        folder, depth = folders.pop()
        if depth > manifest.MAX_DEPTH:
            raise ArtifactRefused(f"folders are nested more than {manifest.MAX_DEPTH} deep")
        for path, is_folder, size in source.list(folder):
            manifest.check_path(path)
            if is_folder:
                if path != folder and path not in _BOOKKEEPING_FOLDERS:
                    folders.append((path, depth + 1))
            else:
                found[path] = size
        if len(found) + len(folders) > limits.max_files:
            raise ArtifactRefused(
                f"more than {limits.max_files} files; [artifacts] max_files allows that many"
            )
    total = sum(found.values())
    if total > limits.max_bytes:
        raise ArtifactRefused(
            f"the files have {total} bytes; [artifacts] max_bytes allows {limits.max_bytes}"
        )
    return found


def _download(
    source: ArtifactSource,
    listing: dict[str, int],
    directory: Path,
    limits: Limits,
    abandoned: Callable[[], bool],
) -> None:
    total = 0
    for path in listing:
        if _is_bookkeeping(path):
            continue
        if abandoned():
            raise FetchFailed("the version is not wanted any more")
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        source.download(path, directory)
        # The listing's sizes are what the store says; these are what came.
        total += (directory / path).lstat().st_size
        if total > limits.max_bytes:
            raise ArtifactRefused(
                f"more than {limits.max_bytes} bytes came; [artifacts] max_bytes allows that many"
            )


def _entry(source: ArtifactSource, listing: dict[str, int], directory: Path) -> str:
    """The model's path: what MLflow's onnx flavor names, else model.onnx."""
    entry = "model.onnx"
    if "MLmodel" in listing:
        source.download("MLmodel", directory)
        written = directory / "MLmodel"
        size = written.lstat().st_size
        if size > _MLMODEL_BYTES:
            raise ArtifactRefused(f"MLmodel has {size} bytes; expected at most {_MLMODEL_BYTES}")
        try:
            entry = onnx_entry(written.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ArtifactRefused(f"MLmodel cannot be read: {error}") from None
        written.unlink()
    manifest.check_path(entry)
    if entry not in listing:
        some = ", ".join(sorted(path for path in listing if not _is_bookkeeping(path))[:5]) or "nothing"
        raise ArtifactRefused(
            f"there is no {entry} among the files (found: {some}); log the model in ONNX form"
        )
    return entry


def onnx_entry(mlmodel: str) -> str:
    """Reads the ONNX file's name from an MLmodel file.

    Raises:
        ArtifactRefused: it is not YAML, or describes a model in another form only.
    """
    try:
        flavors = yaml.safe_load(mlmodel)["flavors"]
        names = sorted(str(name) for name in flavors)
        data = flavors["onnx"]["data"] if "onnx" in names else None
    except (yaml.YAMLError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactRefused(f"MLmodel cannot be read: {error}") from None
    if data is None:
        raise ArtifactRefused(
            f"the model is in the form {', '.join(names)}; only ONNX is served: export it to ONNX"
        )
    if not isinstance(data, str):
        raise ArtifactRefused(f"MLmodel names the ONNX file {data!r}; expected a path")
    return data


def _is_bookkeeping(path: str) -> bool:
    return path in BOOKKEEPING
