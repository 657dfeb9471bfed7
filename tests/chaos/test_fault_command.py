"""The fault proxy by hand, in a thread and in a process; and a real server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import hedgerow
import numpy as np
import pytest
import zoo
from fault_command import COMMANDS, perform
from fault_hosts import ProxyProcess, ProxyThread
from fault_proxy import BLACK_HOLE, FaultProxy, Faults
from server_process import start_server

SCRIPT = Path(__file__).with_name("fault_proxy.py")
#: Nothing is there; who only sets faults does not mind.
NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("latency 50", Faults(latency=0.05)),
        ("latency 50 10", Faults(latency=0.05, jitter=0.01)),
        ("stall 1% 500", Faults(stall=0.01, stall_for=0.5)),
        ("stall 100 inf", Faults(stall=1, stall_for=math.inf)),
        ("bandwidth 12.5", Faults(bandwidth=12.5)),
        ("blackhole", BLACK_HOLE),
        ("timeout 1000", Faults(timeout=1)),
        ("limit-data 1000", Faults(limit_data=1000)),
        ("  reset_peer 5%  \n", Faults(reset_peer=0.05)),
        ("slow_close 20", Faults(slow_close=0.02)),
    ],
)
@pytest.mark.parametrize("stream", ["", "upstream", "downstream"])
async def test_a_command_sets_its_fault_and_off_ends_it(line, wanted, stream):
    """In both directions or in the named one; what else is set stays."""
    async with FaultProxy(NOWHERE) as proxy:
        status = perform(proxy, f"{line} {stream}")
        assert proxy.upstream == (wanted if stream != "downstream" else Faults())
        assert proxy.downstream == (wanted if stream != "upstream" else Faults())
        assert status == proxy.status()
        perform(proxy, "latency 1" if "latency" not in line else "bandwidth 1")
        others = proxy.upstream, proxy.downstream
        assert others[stream == "downstream"] != Faults(), "one command does not undo another"
        perform(proxy, f"{line.split()[0]} off")
        perform(proxy, "latency off" if "latency" not in line else "bandwidth off")
        assert proxy.faults == Faults()


@pytest.mark.parametrize(
    "line",
    [
        "lag 50",
        "latency",
        "latency fast",
        "latency -5",
        "latency 1 2 3",
        "latency 50 sideways",
        "stall 1%",
        "stall 101% 5",
        "limit_data 1.5",
        "bandwidth 0",
        "half_open sideways",
        "target nowhere",
        "heal please",
        "blackhole 5 5",
    ],
)
async def test_a_wrong_command_is_refused_and_changes_nothing(line):
    async with FaultProxy(NOWHERE) as proxy:
        with pytest.raises(ValueError, match=r"\w"):
            perform(proxy, line)
        assert proxy.faults == Faults()


async def test_help_lists_every_command_and_each_is_one():
    async with FaultProxy(NOWHERE) as proxy:
        assert perform(proxy, "help") == perform(proxy, "") == COMMANDS
        words = re.findall(r"^  (\w+)(?:, (\w+))?(?: |$)", COMMANDS, re.MULTILINE)
        names = {name for pair in words for name in pair if name}
        assert {"latency", "refuse", "accept", "heal", "half_open", "status"} <= names
        for name in names:
            with contextlib.suppress(ValueError):
                perform(proxy, name)
            with pytest.raises(ValueError, match=r"takes|is no"):
                perform(proxy, f"{name} 1 2 3 4")
        perform(proxy, "heal")


def listens(host, port):
    """Whether somebody accepts there, if only to reset at once since the target is not there."""
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        pass
    return True


@contextlib.contextmanager
def by_hand(*arguments, **options):
    """The proxy as a person starts it, and the rest of its ready line."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        stdin=options.get("stdin", subprocess.PIPE),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("fault-proxy ready listen=127.0.0.1:"), line
        yield process, line
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stdin is not None:
            process.stdin.close()


def test_by_hand_commands_are_answered_and_ctrl_c_ends_it():
    with by_hand("--target", NOWHERE, "--latency-ms", "50", "--stream", "downstream") as (process, line):
        host, port = re.search(r"listen=(\S+):(\d+)", line).groups()
        assert listens(host, port)
        for command, answer in {
            "stall 1% 500 upstream": "upstream: stall=0.01 stall_for=0.5; downstream: latency=0.05;",
            "nonsense": "error: 'nonsense' is no command; help lists them",
            "refuse": f"refuses at {host}:{port}, target {NOWHERE};",
        }.items():
            process.stdin.write(command + "\n")
            process.stdin.flush()
            assert answer in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith("fault-proxy ends: refuses at")
        assert process.wait(10) == 0


def test_by_hand_it_outlives_stdin_and_takes_commands_from_a_file(tmp_path):
    """In the background of a script stdin is /dev/null; a file cannot be waited for as a pipe can."""
    (tmp_path / "commands").write_text("latency 5\nrefuse")
    with (tmp_path / "commands").open() as commands, by_hand("--target", NOWHERE, stdin=commands) as (one, _):
        assert one.stdout.readline().startswith("listens")
        assert one.stdout.readline().startswith("refuses")
        one.send_signal(signal.SIGTERM)
        assert one.stdout.readline().startswith("fault-proxy ends")
        assert one.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "--target"),
        (["--target", "nowhere"], 2, "'nowhere' is no HOST:PORT"),
        (["--target", NOWHERE, "--stall-percent", "101"], 2, "stall must be a probability"),
        (["--target", NOWHERE, "--listen", "192.0.2.1:0"], 1, "annot assign"),
    ],
)
def test_by_hand_wrong_arguments_are_told(arguments, code, said):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def echo():
    """The address of a server that says everything again."""

    def serve(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("host", [ProxyThread, ProxyProcess])
def test_code_without_a_loop_has_it_in_a_thread_or_a_process(host, echo):
    """The same commands, counts and errors."""
    threads = threading.active_count()
    with host(echo) as proxy:
        name, port = proxy.address.split(":")
        with socket.create_connection((name, int(port)), timeout=10) as connection:
            connection.sendall(b"hello")
            assert connection.recv(5) == b"hello"
            assert "upstream: latency=0.1;" in proxy.do("latency 100 upstream")
            began = time.monotonic()
            connection.sendall(b"hello")
            assert connection.recv(5) == b"hello"
            assert time.monotonic() - began >= 0.1
            with pytest.raises(ValueError, match="no command"):
                proxy.do("nonsense")
            assert proxy.counts()["upstream_bytes"] == 10
            proxy.do("reset")
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((name, int(port)), timeout=10)
    assert threading.active_count() <= threads + 1  # the echo's own


def test_a_thread_takes_faults_as_objects(echo):
    with ProxyThread(echo, seed=3) as proxy:
        proxy.set(upstream=Faults(latency=1), downstream=BLACK_HOLE)
        proxy.set(upstream=Faults(latency=2))
        assert proxy.call(lambda one: (one.upstream, one.downstream)) == (Faults(latency=2), BLACK_HOLE)


@pytest.mark.parametrize("host", [ProxyThread, ProxyProcess])
def test_a_port_in_use_is_told_to_who_starts_it(host, echo, capfd):
    options = {"listen": echo} if host is ProxyThread else {}
    flags = [] if host is ProxyThread else ["--listen", echo]
    with pytest.raises(OSError, match=r"in use|did not start"), host(NOWHERE, *flags, **options):
        pass
    assert host is ProxyThread or "in use" in capfd.readouterr().err


def test_a_process_ends_with_its_parent(tmp_path):
    """Also when that was killed."""
    code = (
        "import sys; from fault_hosts import ProxyProcess\n"
        f"with ProxyProcess({NOWHERE!r}) as proxy: print(proxy.address, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=SCRIPT.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    host, port = parent.stdout.readline().strip().split(":")
    assert listens(host, port)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while listens(host, port):
        assert time.monotonic() < deadline, "the proxy is still there"
        time.sleep(0.02)


async def test_what_a_client_sees_of_a_real_server_in_every_fault(tmp_path):
    """Each fault in turn on one proxy, and after each the same client is answered again."""
    model = zoo.constant(tmp_path / "model.onnx", 7.0)
    server = await asyncio.to_thread(start_server, tmp_path, {"seven": model}, {})
    try:
        async with (
            FaultProxy(server.grpc) as proxy,
            hedgerow.AsyncClient(proxy.address, channels=1, retries=0) as client,
        ):

            async def ask(timeout: float = 10.0) -> float:  # noqa: ASYNC109 - the call's deadline
                began = time.monotonic()
                reply = await client.infer("seven", {"x": np.ones((1, 4), np.float32)}, timeout=timeout)
                assert reply["y"].tolist() == [[7.0]]
                return time.monotonic() - began

            async def fails(*codes: grpc.StatusCode, timeout: float = 10.0) -> None:  # noqa: ASYNC109
                with pytest.raises(hedgerow.HedgerowError) as error:
                    await ask(timeout)
                assert error.value.code in codes, error.value

            async def answered_again() -> None:
                """While gRPC backs off before it connects anew, it fails calls at once."""
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline:
                    with contextlib.suppress(hedgerow.Unavailable):
                        await ask()
                        return
                    await asyncio.sleep(0.05)
                pytest.fail(f"no answer; {proxy.status()}")

            assert await ask() < 5
            proxy.faults = Faults(latency=0.1)
            assert await ask() >= 0.2
            proxy.faults = Faults(stall=1, stall_for=0.3)
            assert await ask() >= 0.6
            proxy.faults = Faults(bandwidth=1)
            assert await ask() >= 0.05
            proxy.faults = BLACK_HOLE
            await fails(grpc.StatusCode.DEADLINE_EXCEEDED, timeout=0.3)
            proxy.heal()
            await answered_again()
            proxy.faults = Faults(reset_peer=1)
            await fails(grpc.StatusCode.UNAVAILABLE)
            proxy.heal()
            await answered_again()
            asked = asyncio.ensure_future(fails(grpc.StatusCode.UNAVAILABLE))
            proxy.upstream = Faults(latency=5)
            await asyncio.sleep(0.1)
            proxy.reset()
            await asked
            proxy.heal()
            await answered_again()
            proxy.half_open()
            await fails(grpc.StatusCode.DEADLINE_EXCEEDED, timeout=0.3)
            proxy.heal()
            await answered_again()
            proxy.downstream = Faults(limit_data=1)
            await fails(grpc.StatusCode.UNAVAILABLE)
            proxy.down()
            await fails(grpc.StatusCode.UNAVAILABLE)
            proxy.heal()
            await answered_again()
            proxy.faults = BLACK_HOLE
            server.process.kill()
            await fails(grpc.StatusCode.DEADLINE_EXCEEDED, timeout=0.3)
            proxy.heal()
            await fails(grpc.StatusCode.UNAVAILABLE)
    finally:
        server.process.kill()
        await asyncio.to_thread(server.wait)
        server.process.stdout.close()
