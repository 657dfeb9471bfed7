"""`hedgerow-server` as an operator types it: what it says, and with which code it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import tempfile
from pathlib import Path

import grpc.aio
import httpx
import pytest
import zoo
from hedgerow_protos.open_inference_pb2 import ModelInferRequest, ServerReadyRequest
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from prometheus_client.parser import text_string_to_metric_families

FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@pytest.fixture
async def command(tmp_path):
    """Runs the command in an empty directory and without settings of the machine's."""
    running = []
    clean = {name: text for name, text in os.environ.items() if not name.startswith("HEDGEROW_")}

    async def run(*arguments: str | Path, **environment: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hedgerow_server",
            *map(str, arguments),
            cwd=tmp_path,
            env={**clean, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.returncode is None:
            process.kill()
        # To the ends of its pipes: what is open when the loop is closed fails whichever test comes next.
        async with asyncio.timeout(30):
            await process.communicate()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "nothing to serve: name a model with --model NAME=PATH"),
        (("--grpc-prot", "1"), "--grpc-port"),
        (("--model", "iris"), "write NAME=PATH, such as --model iris=iris.onnx"),
        (("--model", "iris=gone.onnx"), "models.iris (command line): no file gone.onnx"),
        (("--model", "../iris=gone.onnx"), "cannot name a model"),
        (("--model", "a=x", "--model", "a=y"), "--model a is given twice"),
        (("--workers", "many"), "--workers"),
        (("--transport", "quic"), "native"),
        (("--config", "gone.toml"), "no configuration file gone.toml"),
    ],
)
async def test_a_wrong_command_line_gets_one_line_and_code_2(command, arguments, complaint):
    process = await command(*arguments)
    output, errors = await process.communicate()
    assert process.returncode == 2
    assert output == b""
    assert complaint in errors.decode()
    assert errors.decode().startswith("hedgerow-server: ")
    assert errors.count(b"\n") == 1


async def test_a_wrong_variable_gets_one_line_and_code_2(command):
    process = await command(HEDGEROW_SERVER__GRPC_PROT="1")
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.decode() == (
        "hedgerow-server: HEDGEROW_SERVER__GRPC_PROT: [server] has no key 'grpc_prot'; "
        "did you mean 'grpc_port'?\n"
    )


async def test_help_begins_with_examples(command):
    process = await command("--help")
    output, _ = await process.communicate()
    assert process.returncode == 0
    before_usage = output.decode().partition("Usage:")[0]
    assert "hedgerow-server --model iris=iris.onnx" in before_usage


async def test_a_port_in_use_gets_one_line_and_code_1(command, tmp_path):
    model = zoo.identity(tmp_path / "m.onnx")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ports = ("--grpc-port", "0", "--http-port", port, "--metrics-port", "0")
        process = await command("--model", f"m={model}", *ports)
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use; name another with --http-port" in errors.decode()


async def test_a_model_that_cannot_be_served_ends_it_with_the_reason(command, tmp_path):
    zoo.truncated(tmp_path / "broken.onnx")
    process = await command("--model", "broken=broken.onnx", *FREE_PORTS)
    output, errors = await process.communicate()
    assert process.returncode == 1
    assert output == b""
    last = errors.decode().splitlines()[-1]
    assert last.startswith("hedgerow-server: ")
    assert "broken" in last


async def test_it_says_not_ready_while_models_load_and_a_signal_then_ends_it_at_once(command, tmp_path):
    """Nothing is under way yet that would be worth the hour of a drain, or the minute of a trial."""
    zoo.slow(tmp_path / "slow.onnx", milliseconds=120_000)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await command(
        "--model",
        "slow=slow.onnx",
        *FREE_PORTS[:2],
        *("--http-port", str(port)),
        *FREE_PORTS[4:],
        HEDGEROW_SERVER__DRAIN_SECONDS="3600",
    )
    answer = None
    async with asyncio.timeout(30), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        while answer is None:
            try:
                answer = await http.get("/health/ready")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["models are being loaded"])
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(15):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert output == b""


@pytest.fixture
def temporary():
    """A directory with a path short enough for Unix sockets, which pytest's own need not have."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as path:
        yield Path(path)


async def test_a_worker_that_is_killed_leaves_no_file_behind(command, tmp_path, temporary):
    """A worker cannot clean up after SIGKILL; the server does when it ends."""
    zoo.identity(tmp_path / "m.onnx")
    process = await command("--model", "m=m.onnx", *FREE_PORTS, TMPDIR=str(temporary))
    ready = (await process.stdout.readline()).decode()
    assert list(temporary.rglob("*.sock"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (worker,) = children.read_text().split()  # noqa: ASYNC240  nothing to wait for in /proc
    os.kill(int(worker), signal.SIGKILL)
    metrics = re.search(r"metrics=(\S+)", ready)[1]
    async with asyncio.timeout(30), httpx.AsyncClient(base_url=f"http://{metrics}") as http:
        restarted = 'hedgerow_worker_restarts_total{worker="0"} 1.0'
        while restarted not in (await http.get("/metrics")).text:  # noqa: ASYNC110  it is in another process
            await asyncio.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        await process.communicate()
    assert not list(temporary.glob("hedgerow-*"))


async def test_a_long_temporary_directory_is_no_obstacle(command, tmp_path):
    """The path of a Unix socket has at most 107 bytes; a CI job's temporary directory may be longer."""
    zoo.identity(tmp_path / "m.onnx")
    long = tmp_path / ("x" * 60) / ("y" * 60)
    long.mkdir(parents=True)
    process = await command("--model", "m=m.onnx", *FREE_PORTS, "--transport", "native", TMPDIR=str(long))
    ready = (await process.stdout.readline()).decode()
    async with grpc.aio.insecure_channel(re.search(r"grpc=(\S+)", ready)[1]) as channel:
        # Not ModelInfer: what goes over the socket behind the native transport.
        assert (await GRPCInferenceServiceStub(channel).ServerReady(ServerReadyRequest())).ready
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 0


async def test_a_file_is_served_seen_and_logged_by_two_workers(command, tmp_path):
    """One good request, one bad: an answer, a healthy face, metrics and log lines."""
    model = zoo.identity(tmp_path / "m.onnx")
    process = await command("--model", f"m={model}", *FREE_PORTS, "--workers", "2")
    assert process.stdout is not None
    ready = (await process.stdout.readline()).decode()
    address = dict(re.findall(r"(grpc|http|metrics)=(\S+)", ready))
    async with grpc.aio.insecure_channel(address["grpc"]) as channel:
        stub = GRPCInferenceServiceStub(channel)
        row = ModelInferRequest(model_name="m", raw_input_contents=[bytes(range(12))])
        row.inputs.add(name="x", datatype="FP32", shape=[1, 3])
        answer = await stub.ModelInfer(row)
        assert answer.raw_output_contents == row.raw_input_contents
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(ModelInferRequest(model_name="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    async with httpx.AsyncClient() as client:
        for path in ("live", "ready", "dependencies"):
            assert (await client.get(f"http://{address['http']}/health/{path}")).status_code == 200
        page = (await client.get(f"http://{address['metrics']}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    counted = {
        (sample.labels["model"], sample.labels["code"]): sample.value
        for sample in samples
        if sample.name == "hedgerow_requests_total"
    }
    assert counted == {("m", "OK"): 1, ("unknown", "NOT_FOUND"): 1}
    processes = {s.labels["worker"] for s in samples if s.name == "hedgerow_process_open_fds"}
    assert processes == {"0", "1", "supervisor"}
    process.send_signal(signal.SIGTERM)
    output, _ = await process.communicate()
    assert process.returncode == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["model"], line["code"]) for line in lines] == [("m", "OK"), ("", "NOT_FOUND")]
