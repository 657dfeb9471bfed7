"""`hedgerow publish`: a model file into the registry."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hedgerow.cli import output
from hedgerow.cli.endpoints import resolve
from hedgerow.cli.options import Control, Json, Registry, Store
from hedgerow.cli.serving import wait as wait_until_served
from hedgerow.errors import InvalidRequest, ModelRefused
from hedgerow.publishing import publish as publish_model

EXAMPLES = """\
Examples:
  hedgerow publish model.onnx --name delay --wait
  hedgerow publish model.onnx --name delay --serving serving.yaml --tag owner=flights
  hedgerow publish new.onnx --name delay --alias challenger --tag hedgerow.weight.challenger=10\
"""


def publish(
    path: Annotated[Path, Parameter(help="A .onnx file; external data beside it is taken along.")],
    /,
    name: Annotated[str, Parameter(help="The registered model.")],
    *,
    alias: Annotated[
        str, Parameter(help="The role: champion, challenger, economy or shadow. Empty: register only.")
    ] = "champion",
    serving: Annotated[Path | None, Parameter(help="A serving.yaml; without it every default.")] = None,
    tag: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            help="key=value, repeatable: owner, cost_center, cost_per_1k and others on the version,"
            " hedgerow.* on the model.",
        ),
    ] = None,
    views: Annotated[
        list[Path] | None,
        Parameter(
            negative=(),
            help="YAML of feature views that serving.yaml binds, repeatable; without it --store is asked.",
        ),
    ] = None,
    store: Store = None,
    wait: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Until every server answers from it.")
    ] = False,
    timeout: Annotated[float, Parameter(help="Seconds that --wait waits.")] = 60.0,
    registry: Registry = None,
    control: Control = None,
    json: Json = False,
) -> None:
    """Check an ONNX model, log it to MLflow with its serving.yaml, and point an alias at it."""
    began = time.monotonic()
    tags = dict(_pair(text) for text in tag or ())
    if wait and not alias:
        raise InvalidRequest("--wait needs an alias: without one no server answers from the version")
    if not path.is_file():
        raise ModelRefused(f"{path}: no such file")
    # This process is ours: no progress bars between ours, no telemetry, no minutes of retries.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{listed},127.0.0.1,localhost".lstrip(",")
    console = output.progress_console()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=json or not console.is_terminal,
    ) as progress:
        task = progress.add_task("begin", total=1.0)
        published = publish_model(
            path,
            name,
            registry_uri=resolve("mlflow", registry),
            serving=serving,
            alias=alias or None,
            views=views or (),
            store=resolve("store", store),
            tags={key: value for key, value in tags.items() if key.startswith("hedgerow.")},
            version_tags={key: value for key, value in tags.items() if not key.startswith("hedgerow.")},
            progress=lambda step, done: progress.update(task, description=step, completed=done),
        )
        servers = 0
        if wait:
            progress.update(task, description="wait for the servers")
            servers = wait_until_served(
                resolve("control", control), name, published.version, alias, timeout=timeout
            )
    seconds = time.monotonic() - began
    if json:
        output.print_json({**dataclasses.asdict(published), **({"servers": servers} if wait else {})})
        return
    role = f", now {published.alias}" if published.alias else ", registered without an alias"
    if wait:
        role += f" on {servers} server{'s' * (servers != 1)}"
    output.console().print(
        f"{published.name} version {published.version}{role} ({seconds:.2f} s, {published.registry})",
        markup=False,
        soft_wrap=True,
    )


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise InvalidRequest(f"--tag {text!r}: expected key=value")
    return key, value
