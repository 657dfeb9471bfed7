"""The fault proxy by hand: its command line, and the commands that it takes while it runs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fault_proxy import FaultProxy, Faults

COMMANDS = """\
  latency MS [JITTER_MS]   every chunk so much later
  stall PERCENT% MS        so many of 100 chunks hold up all behind them; inf: until heal
  bandwidth KB_PER_S       of each connection
  blackhole                bytes vanish, connections stay and are accepted
  timeout MS               the same, and connections are closed after so long
  limit_data BYTES         connections are closed after so much
  reset_peer PERCENT%      so many of 100 chunks reset their connection
  slow_close MS            the end of a connection is passed on so much later
    each holds for both directions, or for the one named after it: upstream (from the
    caller to the server) or downstream; off in place of numbers ends it
  reset                    RST to all connections, now
  half_open [caller]       closes all connections to the server (to the callers), untold to the other side
  refuse, accept           new connections
  down                     refuse and reset; accept or heal ends it
  target HOST:PORT         where new connections go
  heal                     no fault any more; connections that missed something are reset
  status                   what is set, and what happened
  help                     this"""

EXAMPLES = """\
Breaks the connections that pass through it. Examples:

  python tests/chaos/fault_proxy.py --target 127.0.0.1:8001
      on a free port; the first line says which. Type commands while callers talk through it.

  python tests/chaos/fault_proxy.py --listen 127.0.0.1:9101 --target 127.0.0.1:8001 \\
      --latency-ms 50 --jitter-ms 10
      a call takes 80 to 120 ms longer: 50 there and 50 back, give or take

  python tests/chaos/fault_proxy.py --listen 127.0.0.1:9101 --target 127.0.0.1:8001 \\
      --stall-percent 1 --stall-ms 500 --stream downstream
      one of 100 replies, and all behind it on its connection, comes half a second late

  (sleep 5; echo blackhole; sleep 10; echo heal; sleep 5) |
      python tests/chaos/fault_proxy.py --listen 127.0.0.1:9101 --target 127.0.0.1:8001 --until-eof
      an outage of ten seconds
"""


def _seconds(milliseconds: str) -> float:
    return float(milliseconds) / 1000


def _share(percent: str) -> float:
    return float(percent.removesuffix("%")) / 100


#: What a command's numbers set, in their order, and how each is read.
_NUMBERS: dict[str, dict[str, Callable[[str], float]]] = {
    "latency": {"latency": _seconds, "jitter": _seconds},
    "stall": {"stall": _share, "stall_for": _seconds},
    "bandwidth": {"bandwidth": float},
    "timeout": {"timeout": _seconds},
    "limit_data": {"limit_data": int},
    "reset_peer": {"reset_peer": _share},
    "slow_close": {"slow_close": _seconds},
}


def perform(proxy: FaultProxy, line: str) -> str:
    """Does what a line says, one of `COMMANDS`; returns what to print.

    Raises:
        ValueError: It says nothing known, or a number that cannot be.
    """
    command, *words = line.split() or ["help"]
    command = command.replace("-", "_")
    if command in (*_NUMBERS, "blackhole"):
        _set(proxy, command, words)
    elif command == "half_open" and words in ([], ["server"], ["caller"]):
        proxy.half_open(closed=words[0] if words else "server")
    elif command == "target" and len(words) == 1:
        proxy.target = words[0]
    elif words or command not in ("reset", "refuse", "accept", "down", "heal", "status", "help"):
        raise ValueError(f"{line.strip()!r} is no command; help lists them")
    elif command == "help":
        return COMMANDS
    elif command != "status":
        getattr(proxy, command)()
    return proxy.status()


def _set(proxy: FaultProxy, command: str, words: list[str]) -> None:
    streams = ["upstream", "downstream"]
    if words and words[-1] in streams:
        streams = [words.pop()]
    if command == "blackhole":
        command, words = "timeout", words or ["0"]
    names = _NUMBERS[command]
    least = 1 if command == "latency" else len(names)
    changes: dict[str, Any] = {name: getattr(Faults(), name) for name in names}
    if words != ["off"]:
        if not least <= len(words) <= len(names):
            raise ValueError(f"{command} takes {' and '.join(names)}, or off; got {words or 'nothing'}")
        changes |= {name: read(word) for (name, read), word in zip(names.items(), words, strict=False)}
    # Both are made before one is set: a number that cannot be changes nothing.
    faults = {stream: replace(getattr(proxy, stream), **changes) for stream in streams}
    for stream, one in faults.items():
        setattr(proxy, stream, one)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fault_proxy.py",
        usage=argparse.SUPPRESS,
        description=EXAMPLES,
        epilog=f"Commands on stdin, a line each:\n\n{COMMANDS}\n\nCtrl-C ends it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", required=True, metavar="HOST:PORT", help="the server's address")
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="where callers go; port 0: a free one"
    )
    parser.add_argument("--latency-ms", type=float, default=0, help="every chunk so much later")
    parser.add_argument("--jitter-ms", type=float, default=0, help="give or take so much")
    parser.add_argument("--stall-percent", type=float, default=0, help="so many of 100 chunks hold up ...")
    parser.add_argument("--stall-ms", type=float, default=500, help="... all behind them for so long (500)")
    parser.add_argument("--bandwidth-kb", type=float, help="KB/s of each connection")
    parser.add_argument("--limit-data", type=int, metavar="BYTES", help="closes after so many")
    parser.add_argument("--reset-percent", type=float, default=0, help="so many of 100 chunks reset")
    parser.add_argument("--slow-close-ms", type=float, default=0, help="ends are passed on so much later")
    parser.add_argument("--timeout-ms", type=float, help="bytes vanish, and it closes; 0: a black hole")
    parser.add_argument(
        "--stream", choices=("both", "upstream", "downstream"), default="both", help="what these hold for"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same chunks stall and reset each time")
    parser.add_argument("--until-eof", action="store_true", help="ends when stdin does")
    return parser


def _faults(chosen: argparse.Namespace) -> Faults:
    return Faults(
        latency=chosen.latency_ms / 1000,
        jitter=chosen.jitter_ms / 1000,
        stall=chosen.stall_percent / 100,
        stall_for=chosen.stall_ms / 1000 if chosen.stall_percent else 0.0,
        bandwidth=chosen.bandwidth_kb,
        limit_data=chosen.limit_data,
        reset_peer=chosen.reset_percent / 100,
        slow_close=chosen.slow_close_ms / 1000,
        timeout=None if chosen.timeout_ms is None else chosen.timeout_ms / 1000,
    )


async def _run(chosen: argparse.Namespace, faults: Faults) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with FaultProxy(chosen.target, listen=chosen.listen, seed=chosen.seed) as proxy:
        if chosen.stream != "downstream":
            proxy.upstream = faults
        if chosen.stream != "upstream":
            proxy.downstream = faults
        print(
            f"fault-proxy ready listen={proxy.address} target={proxy.target} pid={os.getpid()} "
            "(help lists the commands, Ctrl-C stops)",
            flush=True,
        )
        obeying = asyncio.ensure_future(_obey(proxy))
        if chosen.until_eof:
            obeying.add_done_callback(lambda _: stop.set())
        await stop.wait()
        obeying.cancel()
        await asyncio.wait((obeying,))
        print(f"fault-proxy ends: {proxy.status()}", flush=True)


async def _obey(proxy: FaultProxy) -> None:
    """Performs the lines of stdin until it ends, and answers each with a line."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    with _reading(lines):
        while (line := await lines.get()) is not None:
            try:
                print(perform(proxy, line), flush=True)
            except (ValueError, OSError) as error:
                print(f"error: {error}", flush=True)


@contextlib.contextmanager
def _reading(lines: asyncio.Queue[str | None]) -> Iterator[None]:
    """Puts the lines of stdin into a queue, and None at its end."""
    loop = asyncio.get_running_loop()
    stdin, rest = sys.stdin.fileno(), b""

    def read() -> bool:
        nonlocal rest
        data = os.read(stdin, 65536)
        *whole, rest = (rest + data).split(b"\n")
        for line in whole or ([rest] if rest and not data else []):
            lines.put_nowait(line.decode(errors="replace"))
        if not data:
            loop.remove_reader(stdin)
            lines.put_nowait(None)
        return bool(data)

    try:
        loop.add_reader(stdin, read)
    except PermissionError:  # a file or /dev/null, which are always ready and so cannot be waited for
        while read():
            pass
    try:
        yield
    finally:
        loop.remove_reader(stdin)


def main() -> None:
    """Runs a proxy until Ctrl-C; exits with 1 if the port is taken, with 2 on a wrong argument."""
    parser = _parser()
    chosen = parser.parse_args()
    try:
        asyncio.run(_run(chosen, _faults(chosen)))
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        sys.exit(f"fault_proxy.py: {error}")
