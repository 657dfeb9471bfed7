"""hedgerow-control: the command."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import uvloop
from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError
from hedgerow_protos.config import ConfigError, load

from hedgerow_control.app import StartError, serve
from hedgerow_control.settings import Settings

_EXAMPLES = """\
Watch MLflow and tell servers which versions to serve.

  hedgerow-control
  hedgerow-control --registry-uri http://mlflow:5000 --state-dir /var/lib/hedgerow
  HEDGEROW_REGISTRY__POLL_SECONDS=2 hedgerow-control

Every option is also a key of hedgerow.toml and of the environment: --grpc-port
is grpc_port under [control], and HEDGEROW_CONTROL__GRPC_PORT. A flag wins over
the environment, and the environment over the file.
"""

app = App(
    name="hedgerow-control",
    help="",
    help_prologue=_EXAMPLES,
    help_format="plaintext",
    version=lambda: version("hedgerow"),
    version_flags=["--version"],
)


@app.default
def watch(
    *,
    config: Annotated[
        Path | None, Parameter(help="instead of hedgerow.toml in the current directory")
    ] = None,
    registry_uri: Annotated[
        str | None, Parameter(help="the MLflow server; default http://127.0.0.1:5000")
    ] = None,
    state_dir: Annotated[Path | None, Parameter(help="what survives a restart; default var/control")] = None,
    host: Annotated[str | None, Parameter(help="address to listen on; default 127.0.0.1")] = None,
    grpc_port: Annotated[
        int | None, Parameter(help="for servers and operators; default 8101, 0 picks a free one")
    ] = None,
    http_port: Annotated[int | None, Parameter(help="health, metrics, webhooks; default 8100")] = None,
) -> int:
    """Runs until SIGTERM or Ctrl-C; a second Ctrl-C ends it at once."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    flags: dict[str, object] = {
        "control.host": host,
        "control.grpc_port": grpc_port,
        "control.http_port": http_port,
        "control.state_dir": state_dir,
        "registry.uri": registry_uri,
    }
    uvloop.run(_run(load(Settings, file=config, flags=flags)))
    return 0


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        stop.set()
        # The second one kills.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    await serve(settings, stop)


def main() -> NoReturn:
    """Exits with 0 after a clean stop, 1 if it could not start, 2 for a wrong flag or configuration."""
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, ConfigError) as error:
        print(f"hedgerow-control: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except StartError as error:
        print(f"hedgerow-control: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
