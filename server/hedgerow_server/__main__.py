"""hedgerow-server: the command."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError
from hedgerow_protos.config import ConfigError, load

from hedgerow_server.settings import Settings
from hedgerow_server.workers import run

_EXAMPLES = """\
Serve ONNX models over gRPC.

  hedgerow-server --model iris=iris.onnx
  hedgerow-server --model iris=iris.onnx --model delays=delays/ --grpc-port 0
  hedgerow-server --config hedgerow.toml --workers 2
  HEDGEROW_SERVER__CONTROL=127.0.0.1:8101 hedgerow-server

Every option is also a key of hedgerow.toml and of the environment: --grpc-port
is grpc_port under [server], and HEDGEROW_SERVER__GRPC_PORT. A flag wins over
the environment, and the environment over the file.
"""

app = App(
    name="hedgerow-server",
    help="",
    help_prologue=_EXAMPLES,
    help_format="plaintext",
    version=lambda: version("hedgerow"),
    version_flags=["--version"],
)


@app.default
def serve(
    *,
    model: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="NAME=PATH of an ONNX file or of a directory with model.onnx; repeatable",
        ),
    ] = None,
    config: Annotated[
        Path | None, Parameter(help="instead of hedgerow.toml in the current directory")
    ] = None,
    host: Annotated[str | None, Parameter(help="address to listen on; default 127.0.0.1")] = None,
    grpc_port: Annotated[int | None, Parameter(help="default 8001; 0 picks a free one")] = None,
    http_port: Annotated[int | None, Parameter(help="health checks; default 8000")] = None,
    metrics_port: Annotated[int | None, Parameter(help="Prometheus metrics; default 8002")] = None,
    transport: Annotated[
        Literal["auto", "native", "grpcio"] | None,
        Parameter(help="default auto: native, or grpcio where TLS is set"),
    ] = None,
    workers: Annotated[int | None, Parameter(help="worker processes; default 1")] = None,
) -> int:
    """Loads the settings and runs the server; returns its exit code."""
    flags: dict[str, object] = {
        "models": _models(model or []),
        "server.host": host,
        "server.grpc_port": grpc_port,
        "server.http_port": http_port,
        "server.metrics_port": metrics_port,
        "server.transport": transport,
        "server.workers": workers,
    }
    settings = load(Settings, file=config, flags=flags)
    if not settings.models and not settings.server.control:
        raise ConfigError(
            "nothing to serve: name a model with --model NAME=PATH, or a control plane with server.control"
        )
    return run(settings)


def _models(flags: list[str]) -> dict[str, str]:
    models: dict[str, str] = {}
    for flag in flags:
        name, equals, path = flag.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--model {flag}: write NAME=PATH, such as --model iris=iris.onnx")
        if name in models:
            raise ConfigError(f"--model {name} is given twice")
        models[name] = path
    return models


def main() -> NoReturn:
    """Exits with 0 after a drain, 1 if the server could not run, 2 for a wrong flag or configuration."""
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, ConfigError) as error:
        print(f"hedgerow-server: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:  # before the supervisor listens for it
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
