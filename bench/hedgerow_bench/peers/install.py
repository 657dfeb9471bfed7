"""Installs a peer into an environment of its own."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_WITHIN = 300.0
_MARK = ".requirements"


class NotInstalled(Exception):
    """A peer could not be installed; the message is one line."""


async def install(directory: Path, requirements: Sequence[str]) -> Path:
    """Makes an environment in `directory`, unless it holds just these requirements already.

    Returns:
        Its Python.

    Raises:
        NotInstalled: It could not be made; says why.
    """
    environment = directory.absolute() / "venv"  # noqa: ASYNC240 - asks for the working directory, no more
    python = environment / "bin" / "python"
    mark = environment / _MARK
    wanted = "\n".join((sys.version, *requirements))
    if mark.is_file() and mark.read_text() == wanted and python.exists():
        return python
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise NotInstalled("needs uv (pip install uv)")
    await _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment))
    await _run(uv, "pip", "install", "--quiet", "--python", str(python), *requirements)
    mark.write_text(wanted)
    return python


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_WITHIN):
            output, _ = await process.communicate()
    except TimeoutError:
        raise NotInstalled(f"was not installed within {_WITHIN:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = output.decode(errors="replace").split()
        raise NotInstalled(f"cannot be installed: {' '.join(lines)[:300]}")
