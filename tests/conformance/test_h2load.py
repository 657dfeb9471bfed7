"""h2load, nghttp2's load generator: an HTTP/2 client that is not grpc's, hundreds of streams at once."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess

import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

REQUESTS = 2000


@pytest.fixture
def h2load() -> str:
    program = shutil.which("h2load")
    if program is None:
        pytest.skip("h2load is not installed; Debian has it in nghttp2-client")
    return program


def test_every_stream_of_h2load_is_answered(h2load, server, models, tmp_path):
    """h2load counts HTTP 200, which gRPC's errors are too: the server's statistics tell them apart."""
    request = service_pb2.ModelInferRequest(model_name="arrival_delay_v1")
    values = models["arrival_delay_v1"].requests[0]["features"]
    request.inputs.add(name="features", datatype="FP32", shape=values.shape)
    request.raw_input_contents.append(values.tobytes())
    message = request.SerializeToString()
    # gRPC's framing: not compressed, length, message.
    body = tmp_path / "request"
    body.write_bytes(struct.pack(">BI", 0, len(message)) + message)

    def answered() -> tuple[int, int]:
        with triton.InferenceServerClient(server.grpc) as client:
            (statistics,) = client.get_inference_statistics("arrival_delay_v1").model_stats
        return statistics.inference_stats.success.count, statistics.inference_stats.fail.count

    succeeded, failed = answered()
    command = [h2load, "-n", str(REQUESTS), "-c", "4", "-m", "50", "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    command += [f"http://{server.grpc}/inference.GRPCInferenceService/ModelInfer"]
    report = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    counts = re.search(r"requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", report)
    assert counts is not None, report
    assert [int(count) for count in counts.groups()] == [REQUESTS, 0, 0, 0]
    assert answered() == (succeeded + REQUESTS, failed)
