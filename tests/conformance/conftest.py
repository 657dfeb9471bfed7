"""One server for each transport, with every model that is asked here; the clients are other people's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import every_datatype
import pytest
import real_models
import zoo
from real_models import RealModel

READY = re.compile(r"^hedgerow-server ready grpc=(\S+) http=(\S+) metrics=(\S+) ")
#: Hang bound for start and stop, not an expectation.
PATIENCE = 60.0


@dataclass(frozen=True)
class Served:
    """A running server's addresses, host:port."""

    grpc: str
    http: str
    metrics: str
    transport: str


def pytest_collection_modifyitems(items):
    """Gives the first test of each transport time to train the demo's models and start a server."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()) and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))


@contextmanager
def serve(models: Mapping[str, Path], transport: str, directory: Path) -> Iterator[Served]:
    """Runs `hedgerow-server` with these models on ports of its choice; stops it with SIGTERM.

    Args:
        models: ONNX file by name.
        transport: `native` or `grpcio`.
        directory: where the process runs and logs; server.log is shown if it does not start.
    """
    flags = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
    command = [sys.executable, "-m", "hedgerow_server", *flags, "--transport", transport]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    log = directory / "server.log"
    environment = os.environ | {"HEDGEROW_LOG__REQUESTS": str(directory / "requests.log")}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        ready = READY.match(process.stdout.readline())
        if ready is None:
            pytest.fail(f"the server did not start:\n{log.read_text()}")
        yield Served(*ready.groups(), transport)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def demo_directory(tmp_path_factory) -> Path:
    """The demo's two versions, trained and exported as the demo does; about ten seconds."""
    directory = tmp_path_factory.mktemp("demo")
    subprocess.run(
        [sys.executable, "-m", "hedgerow_pipeline", "--out", str(directory)],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=200,
    )
    return directory


@pytest.fixture(scope="session")
def models(demo_directory) -> dict[str, RealModel]:
    """Every real model by name."""
    return {
        model.name: model
        for model in (
            real_models.arrival_delay(demo_directory, 1),
            real_models.arrival_delay(demo_directory, 2),
            real_models.magika(),
            real_models.rapidocr_detection(),
            real_models.silero_vad(),
        )
    }


@pytest.fixture(scope="session")
def small_models(models, tmp_path_factory) -> dict[str, Path]:
    """Models for traits that no real one shows, and copies of real ones that declare sizes; by name."""
    directory = tmp_path_factory.mktemp("small")
    return {
        "every_datatype": every_datatype.write(directory / "every_datatype.onnx"),
        "every_datatype_but_fp16": every_datatype.write(
            directory / "every_datatype_but_fp16.onnx", but="FP16"
        ),
        "no_batch": zoo.no_batch(directory / "no_batch.onnx"),
        "scalar": zoo.scalar(directory / "scalar.onnx"),
        "total": zoo.total(directory / "total.onnx"),
        "rapidocr_det_fixed": real_models.declare_answer(
            models["rapidocr_det"], directory / "rapidocr_det_fixed.onnx", keep_batch=True
        ),
        "silero_vad_fixed": real_models.declare_answer(
            models["silero_vad"], directory / "silero_vad_fixed.onnx", keep_batch=False
        ),
    }


@pytest.fixture(scope="session", params=["native", "grpcio"])
def server(request, models, small_models, tmp_path_factory) -> Iterator[Served]:
    """A server with everything, once for each transport."""
    paths = {name: model.path for name, model in models.items()} | small_models
    with serve(paths, request.param, tmp_path_factory.mktemp(request.param)) as served:
        yield served


@pytest.fixture(params=["arrival_delay_v1", "arrival_delay_v2", "magika", "rapidocr_det", "silero_vad"])
def model(request, models) -> RealModel:
    """Each real model in turn."""
    return models[request.param]
