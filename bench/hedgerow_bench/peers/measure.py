"""Hedgerow and each peer in turn, on one core, with the same client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hedgerow_bench import mlp, procfs, throughput
from hedgerow_bench.contender import Contender, WrongAnswer, checked
from hedgerow_bench.load import LoadError
from hedgerow_bench.pair import HANDWRITTEN, ROW, pair
from hedgerow_bench.peers import catalog
from hedgerow_bench.peers.catalog import Peer
from hedgerow_bench.peers.install import NotInstalled, install
from hedgerow_bench.process import NotReady, running
from hedgerow_bench.reports import Report, Rows, tell
from hedgerow_bench.subject import MLP_SEED

#: Hedgerow keeps running between peers; a peer that hangs must not keep the run.
_PEER_WITHIN = 240.0


def choose(names: Sequence[str]) -> list[Peer]:
    """The peers of these names; all for none.

    Raises:
        ValueError: There is no such peer; says which there are.
    """
    known = {peer.name: peer for peer in catalog.PEERS}
    for name in names:
        if name not in known:
            raise ValueError(f"no peer {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(known.values())


async def prepare(peers: Sequence[Peer], directory: Path) -> dict[str, Path | str]:
    """Installs what the peers need, before anything is measured.

    Returns:
        By environment, its Python, or in one line why there is none.
    """
    found: dict[str, Path | str] = {}
    for environment in dict.fromkeys(peer.environment for peer in peers):
        requirements = catalog.pins()[environment]
        tell(f"installing {requirements[0]}")
        try:
            found[environment] = await install(directory / environment, requirements)
        except (NotInstalled, OSError) as error:
            found[environment] = str(error)
            tell(f"{environment} {error}")
    return found


async def measure(
    peers: Sequence[Peer],
    pythons: dict[str, Path | str],
    callers: Sequence[int],
    loop: throughput.Loop,
    report: Report,
) -> Rows:
    """Rows by peer and number of requests under way; a peer that does not work has one row with `error`."""
    splits = [throughput.split(count) for count in callers]
    rows: Rows = []
    async with pair(loop.directory, loop.cores) as (ours, handwritten):
        for row in await throughput.measure([ours, handwritten], splits, loop, tell):
            rows.append({"peer": HANDWRITTEN, "title": "hand-written grpc.aio", "version": ""} | row)
        for peer in peers:
            python = pythons[peer.environment]
            title = {"peer": peer.name, "title": peer.title, "version": catalog.pins()[peer.environment][0]}
            if isinstance(python, str):
                rows.append(_failed(report, peer, title, python))
                continue
            try:
                async with asyncio.timeout(_PEER_WITHIN), serving(peer, python, loop) as theirs:
                    for row in await throughput.measure([ours, theirs], splits, loop, tell):
                        rows.append(title | row)
            except TimeoutError:
                rows.append(_failed(report, peer, title, f"was not measured within {_PEER_WITHIN:.0f} s"))
            except (NotReady, WrongAnswer, LoadError, OSError) as error:
                rows.append(_failed(report, peer, title, str(error)))
    return rows


def _failed(report: Report, peer: Peer, title: dict[str, Any], why: str) -> dict[str, Any]:
    line = f"{peer.title} is left out: {' '.join(why.split())}"
    tell(line)
    report.note(line)
    return title | {"error": why}


@asynccontextmanager
async def serving(peer: Peer, python: Path, loop: throughput.Loop) -> AsyncIterator[Contender]:
    """Starts a peer on the servers' core and waits for its first right answer."""
    directory = python.parents[2]
    mlp.write(directory / "mlp.onnx", MLP_SEED)
    log = directory / f"{peer.name}.log"
    ports = free_ports(peer.ports)
    command = (
        str(python),
        str(catalog.SERVERS / peer.script),
        str(directory / "mlp.onnx"),
        *map(str, ports),
        *peer.arguments,
    )
    pids: list[int] = []
    async with running(
        command,
        log,
        lambda: True,
        within=peer.within,
        environment={"HOME": str(directory), "OMP_NUM_THREADS": "1", **peer.settings},
        cores=loop.cores.server,
        started=pids.append,
    ):
        yield await _first_answer(peer, ports[0], pids[0], log)


async def _first_answer(peer: Peer, port: int, pid: int, log: Path) -> Contender:
    clock = asyncio.get_running_loop()
    deadline = clock.time() + peer.within
    asked = replace(catalog.contender(peer, port, ROW), pid=pid)
    expected = mlp.answer(ROW, MLP_SEED)
    while True:
        try:
            return await checked(asked, expected, catalog.reader(peer))
        except WrongAnswer as error:
            if procfs.read(pid) is None:
                raise NotReady(f"it ended at its start: {_last_line(log)}") from None
            if clock.time() > deadline:
                raise NotReady(f"no right answer within {peer.within:.0f} s: {error}") from None
        await asyncio.sleep(0.5)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"see {log}"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
